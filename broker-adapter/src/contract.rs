//! The promises of the crate's head as test cases, which every broker passes. A broker's own tests make a fixture of
//! three or more [`TestNode`]s and pass it to [`contract_tests!`](crate::contract_tests). Cases wait for conditions with
//! a deadline, and use nothing but the public interface of a broker.

mod history;
mod messages;
mod presence;
mod recorder;
mod replies;
mod subscriptions;

pub use history::*;
pub use messages::*;
pub use presence::*;
pub use recorder::{Recorder, Seen, WAIT_MAX};
pub use replies::*;
pub use subscriptions::*;

use crate::{
    Broker, Cursor, HistoryQuery, IdempotencyKey, NodeId, Page, Publication, Publish, Published, Reply, Retention,
    Room, SessionId, SubscriberId,
};
use bytes::Bytes;
use std::{sync::Arc, time::Duration};
use tokio::sync::oneshot;

/// The retention of the cases' rooms, unless a case has its own.
pub const KEEP: Retention = Retention { messages: 1000, ttl: Duration::from_secs(300) };

/// One subscriber of a broker, which stands for a node. Several nodes of a fixture may share a broker.
#[derive(Clone)]
pub struct TestNode {
    pub broker: Arc<dyn Broker>,
    pub me: SubscriberId,
    pub seen: Arc<Recorder>,
}

impl TestNode {
    pub async fn subscribe(&self, room: &Room) -> Cursor {
        self.broker.subscribe(self.me, room, Some(KEEP)).await.unwrap().expect("a room with history has a head")
    }

    pub async fn publish(&self, publish: Publish) -> Published {
        self.try_publish(publish).await.unwrap()
    }

    pub async fn try_publish(&self, publish: Publish) -> crate::PublishResult {
        let (tx, rx) = oneshot::channel();
        self.broker.publish(publish, Reply::Waiter(tx));
        tokio::time::timeout(WAIT_MAX, rx).await.expect("a result in time").expect("a result")
    }

    pub async fn say(&self, room: &Room, text: &str) -> Cursor {
        self.publish(message(room, text)).await.cursor.expect("a room with history has cursors")
    }

    pub async fn since(&self, room: &Room, since: Cursor, limit: usize) -> Page {
        self.broker
            .history(room, KEEP, HistoryQuery { since: Some(since), limit, purpose: crate::Purpose::Question })
            .await
            .unwrap()
    }

    pub async fn last(&self, room: &Room, limit: usize) -> Page {
        self.broker
            .history(room, KEEP, HistoryQuery { since: None, limit, purpose: crate::Purpose::Question })
            .await
            .unwrap()
    }

    /// The id of the node's process, read from a message that it publishes.
    pub async fn id(&self) -> NodeId {
        let room = room("id");
        self.broker.subscribe(self.me, &room, None).await.unwrap();
        self.publish(Publish { retention: None, ..message(&room, "who am I") }).await;
        self.seen.messages(&room, 1).await[0].id.node
    }
}

/// A room that no other case uses, even if fixtures share a backplane.
pub fn room(case: &str) -> Room {
    Room::parse(&format!("{case}:{:x}", crate::cursor::random_u64())).unwrap()
}

/// A message in a room with history.
pub fn message(room: &Room, text: &str) -> Publish {
    Publish {
        room: room.clone(),
        retention: Some(KEEP),
        author: Some(SessionId(*b"contract-org")),
        ts_ms: 1_763_760_000_123,
        payload: Bytes::copy_from_slice(text.as_bytes()),
        key: None,
    }
}

/// A message with an idempotency key.
pub fn keyed(room: &Room, text: &str, key: &str) -> Publish {
    Publish { key: IdempotencyKey::parse(key), ..message(room, text) }
}

pub fn offsets(publications: &[Publication]) -> Vec<u64> {
    publications.iter().map(|p| p.cursor.expect("a cursor").offset.0).collect()
}

pub fn texts(publications: &[Publication]) -> Vec<String> {
    publications.iter().map(|p| String::from_utf8_lossy(&p.payload).into_owned()).collect()
}

/// Makes one test of each case. `$fixture` is an async function that returns the nodes, and what must be kept alive for
/// them; the attribute is put on each test. `@one_by_one` runs all cases in one test instead, each with new nodes made
/// by `$nodes`: for backplanes that take long to start.
#[macro_export]
macro_rules! contract_tests {
    (#[$test:meta] $fixture:path) => {
        $crate::contract_tests!(@cases @each (#[$test] $fixture));
    };
    (@one_by_one $nodes:expr) => {
        $crate::contract_tests!(@cases @sequence ($nodes));
    };
    (@cases @$how:ident $with:tt) => {
        $crate::contract_tests!(@$how $with:
            every_node_sees_one_order, the_acknowledged_cursor_is_the_one_that_members_see,
            a_thread_s_publishes_keep_their_order, payloads_are_untouched,
            a_room_without_history_has_no_cursors, messages_reach_only_their_room,
            the_same_key_publishes_once, the_same_key_from_two_nodes_at_once_publishes_once,
            the_same_key_publishes_once_without_history,
            a_subscriber_has_everything_after_its_head, a_publish_right_after_the_join_is_heard,
            unsubscribing_ends_deliveries, subscribing_again_begins_deliveries_again,
            joining_and_leaving_quickly_never_loses_a_subscription,
            the_last_messages_are_read, messages_since_a_cursor_are_read, pages_follow_one_another,
            trimmed_messages_are_counted_in_the_gap,
            a_cursor_of_another_epoch_is_a_gap, a_cursor_beyond_the_head_is_a_gap, an_empty_room_has_a_stable_head,
            at_least_the_configured_number_of_messages_is_kept, each_message_is_kept_for_its_ttl,
            counts_and_members_are_listed, one_event_per_user, anonymous_sessions_are_users_of_their_own,
            entering_again_replaces_the_info, versions_merge_with_the_listing, unannounced_members_count, a_lease_is_renewed_by_any_node_and_ends_once,
            leaving_twice_changes_nothing, rooms_with_members_are_listed,
            control_messages_reach_all_nodes_or_one, every_publish_reports_its_result_as_asked,
            a_success_is_never_reported_as_a_failure,
        );
    };
    (@each (#[$test:meta] $fixture:path): $($case:ident,)*) => {
        $(
            #[$test]
            async fn $case() {
                let (nodes, _keep) = $fixture().await;
                $crate::contract::$case(&nodes).await;
            }
        )*
    };
    (@sequence ($nodes:expr): $($case:ident,)*) => {
        $({
            let nodes: Vec<$crate::contract::TestNode> = $nodes.await;
            $crate::contract::$case(&nodes).await;
        })*
    };
}
