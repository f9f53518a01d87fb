//! What clients leave behind: in the metrics what they did, by transport; in the node nothing.

use fanfare_tests::redis::Redis;
use fanfare_tests::transport::poll;
use fanfare_tests::wait::eventually;
use fanfare_tests::{Ask, Carrier, Client, Cluster, Tap, http, prometheus};
use serde_json::json;

use super::{metric, on_all, publish};
use crate::stage::one_node;

/// How a carrier is called in labels.
fn label(carrier: Carrier) -> &'static str {
    match carrier {
        Carrier::WebSocket => "ws",
        Carrier::Sse => "sse",
        Carrier::Stream => "stream",
        Carrier::LongPoll | Carrier::ShortPoll => "poll",
    }
}

#[tokio::test]
async fn metrics_say_which_transport_carried_what() {
    let cluster = one_node().await;
    let front = fanfare_tests::Front::direct(&cluster);
    let mut taps = on_all(&front, &Ask::of(&["a"])).await;
    for n in 0..3 {
        publish(cluster.address(0), "a", &json!(n)).await;
    }
    for tap in &mut taps {
        assert_eq!(tap.data(3).await, [json!(0), json!(1), json!(2)]);
    }
    for tap in taps.iter_mut().filter(|tap| !tap.carrier.polls()) {
        tap.ask(json!({"type": "publish", "room": "other", "data": 1})).await;
    }
    let text = http::get(cluster.nodes[0].admin, "/metrics").send().await.text;
    let scrape = prometheus::parse(&text).expect("a valid scrape");
    let value = |name: &str, label: &str| {
        let wanted = format!("{name}{{{label}}}");
        let found = scrape.series(name).find(|(series, _)| *series == wanted);
        found.unwrap_or_else(|| panic!("no {wanted}: {:?}", scrape.series(name).collect::<Vec<_>>())).1
    };
    for carrier in Carrier::ALL {
        let transport = label(carrier);
        let delivered = value("fanfare_messages_delivered_total", &format!("transport=\"{transport}\""));
        assert_eq!(delivered, if carrier.polls() { 6.0 } else { 3.0 }, "{transport}");
        if !carrier.polls() {
            assert_eq!(value("fanfare_sessions", &format!("protocol=\"native\",transport=\"{transport}\"")), 1.0);
            assert_eq!(value("fanfare_sessions_opened_total", &format!("transport=\"{transport}\"")), 1.0);
            assert_eq!(value("fanfare_messages_published_total", &format!("source=\"{transport}\"")), 1.0);
        }
    }
    assert_eq!(value("fanfare_messages_published_total", "source=\"http\""), 3.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_have_gone_leave_no_session_member_poll_or_subscription() {
    let mut cluster = Cluster::over_redis(1).start().await;
    let (address, admin) = (cluster.address(0), cluster.nodes[0].admin);
    let (mut open, mut waiting) = (Vec::new(), Vec::new());
    for n in 0..20 {
        for carrier in [Carrier::WebSocket, Carrier::Sse, Carrier::Stream] {
            let mut tap = Tap::join(address, carrier, &Ask::of(&[&format!("room:{n}")])).await;
            tap.ask(json!({"type": "join", "room": format!("later:{n}")})).await;
            open.push(tap);
        }
        let polled = format!("polled:{n}");
        let first = poll::once(address, &Ask::of(&[&polled])).await;
        let ask = Ask::of(&[&polled]).since(first.cursor()).with("wait=55");
        waiting.push(tokio::spawn(async move { Tap::open(address, Carrier::LongPoll, &ask).await.try_next().await }));
    }
    eventually("the polls wait", async || metric(admin, "fanfare_polls_waiting").await > 19.5).await;
    assert_eq!(followed(cluster.redis(), &["room:", "later:", "polled:"]).await, 60);
    drop(open);
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
    for name in ["fanfare_sessions", "fanfare_members", "fanfare_polls_waiting"] {
        eventually(&format!("{name} is 0"), async || metric(admin, name).await < 0.5).await;
    }
    eventually("no room is followed any more", async || followed(cluster.redis(), &["room:", "later:"]).await == 0)
        .await;
}

/// How many rooms with such names some node follows.
pub(super) async fn followed(redis: &Redis, names: &[&str]) -> usize {
    let channels = redis.values("PUBSUB CHANNELS *").await;
    channels.iter().filter(|channel| names.iter().any(|name| channel.contains(&format!(":c:{name}")))).count()
}

#[tokio::test]
async fn as_many_connections_as_an_address_may_have_and_no_more() {
    let cluster = Cluster::embedded().config("[limits]\nconnections_per_ip = 2\n").start().await;
    let address = cluster.address(0);
    let first = Tap::join(address, Carrier::Sse, &Ask::of(&["a"])).await;
    let start = poll::once(address, &Ask::of(&["a"])).await;
    let parked = tokio::spawn(poll::get(address, &Ask::of(&["a"]).since(start.cursor())).send());
    eventually("the poll waits", async || metric(cluster.nodes[0].admin, "fanfare_polls_waiting").await > 0.5).await;
    let mut events = fanfare_tests::transport::sse::Events::open(address, "/v1/rooms/a/sse", &[]).await.expect("200");
    let (blocks, fault) = events.to_end().await;
    assert!(blocks.len() == 1 && blocks[0].event.is_none() && fault.is_none(), "{blocks:?}");
    assert!(blocks[0].retry_ms.is_some_and(|ms| (2_000..=15_000).contains(&ms)), "{blocks:?}");
    for target in ["/v1/rooms/a/stream".to_owned(), format!("/v1/rooms/a/poll?since={}", start.cursor())] {
        let reply = http::get(address, &target).send().await;
        assert_eq!(reply.problem(429), "rate_limited", "{target}");
        assert!(!reply.header("retry-after").is_empty(), "{reply:?}");
    }
    publish(address, "a", &json!(1)).await;
    assert_eq!(poll::served(&parked.await.expect("a poll")).data(), [json!(1)]);
    Client::connect(address).await.close().await;
    drop(first);
    eventually("places are given back", async || Client::try_open(address, "/ws", &[]).await.is_ok()).await;
    eventually("both of them", async || {
        let both = [Client::try_open(address, "/ws", &[]).await, Client::try_open(address, "/ws", &[]).await];
        both.iter().all(Result::is_ok)
    })
    .await;
}
