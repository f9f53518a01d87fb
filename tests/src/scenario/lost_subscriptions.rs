//! R8: Redis drops one node's subscriber connections again and again under load. The node reads what it missed from
//! history; no client notices.

use std::time::Duration;

use super::{Outcome, Promise, RunSettings, judge, noticed};
use crate::cluster::Cluster;
use crate::crowd::{KEEP_ALL, members, rooms};
use crate::fault::Proxy;
use crate::load::{Load, Timing, heads};
use crate::member::{settle_within, stop_all};
use crate::redis::Redis;
use crate::rng::Rng;
use crate::scratch::Scratch;
use crate::target::Target;
use crate::wait::{patient, pause};

pub(super) async fn run(to: RunSettings) -> Outcome {
    let (count, total, kills_min) = to.pick((600, 30_000, 20.0), (30, 2_000, 2.0));
    let mut rng = Rng::new(to.seed);
    let scratch = Scratch::new();
    let redis = Redis::start(scratch.path()).await;
    // Not for a fault of its own: it knows which connections are the node's.
    let proxy = Proxy::before(redis.address()).await;
    let addresses = vec![redis.url(), format!("redis://{}", proxy.address), redis.url()];
    let cluster = Cluster::over_addresses(3, addresses).config(KEEP_ALL).start().await;
    let target = Target::direct(&cluster);
    let rooms = rooms(30);
    let members = members(&target, count, &rooms, None).await;
    let load = Load { target, publishers: 3, rooms, total, window: 8, pace: Duration::from_millis(3) };
    let running = load.start(Timing::new(total));
    let mut killed = 0;
    while running.acknowledged() < total * 9 / 10 {
        pause(rng.between(Duration::from_millis(100), Duration::from_millis(1_500))).await;
        for address in proxy.outgoing() {
            killed += usize::from(redis.command(&format!("CLIENT KILL TYPE pubsub ADDR {address}")).await == ":1");
        }
    }
    let published = running.finish().await;
    settle_within(patient(Duration::from_secs(30)), &members, &heads(&published)).await;
    let mut reports = stop_all(members).await;
    let (reconnected, gaps) = noticed(&reports);
    Outcome::new(Promise::Clean, judge(&published, &mut reports))
        .at_least("connections killed", killed as f64, kills_min)
        .at_most("clients that had to reconnect", reconnected as f64, 0.0)
        .at_most("gaps told", gaps as f64, 0.0)
}
