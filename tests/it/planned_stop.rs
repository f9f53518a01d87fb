//! A node that is stopped on purpose behind a proxy: back ends that publish through the proxy notice nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fanfare_tests::nginx::{Nginx, Version};
use fanfare_tests::wait::{eventually, patience, patient};
use fanfare_tests::{Client, Cluster, http};
use futures_util::future::join_all;
use serde_json::json;

use crate::fixtures::counts_up;
use crate::sentences::KEEP_ALL;

/// Publishes without a key, so that nginx may not repeat one that it has sent, and without a retry.
async fn a_planned_stop_costs_no_publish(version: Version) {
    let mut cluster = Cluster::over_redis(3).config(KEEP_ALL).drain(20).start().await;
    let nginx = Nginx::before(&cluster, version).await;
    let address = nginx.address;
    let _clients = join_all((0..6).map(|_| Client::connect(address))).await;
    let (published, is_over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let publishers: Vec<_> = (0..4)
        .map(|publisher| {
            let (published, is_over) = (Arc::clone(&published), Arc::clone(&is_over));
            tokio::spawn(async move {
                while !is_over.load(Ordering::Relaxed) {
                    let reply = http::post(address, "/v1/rooms/a", &json!(publisher)).send().await;
                    assert_eq!(reply.status, 200, "{reply:?}");
                    published.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    counts_up(&published, 100).await;
    cluster.nodes[0].terminate();
    let status = cluster.nodes[0].exit(patient(Duration::from_secs(21))).await;
    assert_eq!(status.code(), Some(0), "{}", cluster.nodes[0].log());
    counts_up(&published, 100).await;
    is_over.store(true, Ordering::Relaxed);
    for publisher in publishers {
        publisher.await.expect("no publish of this publisher failed");
    }
    let count = published.load(Ordering::Relaxed);
    let reply = http::get(address, "/v1/rooms/a").send().await.expect(200);
    let cursor = reply["cursor"].as_str().expect("a room with history has a cursor");
    assert!(cursor.ends_with(&format!(".{count}")), "{count} publishes, and the room is at {cursor}");
}

/// nginx looks addresses up every 2 s, so a node that a proxy uses goes on listening for 3 s.
#[tokio::test]
async fn a_node_behind_a_proxy_listens_until_the_proxy_has_noticed() {
    let mut cluster = Cluster::embedded().drain(20).start().await;
    let (address, admin) = (cluster.address(0), cluster.nodes[0].admin);
    http::get(address, "/v1/rooms/a").header("x-forwarded-for", "192.0.2.1").send().await.expect(200);
    let began = Instant::now();
    cluster.nodes[0].terminate();
    eventually("the node drains", async || http::get(admin, "/readyz").send().await.status == 503).await;
    eventually("the node listens no more", async || {
        match http::post(address, "/v1/rooms/a", &json!(1)).try_send().await {
            Ok(reply) => {
                assert_eq!((reply.status, reply.header("connection")), (200, "close"), "{reply:?}");
                false
            }
            Err(_) => true,
        }
    })
    .await;
    assert!(began.elapsed() >= Duration::from_secs(3), "{:?}", began.elapsed());
    let status = cluster.nodes[0].exit(patience()).await;
    assert_eq!(status.code(), Some(0), "{}", cluster.nodes[0].log());
}

for_each! {
    nginx_1_22(Version::Old), nginx_new(Version::New): a_planned_stop_costs_no_publish,
}
