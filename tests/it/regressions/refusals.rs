//! Refusals that are not the fault of the client.

use fanfare_tests::{Client, Cluster};
use serde_json::json;

/// While Redis was away each refused publish counted as an error of the client. A publisher that retried, as `retryable` asks
/// it to, was closed with 4429, after which clients do not reconnect.
#[tokio::test]
async fn refusals_while_redis_was_away_counted_as_errors_of_the_client() {
    let mut cluster = Cluster::over_redis(1).start().await;
    let mut publisher = Client::connect(cluster.address(0)).await;
    cluster.redis().kill();
    // More than 20 errors in 10 s close a session.
    for n in 0..30 {
        let reply = publisher.ask(json!({"type": "publish", "room": "a", "data": n})).await;
        assert_eq!((&reply["code"], &reply["retryable"]), (&json!("backplane_unavailable"), &json!(true)), "{reply}");
    }
}
