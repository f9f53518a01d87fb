//! Nodes that go away and come back behind nginx.

use fanfare_tests::nginx::{Nginx, Version};
use fanfare_tests::{Client, Cluster};

/// nginx forgives a node that failed `max_fails` times when a request to it ends well, and a WebSocket ends when its client
/// goes: until then it let one request per `fail_timeout` try. With nothing but WebSockets, a node that was restarted got
/// one client every 3 s, and after a rolling restart almost nobody found a way in.
#[tokio::test]
async fn after_a_restart_nginx_let_in_one_websocket_per_three_seconds() {
    let mut cluster = Cluster::over_redis(2).start().await;
    let nginx = Nginx::before(&cluster, Version::New).await;
    let mut open = Vec::new();
    for index in 0..2 {
        cluster.nodes[index].kill();
        // The dead one has the fewest connections: it is tried first, until it counts as failed.
        for _ in 0..8 {
            open.extend(Client::try_open(nginx.address, "/ws", &[]).await.ok());
        }
        cluster.nodes[index].restart().await;
    }
    // With one trial per node and 3 s most of these would be turned away.
    for number in 0..12 {
        let client = Client::try_open(nginx.address, "/ws", &[]).await;
        open.push(client.unwrap_or_else(|why| panic!("client {number} came to nodes that serve: {why:?}")));
    }
}
