//! `Target`: where one master is now. The connections to that master ask before each attempt, and learn from it when
//! the master is at another server.

use crate::redis::Sentinels;
use redis::ConnectionInfo;
use std::{future::pending, sync::Arc};
use tokio::sync::watch;

/// Knows where one master is, from a channel or from sentinels.
#[derive(Clone)]
pub(crate) struct Target {
    server: watch::Receiver<ConnectionInfo>,
    sentinels: Option<Arc<Sentinels>>,
}

impl Target {
    /// The master is at the server that the channel has. Once the sender is gone, it never moves again.
    pub(crate) fn new(server: watch::Receiver<ConnectionInfo>) -> Self {
        Self { server, sentinels: None }
    }

    /// The master is where the sentinels say. A task asks them in intervals until `stop` is true.
    pub(crate) async fn watched_by(sentinels: Sentinels, stop: watch::Receiver<bool>) -> Result<Self, String> {
        let sentinels = Arc::new(sentinels);
        let (sender, server) = watch::channel(sentinels.master().await?);
        tokio::spawn(Arc::clone(&sentinels).watch(sender, stop));
        Ok(Self { server, sentinels: Some(sentinels) })
    }

    /// The server to connect to now. Sentinels are asked again.
    pub(crate) async fn find(&self) -> Result<ConnectionInfo, String> {
        match &self.sentinels {
            Some(sentinels) => sentinels.master().await,
            None => Ok(self.server.borrow().clone()),
        }
    }

    /// Marks the current server as seen by [`Target::moved`].
    pub(crate) fn mark_seen(&mut self) {
        self.server.mark_unchanged();
    }

    /// Waits until the master is at another server than the one seen last, and returns that server's address.
    pub(crate) async fn moved(&mut self) -> String {
        if self.server.changed().await.is_err() {
            return pending().await; // no sender: it never moves again
        }
        self.server.borrow_and_update().addr().to_string()
    }

    /// A name for logs and errors, also before the sentinels have answered.
    pub(crate) fn name(&self) -> String {
        match &self.sentinels {
            Some(sentinels) => format!("sentinels of {}", sentinels.master_name()),
            None => self.server.borrow().addr().to_string(),
        }
    }
}
