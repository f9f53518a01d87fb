//! `fanfare bench`: loads a gateway and says what it did and what that cost. This file is the order of events: members join
//! (half of them, then the rest, so that memory per connection is a slope), publishers come, nothing happens for a while if
//! that is wished, messages are published, the last ones arrive, and the report is printed.
//!
//! Everything runs on one thread, one task for a connection, and nothing is allocated for a delivery: the tool is to cost
//! less than what it measures. Latency ends when this process has read the message; where one message goes to thousands of
//! members, reading them all is part of it, so a small room is measured by a process of its own.

mod board;
mod frame;
mod histogram;
mod link;
mod member;
mod options;
mod process;
mod progress;
mod publisher;
mod report;
mod sequence;
mod stage;
mod stamp;
mod tally;

pub(crate) use options::{Bench, Format, Pace};

use super::{Failure, finish, print};
use link::Door;
use process::Processes;
use report::{Costs, Report, Span};
use stage::Stage;
use std::{
    cell::Cell,
    ops::Range,
    process::ExitCode,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    sync::{Notify, Semaphore},
    task::{LocalSet, spawn_local},
};

/// Handshakes and joins on their way at a time: as many as a listener's backlog takes, with room for others.
const JOINS_AT_ONCE: usize = 256;
/// A handshake or join that takes longer is a finding.
const JOIN_PATIENCE: Duration = Duration::from_secs(20);
/// The grain of waiting between the phases; no measured time ends with it.
const GLANCE: Duration = Duration::from_millis(5);
/// How long the members' memory is left to settle before it is read.
const SETTLE: Duration = Duration::from_millis(500);
/// After the last publish: what has not arrived when nothing came for so long is missing.
const GRACE: Duration = Duration::from_secs(5);
/// A gateway that refuses so many publishes is not being measured any more.
const REFUSED_MAX: u64 = 100_000;

/// Loads a gateway. The exit code is 1 when anything was lost, repeated, out of order, refused or disconnected.
pub(crate) async fn bench(order: Bench) -> ExitCode {
    finish("bench", LocalSet::new().run_until(run(order)).await)
}

async fn run(order: Bench) -> Result<(), Failure> {
    let server = Processes::new(order.pids.clone())?;
    let mut doors = Vec::new();
    for url in &order.urls {
        doors.push(Rc::new(Door::find(url, order.token.as_ref()).await?));
    }
    let publish_door = match &order.publish_url {
        Some(url) => Rc::new(Door::find(url, order.token.as_ref()).await?),
        None => Rc::clone(doors.first().ok_or_else(|| Failure::refused("--url: no address"))?),
    };
    let stage = Rc::new(Stage::new(order));
    progress::start(&stage);

    let mut costs = Costs::default();
    let half = stage.order.members / 2;
    for part in [0..half, half..stage.order.members] {
        let before = Span::begin(&server);
        admit(&stage, &doors, part).await?;
        costs.connect.add(&before.end(&server));
        if !server.is_empty() {
            tokio::time::sleep(SETTLE).await;
        }
        costs.rss_kib.push(server.rss_kib());
    }
    for index in 0..stage.order.publishers {
        let from = from(&stage.order, index);
        spawn_local(publisher::publish(Rc::clone(&stage), index, Rc::clone(&publish_door), from));
    }
    let idle = Span::begin(&server);
    pause(&stage, Duration::from_secs_f64(stage.order.idle_seconds)).await?;
    costs.idle = idle.end(&server);

    load(&stage, &server, &mut costs).await?;
    let report = Report::new(&stage, &costs);
    let text = match stage.order.format {
        Format::Text => report.to_string(),
        Format::Json => serde_json::to_string(&report).map_err(Failure::refused)?,
    };
    print(text.trim_end()).map_err(|error| Failure::refused(format_args!("output: {error}")))?;
    match report.findings(&stage) {
        Some(findings) => Err(Failure::refused(findings)),
        None => Ok(()),
    }
}

/// Lets members in and waits until all of them have joined.
async fn admit(stage: &Rc<Stage>, doors: &[Rc<Door>], members: Range<usize>) -> Result<(), Failure> {
    let places = Arc::new(Semaphore::new(JOINS_AT_ONCE));
    let joined = Rc::new(Notify::new());
    let (begun, first) = (Instant::now(), members.start);
    for index in members.clone() {
        if let Some(rate) = stage.order.connects_per_second {
            let due = begun + Duration::from_secs_f64((index - first) as f64 / f64::from(rate));
            tokio::time::sleep_until(due.into()).await;
        }
        let place = tokio::time::timeout(JOIN_PATIENCE, Arc::clone(&places).acquire_owned()).await;
        let (Ok(Ok(permit)), None) = (place, stage.failure()) else { return Err(stuck(stage)) };
        let way = member::Way {
            door: Rc::clone(&doors[index % doors.len()]),
            from: from(&stage.order, index),
            // Every room has members on every node.
            room: index / doors.len() % stage.order.rooms,
            joined: Rc::clone(&joined),
        };
        spawn_local(member::attend(Rc::clone(stage), way, permit));
    }
    let here = || stage.board.borrow().tally.joined;
    while here() < members.end as u64 {
        let waited = tokio::time::timeout(JOIN_PATIENCE, async {
            tokio::select! { () = joined.notified() => {}, () = tokio::time::sleep(GLANCE) => {} }
            while here() < members.end as u64 && stage.failure().is_none() {
                tokio::select! { () = joined.notified() => {}, () = tokio::time::sleep(GLANCE) => {} }
            }
        });
        if waited.await.is_err() || stage.failure().is_some() {
            return Err(stuck(stage));
        }
    }
    Ok(())
}

fn stuck(stage: &Stage) -> Failure {
    let why = stage.failure().unwrap_or_else(|| format!("no join within {} s", JOIN_PATIENCE.as_secs()));
    Failure::refused(format_args!("{} members joined; then {why}", stage.board.borrow().tally.joined))
}

fn from(order: &Bench, index: usize) -> Option<std::net::IpAddr> {
    (!order.from.is_empty()).then(|| order.from[index % order.from.len()])
}

/// Lets time pass unless the run cannot go on.
async fn pause(stage: &Stage, length: Duration) -> Result<(), Failure> {
    let end = Instant::now() + length;
    loop {
        if let Some(why) = stage.failure() {
            return Err(Failure::refused(why));
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        tokio::time::sleep(left.min(Duration::from_millis(100))).await;
    }
}

/// Ctrl-C ends the publishing early, and the report says what came of it.
async fn interruption(interrupted: Rc<Cell<bool>>) {
    if tokio::signal::ctrl_c().await.is_ok() {
        interrupted.set(true);
    }
}

/// Publishes for as long as was ordered, then waits for the last deliveries.
async fn load(stage: &Rc<Stage>, server: &Processes, costs: &mut Costs) -> Result<(), Failure> {
    let order = &stage.order;
    let own = Processes::own();
    let (work, own_work) = (Span::begin(server), Span::begin(&own));
    let begun_ns = stage.clock.now_ns();
    stage.board.borrow_mut().begin(begun_ns, begun_ns + (order.seconds * 1e9) as u64);
    {
        // Dropped with its thread at the end of the window.
        let _pacer = publisher::Pacer::start(order.pace, stage.bells.clone()).map_err(Failure::refused)?;
        (0..order.publishers).for_each(|index| stage.ring(Some(index)));
        let end = Instant::now() + Duration::from_secs_f64(order.seconds);
        let interrupted = Rc::new(Cell::new(false));
        spawn_local(interruption(Rc::clone(&interrupted)));
        while Instant::now() < end && !interrupted.get() {
            pause(stage, end.saturating_duration_since(Instant::now()).min(Duration::from_millis(100))).await?;
            if stage.board.borrow().tally.refused > REFUSED_MAX {
                return Err(Failure::refused(format_args!("more than {REFUSED_MAX} publishes were refused")));
            }
        }
    }
    costs.window = own_work.end(&own);
    stage.board.borrow_mut().begin(begun_ns, stage.clock.now_ns());
    (costs.delivered_in_window, costs.acknowledged_in_window) = {
        let tally = &stage.board.borrow().tally;
        (tally.delivered, tally.acknowledged)
    };
    let (mut seen, mut since) = (0, Instant::now());
    while order.publishers > 0 && since.elapsed() < GRACE {
        pause(stage, GLANCE).await?;
        let board = stage.board.borrow();
        let (tally, unanswered) = (&board.tally, board.unanswered());
        if unanswered == 0 && tally.delivered >= tally.expected {
            break;
        }
        let now = tally.delivered + tally.acknowledged;
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
    }
    costs.work = work.end(server);
    Ok(())
}
