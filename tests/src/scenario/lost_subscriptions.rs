//! R8: Redis drops the subscriber connections of one node again and again under load. The node reads the messages that
//! it missed from history, and no client notices.

use std::time::Duration;

use super::measure::{check_history, reconnects_and_gaps, settle_and_stop};
use super::outcome::{Outcome, Promise};
use super::settings::RunSettings;
use crate::cluster::Cluster;
use crate::crowd::{KEEP_ALL, members, rooms};
use crate::fault::Proxy;
use crate::load::Load;
use crate::redis::Redis;
use crate::rng::Rng;
use crate::scratch::Scratch;
use crate::target::Target;
use crate::wait::pause;

pub(super) async fn run(settings: RunSettings) -> Outcome {
    let (count, total, kills_min) = settings.pick((600, 30_000, 20.0), (30, 2_000, 2.0));
    let mut rng = Rng::new(settings.seed);
    let scratch = Scratch::new();
    let redis = Redis::start(scratch.path()).await;
    // The proxy causes no fault. It is there because it knows the addresses of the node's connections.
    let proxy = Proxy::before(redis.address()).await;
    let addresses = vec![redis.url(), format!("redis://{}", proxy.address), redis.url()];
    let cluster = Cluster::over_addresses(3, addresses).config(KEEP_ALL).start().await;
    let target = Target::direct(&cluster);
    let rooms = rooms(30);
    let members = members(&target, count, &rooms).await;
    let load = Load { target, publishers: 3, rooms, total, window: 8, pace: Duration::from_millis(3) };
    let running = load.start();
    let mut killed = 0;
    while running.acknowledged() < total * 9 / 10 {
        pause(rng.between(Duration::from_millis(100), Duration::from_millis(1_500))).await;
        for address in proxy.outgoing() {
            killed += usize::from(redis.command(&format!("CLIENT KILL TYPE pubsub ADDR {address}")).await == ":1");
        }
    }
    let published = running.finish().await;
    let mut reports = settle_and_stop(members, &published).await;
    let (reconnected, gaps) = reconnects_and_gaps(&reports);
    Outcome::new(Promise::NoLoss, check_history(&published, &mut reports))
        .at_least("connections killed", killed as f64, kills_min)
        .at_most("clients that had to reconnect", reconnected as f64, 0.0)
        .at_most("gaps told", gaps as f64, 0.0)
}
