//! The same sentences through a real nginx, with both of the repository's configurations, and what only nginx can
//! get wrong: stickiness, upgrades, headers, nodes that go away behind it.

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

async fn the_cluster_sentences_hold_behind(version: Version) {
    let (_cluster, nginx) = three_nodes_behind(version).await;
    let target = nginx.target();
    sentences::all_agree_on_one_order(&target).await;
    sentences::history_is_the_same_everywhere(&target).await;
    sentences::presence_is_the_same_everywhere(&target).await;
    sentences::kicks_reach_every_node(&target).await;
}

async fn joins_and_resumes_lose_nothing_behind(version: Version) {
    let (_cluster, nginx) = three_nodes_behind(version).await;
    let target = nginx.target();
    sentences::a_publish_right_after_joined_comes(&target).await;
    sentences::a_join_amid_publishes_misses_nothing_after_its_cursor(&target).await;
}

async fn resumes_lose_nothing_behind(version: Version) {
    let (_cluster, nginx) = three_nodes_behind(version).await;
    sentences::a_resume_on_another_node_loses_and_repeats_nothing(&nginx.target()).await;
}

/// Drains one node and kills another while members and publishers go through nginx.
async fn nodes_come_and_go_unnoticed_behind(version: Version) {
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

/// `?n=` with the route of `welcome` leads to the same node again; without it clients spread.
async fn a_route_leads_back_to_its_node_behind(version: Version) {
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

/// The HTTP API passes unchanged: encoded rooms, headers, refusals, origins.
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

/// With no node left, refusals still are problems that say when to come back.
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

macro_rules! behind {
    ($module:ident, $version:expr) => {
        mod $module {
            use fanfare_tests::nginx::Version;

            #[tokio::test]
            async fn the_cluster_sentences_hold() {
                super::the_cluster_sentences_hold_behind($version).await;
            }

            #[tokio::test]
            async fn joins_lose_nothing() {
                super::joins_and_resumes_lose_nothing_behind($version).await;
            }

            #[tokio::test]
            async fn resumes_lose_nothing() {
                super::resumes_lose_nothing_behind($version).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn nodes_come_and_go_unnoticed() {
                super::nodes_come_and_go_unnoticed_behind($version).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn three_hundred_members_lose_nothing_of_twenty_thousand_publishes() {
                let (_cluster, nginx) = super::three_nodes_behind($version).await;
                crate::sentences::nothing_is_lost_under_load(&nginx.target(), 300, 20_000).await;
            }

            #[tokio::test]
            async fn a_route_leads_back_to_its_node() {
                super::a_route_leads_back_to_its_node_behind($version).await;
            }

            #[tokio::test]
            async fn the_http_api_passes_unchanged() {
                super::the_http_api_passes_unchanged($version).await;
            }

            #[tokio::test]
            async fn without_nodes_clients_are_told_to_come_back() {
                super::without_nodes_clients_are_told_to_come_back($version).await;
            }
        }
    };
}

behind!(nginx_1_22, Version::Old);
behind!(nginx_new, Version::New);
