//! Defects that were found and fixed. Each test is named after a defect, in the past tense, and fails on the code that had it.
//! A new test goes beside those that it resembles; the protocol as a whole is tested in `protocol`.

mod bursts;
mod foreign_clients;
mod joins;
mod polls;
mod posts;
mod presence;
mod refusals;
mod requests;
mod resumes;
mod rolling;
mod threads;

use fanfare_tests::redis::Redis;

/// The number that Redis reports in INFO after `name`; 0 where it has none yet.
async fn info(redis: &Redis, name: &str) -> u64 {
    let values = redis.values("INFO all").await;
    let text = values.first().expect("Redis says something of itself");
    let value = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("0");
    let digits = value.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    digits.parse().unwrap_or_else(|_| panic!("no number: {name}{value}"))
}
