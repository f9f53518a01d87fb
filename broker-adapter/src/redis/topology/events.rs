//! `TopologyEvents`: signals between the connections of one address and the tasks that look after the address.

use tokio::sync::Notify;

/// Wakes the tasks of one address: the cluster's refresh, and the heartbeat.
#[derive(Debug, Default)]
pub(crate) struct TopologyEvents {
    refresh: Notify,
    reconnected: Notify,
}

impl TopologyEvents {
    /// A reply has shown that a room is not at the master that the routes say.
    pub(crate) fn request_refresh(&self) {
        self.refresh.notify_one();
    }

    /// Waits for [`TopologyEvents::request_refresh`].
    pub(crate) async fn refresh_requested(&self) {
        self.refresh.notified().await;
    }

    /// A connection is up again, or for the first time.
    pub(crate) fn connection_up(&self) {
        self.reconnected.notify_one();
    }

    /// Waits until a connection has come up.
    pub(crate) async fn reconnected(&self) {
        self.reconnected.notified().await;
    }
}
