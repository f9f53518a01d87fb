//! Nodes behind nginx that are killed and restarted.

use fanfare_tests::nginx::{Nginx, Version};
use fanfare_tests::{Client, Cluster};

/// After `max_fails` failures nginx sends a node one request per `fail_timeout` (3 s) until one of them succeeds. A WebSocket
/// succeeds only when it ends, so a restarted node with nothing but WebSockets got one client every 3 s, and after a rolling
/// restart hardly any client could connect.
#[tokio::test]
async fn after_a_restart_nginx_let_in_one_websocket_per_three_seconds() {
    let mut cluster = Cluster::over_redis(2).start().await;
    let nginx = Nginx::before(&cluster, Version::New).await;
    let mut open = Vec::new();
    for index in 0..2 {
        cluster.nodes[index].kill();
        // nginx tries the dead node first, since it has the fewest connections, until the node counts as failed.
        for _ in 0..8 {
            open.extend(Client::try_open(nginx.address, "/ws", &[]).await.ok());
        }
        cluster.nodes[index].restart().await;
    }
    // With one attempt per node in 3 s most of these would be refused.
    for number in 0..12 {
        let client = Client::try_open(nginx.address, "/ws", &[]).await;
        open.push(client.unwrap_or_else(|why| panic!("client {number}, while both nodes serve: {why:?}")));
    }
}
