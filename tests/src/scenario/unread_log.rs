//! R37: nobody reads the log of the nodes any more: first its reader stops, then it goes away. Under load and with lost
//! connections to Redis no client notices, and the lines that are lost are counted.

use std::io::{PipeReader, pipe};
use std::time::Duration;

use super::measure::{check_history, reconnects_and_gaps, settle_and_stop};
use super::outcome::{Outcome, Promise};
use super::settings::RunSettings;
use crate::cluster::{Node, serve};
use crate::crowd::{KEEP_ALL, members, rooms};
use crate::load::Load;
use crate::redis::Redis;
use crate::scratch::Scratch;
use crate::target::Target;
use crate::wait::pause;
use crate::{http, prometheus};

pub(super) async fn run(settings: RunSettings) -> Outcome {
    let (count, rounds) = settings.pick((300, 10), (30, 2));
    let scratch = Scratch::new();
    let redis = Redis::start(scratch.path()).await;
    let config = scratch.file("fanfare.toml", KEEP_ALL);
    let (mut nodes, mut readers) = (Vec::<Node>::new(), Vec::<PipeReader>::new());
    for name in ["a", "b"] {
        let (reader, writer) = pipe().expect("a pipe");
        let launch = serve(&scratch, name).args(["--log-level", "debug", "--drain", "2", "--redis"]).arg(redis.url());
        let process = launch.arg("--config").arg(&config).start_with_stderr(scratch.path(), writer);
        nodes.push(Node::ready(name.to_owned(), process, &scratch).await);
        readers.push(reader);
    }
    let target = Target::of("direct", nodes.iter().map(|node| node.listen));
    let rooms = rooms(30);
    let members = members(&target, count, &rooms).await;
    let load = Load { target, publishers: 3, rooms, total: 100_000, window: 8, pace: Duration::from_millis(10) };
    let running = load.start();
    running.reaches(100).await;
    for node in &nodes {
        node.fill_log().await;
    }
    lose_connections(&redis, rounds).await;
    drop(readers);
    lose_connections(&redis, rounds).await;
    let so_far = running.acknowledged();
    running.reaches(so_far + 100).await;
    running.wind_down();
    let published = running.finish().await;
    let mut reports = settle_and_stop(members, &published).await;
    let (reconnected, gaps) = reconnects_and_gaps(&reports);
    let mut dropped = f64::MAX;
    for node in &nodes {
        let text = http::get(node.admin, "/metrics").send().await.text;
        let scrape = prometheus::parse(&text).expect("a valid scrape");
        dropped = dropped.min(scrape.sum("fanfare_log_lines_dropped_total"));
    }
    Outcome::new(Promise::NoLoss, check_history(&published, &mut reports))
        .at_least("lines dropped, and counted, by each node", dropped, 1.0)
        .at_most("clients that had to reconnect", reconnected as f64, 0.0)
        .at_most("gaps told", gaps as f64, 0.0)
}

async fn lose_connections(redis: &Redis, rounds: u32) {
    for _ in 0..rounds {
        redis.values("CLIENT KILL TYPE pubsub").await;
        redis.values("CLIENT KILL TYPE normal").await;
        pause(Duration::from_millis(500)).await;
    }
}
