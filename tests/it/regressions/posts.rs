//! Commands that are posted while their rooms are busy.

use fanfare_tests::transport::Carrier;
use fanfare_tests::{Ask, Tap};
use serde_json::json;

use crate::sentences::KEEP_ALL;
use crate::stage::{one_node_with, publish_numbers, split};

/// Enough for publishes to fall into the same pass of the shard as joins, many times over.
const JOINS: usize = 300;

/// A posted join was done between a message's delivery and the hand-out of its room's batch: the message came twice, or,
/// to a member that joined again, never.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_posted_join_in_one_pass_with_a_message_repeated_or_lost_it() {
    let cluster = one_node_with(KEEP_ALL).await;
    for join in [json!({"type": "join", "room": "r"}), json!({"type": "join", "room": "r", "presence": true})] {
        let mut tap = Tap::join(cluster.address(0), Carrier::Stream, &Ask::of(&["r"])).await;
        let mut at = split(&json!(tap.cursor())).1;
        for n in 0..JOINS {
            let (last, joined) = tokio::join!(publish_numbers(&cluster, "r", n, 1), tap.command(tap.address, &join));
            assert_eq!(joined.expect(200)["type"], "joined");
            let last = split(&json!(last)).1;
            while at < last {
                let frame = tap.next().await;
                let (kind, place) = (frame.kind().to_owned(), split(&frame.json["cursor"]).1);
                match kind.as_str() {
                    "joined" => assert_eq!(place, at, "{}: a member goes on from where it stood", frame.text),
                    "message" => assert_eq!(place, at + 1, "{}: once and without a hole", frame.text),
                    _ => assert!(kind.starts_with("member_"), "{}", frame.text),
                }
                at = place.max(at);
            }
        }
    }
}
