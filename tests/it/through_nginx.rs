//! Members and publishers reach a cluster through a real nginx, with both of the repository's configurations. The
//! sentences of `sentences` hold here too; the other tests are about what only nginx can get wrong: stickiness,
//! upgrades, headers, nodes that end behind it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fanfare_tests::load::{Load, heads};
use fanfare_tests::member::{settle, stop_all};
use fanfare_tests::nginx::{Nginx, Version};
use fanfare_tests::wait::{eventually, patience};
use fanfare_tests::{Client, Cluster, http};
use serde_json::json;

use crate::sentences::{self, KEEP_ALL, judge, members, rooms};

async fn three_nodes_behind(version: Version) -> (Cluster, Nginx) {
    let cluster = Cluster::over_redis(3).config(KEEP_ALL).drain(4).start().await;
    let nginx = Nginx::before(&cluster, version).await;
    (cluster, nginx)
}

async fn the_cluster_sentences_hold(version: Version) {
    let (_cluster, nginx) = three_nodes_behind(version).await;
    let target = nginx.target();
    sentences::all_agree_on_one_order(&target).await;
    sentences::history_is_the_same_everywhere(&target).await;
    sentences::presence_is_the_same_everywhere(&target).await;
    sentences::kicks_reach_every_node(&target).await;
}

async fn joins_lose_nothing(version: Version) {
    let (_cluster, nginx) = three_nodes_behind(version).await;
    let target = nginx.target();
    sentences::a_publish_right_after_joined_comes(&target).await;
    sentences::a_join_amid_publishes_misses_nothing_after_its_cursor(&target).await;
}

async fn resumes_lose_nothing(version: Version) {
    let (_cluster, nginx) = three_nodes_behind(version).await;
    sentences::a_resume_on_another_node_loses_and_repeats_nothing(&nginx.target()).await;
}

/// One node drains and another is killed while members and publishers go through nginx.
async fn nodes_come_and_go_unnoticed(version: Version) {
    let (mut cluster, nginx) = three_nodes_behind(version).await;
    let target = nginx.target();
    let rooms = rooms(6);
    let members = members(&target, 36, &rooms).await;
    let pace = Duration::from_millis(4);
    let load = Load { target: target.clone(), publishers: 3, rooms, total: 5_000, window: 4, pace };
    let running = load.start();
    running.reaches(500).await;
    cluster.nodes[0].terminate();
    let status = cluster.nodes[0].exit(patience()).await;
    assert_eq!(status.code(), Some(0), "{}", cluster.nodes[0].log());
    cluster.nodes[1].kill();
    let published = running.finish().await;
    settle(&members, &heads(&published)).await;
    let reports = stop_all(members).await;
    let verdict = judge(&target, &published, &reports);
    assert!(verdict.has_no_loss() && verdict.published == 5_000, "{verdict}");
    assert!(reports.iter().all(|report| report.nodes.last().is_some_and(|node| node == "c")));
}

/// `?n=` with the route from `welcome` leads to the same node again. Clients without it are spread over the nodes.
async fn a_route_leads_back_to_its_node(version: Version) {
    let (_cluster, nginx) = three_nodes_behind(version).await;
    let mut routes = BTreeMap::new();
    let mut open = Vec::new();
    for _ in 0..9 {
        let client = Client::connect(nginx.address).await;
        routes.insert(client.node(), client.welcome["route"].as_str().expect("welcome has a route").to_owned());
        open.push(client);
    }
    assert_eq!(routes.keys().collect::<BTreeSet<_>>().len(), 3, "clients spread over all nodes");
    for (node, route) in &routes {
        for _ in 0..5 {
            let back = Client::open(nginx.address, &format!("/ws?n={route}")).await;
            assert_eq!(back.node(), *node, "{route}");
        }
        let by_path = Client::open(nginx.address, &format!("/v1/rooms/a/ws?n={route}")).await;
        assert_eq!(by_path.node(), *node, "{route}");
    }
    let unknown = Client::open(nginx.address, "/ws?n=00000000000000000000000000000000").await;
    assert!(routes.contains_key(&unknown.node()), "an unknown route is balanced as usual");
}

/// nginx changes nothing of the HTTP API: encoded rooms, headers, refusals, origins.
async fn the_http_api_passes_unchanged(version: Version) {
    let (_cluster, nginx) = three_nodes_behind(version).await;
    let mut client = Client::open(nginx.address, "/ws?room=a%2Fb%2Cc").await;
    client.take("joined").await;
    let publish =
        || http::post(nginx.address, "/v1/rooms/a%2Fb%2Cc?event=e", &json!(1.0)).header("idempotency-key", "k");
    let (first, second) = (publish().send().await.expect(200), publish().send().await.expect(200));
    assert_eq!(first, second, "the key reaches any node");
    let message = client.message().await;
    assert_eq!((&message["event"], &message["room"]), (&json!("e"), &json!("a/b,c")));
    assert_eq!(http::get(nginx.address, "/v1/nothing").send().await.problem(404), "not_found");
    let large = json!("x".repeat(70_000));
    assert_eq!(http::post(nginx.address, "/v1/rooms/a", &large).send().await.problem(413), "message_too_large");
    let same = format!("http://{}", nginx.address);
    Client::try_open(nginx.address, "/ws", &[("origin", &same)]).await.expect("nginx passes the Host on");
    let foreign = Client::try_open(nginx.address, "/ws", &[("origin", "https://evil.example")]).await;
    assert!(foreign.as_ref().is_err_and(|refused| refused.status() == Some(403)), "{foreign:?}");
    eventually("nginx has logged", async || nginx.access_log().contains("/v1/rooms")).await;
    assert!(!nginx.access_log().contains("event=e"), "no query strings in the log");
}

/// While all nodes are away, nginx itself replies with problems that say when to come back.
async fn without_nodes_clients_are_told_to_come_back(version: Version) {
    let (mut cluster, nginx) = three_nodes_behind(version).await;
    for node in &mut cluster.nodes {
        node.kill();
    }
    let reply = http::get(nginx.address, "/v1/rooms/a").send().await;
    assert_eq!(reply.status, 503, "{}", reply.text);
    assert!(reply.json()["retryable"] == true && !reply.header("retry-after").is_empty(), "{reply:?}");
    let stream = http::get(nginx.address, "/v1/rooms/a/sse").header("accept", "text/event-stream").send().await;
    assert_eq!((stream.status, stream.header("content-type")), (200, "text/event-stream"), "{stream:?}");
    assert!(stream.text.starts_with("retry: "), "{stream:?}");
}

/// The most members and messages of a test through nginx.
async fn three_hundred_members_lose_nothing_of_twenty_thousand_publishes(version: Version) {
    let (_cluster, nginx) = three_nodes_behind(version).await;
    sentences::nothing_is_lost_under_load(&nginx.target(), 300, 20_000).await;
}

/// The gateway compresses its files; nginx passes them on, and compresses nothing itself.
async fn only_the_client_and_the_pages_are_compressed(version: Version) {
    let (_cluster, nginx) = three_nodes_behind(version).await;
    let get = |path: &str| http::get(nginx.address, path).header("accept-encoding", "gzip");
    let message = json!("x".repeat(5_000));
    http::post(nginx.address, "/v1/rooms/a", &message).send().await.expect(200);
    for (path, encoding) in [
        ("/client.js", "gzip"),
        ("/demo/chat.html", "gzip"),
        ("/v1/rooms/a/history", ""),
        ("/v1/rooms/a/poll?last=1", ""),
    ] {
        let reply = get(path).send().await;
        assert_eq!((reply.status, reply.header("content-encoding")), (200, encoding), "{path}: {:?}", reply.headers);
    }
}

for_each! {
    nginx_1_22(Version::Old), nginx_new(Version::New):
    the_cluster_sentences_hold,
    joins_lose_nothing,
    resumes_lose_nothing,
    nodes_come_and_go_unnoticed,
    a_route_leads_back_to_its_node,
    the_http_api_passes_unchanged,
    without_nodes_clients_are_told_to_come_back,
    three_hundred_members_lose_nothing_of_twenty_thousand_publishes,
    only_the_client_and_the_pages_are_compressed,
}
