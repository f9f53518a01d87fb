//! Short polls: 304 instead of a body when there is nothing new, and the time until the next poll.

use std::time::Instant;

use fanfare_tests::http::{Call, Reply};
use fanfare_tests::transport::poll;
use fanfare_tests::{Cluster, RoomRequest};
use serde_json::json;

use super::publish;
use crate::fixtures::one_node;

fn short(cluster: &Cluster, at: &str) -> Call {
    poll::get(cluster.address(0), &RoomRequest::of(&["a"]).since(at).with("wait=0"))
}

fn is_unmodified(reply: &Reply, etag: &str) {
    assert_eq!((reply.status, reply.text.as_str(), reply.header("etag")), (304, "", etag), "{reply:?}");
}

#[tokio::test]
async fn the_etag_of_a_short_poll_is_its_cursor_and_detects_news() {
    let cluster = one_node().await;
    let at = publish(cluster.address(0), "a", &json!(1)).await;
    let tag = format!("\"{at}\"");
    let reply = short(&cluster, &at).send().await;
    assert_eq!(poll::served(&reply).cursor(), at);
    assert_eq!((reply.header("etag"), reply.header("cache-control")), (tag.as_str(), "private, no-cache"));
    // Weak comparison (RFC 9110, section 13.1.2), also within a list.
    for tags in [tag.clone(), format!("W/{tag}"), format!("\"other\", W/\"x\" , {tag}")] {
        is_unmodified(&short(&cluster, &at).header("if-none-match", &tags).send().await, &tag);
    }
    for tags in ["\"other\"", &at, "\"\""] {
        let reply = short(&cluster, &at).header("if-none-match", tags).send().await;
        assert_eq!(reply.status, 200, "{tags}: {reply:?}");
    }
    let next = publish(cluster.address(0), "a", &json!(2)).await;
    let reply = short(&cluster, &at).header("if-none-match", &tag).send().await;
    assert_eq!(reply.header("etag"), format!("\"{next}\""));
    assert_eq!(poll::served(&reply).data(), [json!(2)]);
}

#[tokio::test]
async fn the_etag_of_several_rooms_has_all_their_cursors() {
    let cluster = one_node().await;
    let at = poll::once(cluster.address(0), &RoomRequest::of(&["a", "b"])).await.cursor().to_owned();
    let request = RoomRequest::of(&["a", "b"]).since(at.as_str()).with("wait=0");
    let tag = format!("\"{at}\"");
    is_unmodified(&poll::get(cluster.address(0), &request).header("if-none-match", &tag).send().await, &tag);
    publish(cluster.address(0), "b", &json!(1)).await;
    let reply = poll::get(cluster.address(0), &request).header("if-none-match", &tag).send().await;
    assert_eq!(poll::served(&reply).data(), [json!(1)]);
}

#[tokio::test]
async fn a_long_poll_is_never_answered_with_not_modified() {
    let cluster = one_node().await;
    let at = publish(cluster.address(0), "a", &json!(1)).await;
    let tag = format!("\"{at}\"");
    for request in [RoomRequest::of(&["a"]).since(at.as_str()).with("wait=1"), RoomRequest::of(&["a"])] {
        let reply = poll::get(cluster.address(0), &request).header("if-none-match", &tag).send().await;
        assert_eq!((reply.header("etag"), reply.header("cache-control")), ("", "no-store"), "{reply:?}");
        assert_eq!(poll::served(&reply).cursor(), at);
    }
    let body = poll::body(&[("a", Some(&at))], 0);
    let reply = poll::post(cluster.address(0), &body).header("if-none-match", &tag).send().await;
    assert_eq!(poll::served(&reply).messages().count(), 0);
}

#[tokio::test]
async fn pollers_of_a_busy_room_are_asked_to_poll_every_second() {
    let cluster = one_node().await;
    let mut paces = Vec::new();
    for n in 0..20 {
        let begun = Instant::now();
        let at = publish(cluster.address(0), "a", &json!(n)).await;
        let pace = poll::served(&short(&cluster, &at).send().await).next_ms;
        // Half of the silence but at least a second, and up to a fifth more or less. Only a very busy machine makes the
        // silence longer than two seconds.
        let longest = (begun.elapsed().as_millis() as u64 / 2).max(1_000) * 6 / 5;
        assert!((800..=longest).contains(&pace), "{pace} of {longest} ms");
        paces.push(pace);
    }
    paces.sort_unstable();
    paces.dedup();
    assert!(paces.len() >= 5, "the times differ: {paces:?}");
    let quiet = poll::once(cluster.address(0), &RoomRequest::of(&["quiet"])).await.next_ms;
    assert!((800..=36_000).contains(&quiet), "{quiet}");
}
