//! Short polls: what a client that comes again and again is spared, and when it is to come.

use fanfare_tests::http::{Call, Reply};
use fanfare_tests::transport::poll;
use fanfare_tests::{Cluster, RoomRequest};
use serde_json::json;

use super::publish;
use crate::stage::one_node;

fn short(cluster: &Cluster, at: &str) -> Call {
    poll::get(cluster.address(0), &RoomRequest::of(&["a"]).since(at).with("wait=0"))
}

fn is_unmodified(reply: &Reply, etag: &str) {
    assert_eq!((reply.status, reply.text.as_str(), reply.header("etag")), (304, "", etag), "{reply:?}");
}

#[tokio::test]
async fn the_tag_of_a_short_poll_is_its_place_and_says_whether_anything_is_new() {
    let cluster = one_node().await;
    let at = publish(cluster.address(0), "a", &json!(1)).await;
    let tag = format!("\"{at}\"");
    let reply = short(&cluster, &at).send().await;
    assert_eq!(poll::served(&reply).cursor(), at);
    assert_eq!((reply.header("etag"), reply.header("cache-control")), (tag.as_str(), "private, no-cache"));
    // Weak comparison (RFC 9110, section 13.1.2), in a list too.
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
async fn the_tag_of_several_rooms_is_all_their_places() {
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
async fn a_poll_that_waits_is_never_unmodified() {
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
async fn a_busy_room_is_to_be_asked_every_second() {
    let cluster = one_node().await;
    let mut paces = Vec::new();
    for n in 0..20 {
        let at = publish(cluster.address(0), "a", &json!(n)).await;
        paces.push(poll::served(&short(&cluster, &at).send().await).next_ms);
    }
    assert!(paces.iter().all(|pace| (800..=1_250).contains(pace)), "a second and a fifth either way: {paces:?}");
    paces.sort_unstable();
    paces.dedup();
    assert!(paces.len() >= 5, "not all in one step: {paces:?}");
    let quiet = poll::once(cluster.address(0), &RoomRequest::of(&["quiet"])).await.next_ms;
    assert!((800..=36_000).contains(&quiet), "{quiet}");
}
