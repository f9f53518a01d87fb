//! The same message on every transport: its bytes and its fields, live and on a resume.

use std::collections::BTreeSet;

use fanfare_tests::{Client, Cluster, RoomRequest, Transport, TransportClient, http};
use serde_json::json;

use super::{Entry, on_all, texts};
use crate::fixtures::one_node_with;

/// Values of `data` that a careless encoder changes.
pub(super) const DIFFICULT: [&str; 12] = [
    "12345678901234567890123",
    "-0.0e+10",
    "1.0",
    r#"{"b":1,"a":[1.50,2],"a":null}"#,
    r#""line\nfeed\r\nand\u000areturn\r""#,
    "\"\u{2028}\u{2029}\u{85}\u{b7}\"",
    r#""nul \u0000 and \ud83d\ude00""#,
    "\"😀 é ﷺ 中\"",
    r#""data: x\n\nid: 7\n\nevent: close\n\n""#,
    r#""\u00e9\u00E9\/\/ \" \\ ""#,
    "null",
    "[[],{},\"\"]",
];

/// A session and a back end publish, with and without an event name. Live members and members that resume get the same text.
pub(super) async fn every_transport_delivers_the_same_bytes(entry: Entry) {
    let setup = entry.start(Cluster::over_redis(2)).await;
    let request = RoomRequest::of(&["a"]);
    let mut live = on_all(&setup.target, &request).await;
    let start = live[0].cursor();
    let mut publisher = Client::connect(setup.target.address(0)).await;
    for (number, data) in DIFFICULT.into_iter().enumerate() {
        let event = if number % 2 == 0 { "" } else { r#""event":"a\nb","# };
        publisher.send_text(&format!(r#"{{"type":"publish","id":{number},"room":"a",{event}"data":{data}}}"#)).await;
        publisher.take("published").await;
        let post = http::call("POST", setup.target.address(1), "/v1/rooms/a?event=said");
        post.header("content-type", "application/json").body(data).send().await.expect(200);
    }
    let count = 2 * DIFFICULT.len();
    let expected = texts(&mut live[0], count).await;
    let (mut fields, mut seen) = (BTreeSet::new(), 0);
    for text in &expected {
        assert!(text.starts_with(r#"{"type":"message","room":"a","cursor":""#), "{text}");
        let message: serde_json::Value = serde_json::from_str(text).expect("a message is JSON");
        fields.extend(message.as_object().expect("an object").keys().cloned());
        seen += usize::from(text.contains(&format!(r#""data":{}"#, DIFFICULT[seen / 2])));
    }
    assert_eq!(seen, count, "{expected:?}");
    assert_eq!(fields.into_iter().collect::<Vec<_>>(), ["cursor", "data", "event", "from", "room", "ts", "type"]);
    for client in &mut live[1..] {
        let name = client.transport.name();
        assert_eq!(texts(client, count).await, expected, "live over {name}");
        let last: serde_json::Value = serde_json::from_str(&expected[count - 1]).expect("a message is JSON");
        assert_eq!(json!(client.cursor()), last["cursor"], "{name}");
    }
    for (index, transport) in Transport::ALL.into_iter().enumerate() {
        let mut back =
            TransportClient::open(setup.target.address(index), transport, &request.clone().since(start.as_str())).await;
        let joined = back.take("joined").await.json;
        assert_eq!((&joined["resumed"], &joined["cursor"]), (&json!(true), &json!(start)), "{}", transport.name());
        assert_eq!(texts(&mut back, count).await, expected, "missed, over {}", transport.name());
    }
}

#[tokio::test]
async fn the_last_n_come_first_on_every_transport() {
    let cluster = one_node_with("").await;
    for n in 1..=5 {
        super::publish(cluster.address(0), "a", &json!(n)).await;
    }
    for transport in Transport::ALL {
        let mut client =
            TransportClient::open(cluster.address(0), transport, &RoomRequest::of(&["a"]).with("last=2")).await;
        let joined = client.take("joined").await.json;
        assert_eq!(crate::fixtures::split(&joined["cursor"]).1, 3, "{}: {joined}", transport.name());
        assert_eq!(client.data(2).await, [json!(4), json!(5)], "{}", transport.name());
    }
    let rule = "[[rooms]]\nmatch = \"typing:*\"\nhistory = \"off\"\n";
    let cluster = one_node_with(rule).await;
    for transport in [Transport::WebSocket, Transport::Sse, Transport::Stream] {
        let mut client = TransportClient::join(cluster.address(0), transport, &RoomRequest::of(&["typing:1"])).await;
        super::publish(cluster.address(0), "typing:1", &json!("x")).await;
        let message = client.message().await;
        assert!(message["data"] == "x" && message.get("cursor").is_none(), "{}: {message}", transport.name());
        assert_eq!(client.cursor(), "-", "{}", transport.name());
    }
}
