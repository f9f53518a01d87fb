//! Defects that were found and fixed, each as a test that is named by its cause and fails on what was there before.
//! New ones go beside the ones they resemble; nothing here describes the protocol as a whole, `protocol` does.

mod joins;
mod polls;
mod posts;
mod refusals;
mod requests;
mod resumes;
mod rolling;

use fanfare_tests::redis::Redis;
use fanfare_tests::{Node, http, prometheus};

/// A metric of a node, summed over its labels.
async fn metric(node: &Node, name: &str) -> f64 {
    let text = http::get(node.admin, "/metrics").send().await.text;
    prometheus::parse(&text).expect("a valid scrape").sum(name)
}

/// What Redis says of itself under this name; 0 where it says nothing yet.
async fn info(redis: &Redis, name: &str) -> u64 {
    let values = redis.values("INFO all").await;
    let text = values.first().expect("Redis says something of itself");
    let value = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("0");
    let digits = value.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    digits.parse().unwrap_or_else(|_| panic!("no number: {name}{value}"))
}
