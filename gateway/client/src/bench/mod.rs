//! `fanfare bench`: loads a gateway, and reports what it did and what that cost. This file is the order of events: members
//! join (half of them, then the rest, so that memory per member is a slope), publishers connect, nothing happens for a while
//! with `--idle`, messages are published, the last ones arrive, and the report is printed.
//!
//! Everything runs on one thread, with one task per connection, and a delivery allocates nothing: the tool must cost less
//! than what it measures. Latency ends when this process has read the message. Where one message goes to thousands of
//! members, reading them all is part of the latency, so measure a small room with a process of its own.

mod costs;
mod counters;
mod frame;
mod link;
mod member;
mod options;
mod publisher;
mod report;
mod run_context;
mod scoreboard;
mod sequence;
mod stamp;

pub(crate) use options::BenchOptions;

use crate::output::{Failure, finish, print, print_error};
use costs::{Costs, Processes};
use report::Report;
use run_context::RunContext;
use std::{
    io::IsTerminal as _,
    ops::Range,
    process::ExitCode,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    sync::Semaphore,
    task::{LocalSet, spawn_local},
};

/// How many members are connecting and joining at a time: fewer than a listener's default backlog, so that other clients
/// get in too.
const JOINS_AT_ONCE: usize = 256;
/// A connect or join that takes longer ends the run.
const JOIN_LIMIT: Duration = Duration::from_secs(20);
/// How often the phases look whether they are over; no measured time depends on it.
const CHECK_INTERVAL: Duration = Duration::from_millis(5);
/// How long the members' memory is left to settle before it is read.
const SETTLE: Duration = Duration::from_millis(500);
/// After the last publish: when nothing has arrived for this long, the rest is missing.
const GRACE: Duration = Duration::from_secs(5);
/// After this many refused publishes the run ends: it does not measure the gateway any more.
const REFUSED_MAX: u64 = 100_000;

/// Loads a gateway. The exit code is 1 when anything was lost, repeated, out of order, refused or disconnected.
pub(crate) async fn bench(options: BenchOptions) -> ExitCode {
    finish("bench", LocalSet::new().run_until(run(options)).await)
}

async fn run(options: BenchOptions) -> Result<(), Failure> {
    let gateway = Processes::new(options.pids.clone())?;
    let context = Rc::new(RunContext::new(options).await?);
    let is_local = !gateway.is_empty() || context.nodes.iter().any(|node| node.address.ip().is_loopback());
    let mut costs = Costs {
        shared_cores: is_local.then(|| gateway.shared_cores()),
        connections_before: gateway.files_max(),
        ..Costs::default()
    };
    spawn_local(show_progress(Rc::clone(&context)));

    let members = context.options.members;
    costs.rss_kib.push(gateway.rss_kib());
    for part in [0..members / 2, members / 2..members] {
        let connecting = gateway.stretch();
        connect_members(&context, part).await?;
        costs.connect.add(&connecting());
        if !gateway.is_empty() {
            tokio::time::sleep(SETTLE).await;
        }
        costs.rss_kib.push(gateway.rss_kib());
    }
    for index in 0..context.options.publishers {
        spawn_local(publisher::run(Rc::clone(&context), index));
    }
    let idle = gateway.stretch();
    pause(&context, Duration::from_secs_f64(context.options.idle_seconds)).await?;
    costs.idle = idle();

    load(&context, &gateway, &mut costs).await?;
    let report = Report::new(&context, &costs);
    let text = match context.options.json {
        true => serde_json::to_string(&report).map_err(Failure::refused)?,
        false => report.to_string(),
    };
    print(text.trim_end())?;
    report.faults(&context).map_or(Ok(()), |faults| Err(Failure::refused(faults)))
}

/// Starts members and waits until all of them have joined.
async fn connect_members(context: &Rc<RunContext>, members: Range<usize>) -> Result<(), Failure> {
    let permits = Arc::new(Semaphore::new(JOINS_AT_ONCE));
    let (begun, first) = (Instant::now(), members.start);
    for index in members.clone() {
        if let Some(rate) = context.options.connects_per_second {
            let due = begun + Duration::from_secs_f64((index - first) as f64 / rate as f64);
            tokio::time::sleep_until(due.into()).await;
        }
        let permit = tokio::time::timeout(JOIN_LIMIT, Arc::clone(&permits).acquire_owned()).await;
        let (Ok(Ok(permit)), None) = (permit, context.failure()) else { return Err(not_joined(context)) };
        spawn_local(member::run(Rc::clone(context), index, permit));
    }
    let count = || context.scoreboard.borrow().counters.joined;
    let all_joined = async {
        while count() < members.end as u64 && context.failure().is_none() {
            tokio::select! { () = context.joined.notified() => {}, () = tokio::time::sleep(CHECK_INTERVAL) => {} }
        }
    };
    match tokio::time::timeout(JOIN_LIMIT, all_joined).await {
        Ok(()) if context.failure().is_none() => Ok(()),
        _ => Err(not_joined(context)),
    }
}

fn not_joined(context: &RunContext) -> Failure {
    let why = context.failure().unwrap_or_else(|| format!("no join within {} s", JOIN_LIMIT.as_secs()));
    Failure::refused(format_args!("{} members joined; then {why}", context.scoreboard.borrow().counters.joined))
}

/// Waits, unless the run cannot go on.
async fn pause(context: &RunContext, length: Duration) -> Result<(), Failure> {
    let end = Instant::now() + length;
    loop {
        if let Some(why) = context.failure() {
            return Err(Failure::refused(why));
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        tokio::time::sleep(left.min(Duration::from_millis(100))).await;
    }
}

/// Publishes for `--seconds`, then waits for the last deliveries.
async fn load(context: &Rc<RunContext>, gateway: &Processes, costs: &mut Costs) -> Result<(), Failure> {
    let options = &context.options;
    let own = Processes::own();
    let (work, own_work) = (gateway.stretch(), own.stretch());
    let begun_ns = context.now_ns();
    let end_ns = begun_ns + (options.seconds * 1e9) as u64;
    context.scoreboard.borrow_mut().set_window(begun_ns, end_ns);
    {
        // Its thread ends with the window.
        let _pacer = publisher::start_pacer(options.pace(), context.wakers.clone()).map_err(Failure::refused)?;
        (0..options.publishers).for_each(|index| context.wake(Some(index)));
        let end = Instant::now() + Duration::from_secs_f64(options.seconds);
        let publishing = async {
            while Instant::now() < end {
                pause(context, end.saturating_duration_since(Instant::now()).min(Duration::from_millis(100))).await?;
                let counters = &context.scoreboard.borrow().counters;
                if counters.refused > REFUSED_MAX {
                    let why = counters.explanation();
                    let text = format!("more than {REFUSED_MAX} publishes were refused ({why})");
                    return Err(Failure::refused(text));
                }
            }
            Ok(())
        };
        // Ctrl-C ends the publishing early; the report is about what was published until then.
        tokio::select! { result = publishing => result?, Ok(()) = tokio::signal::ctrl_c() => {} }
    }
    costs.window = own_work();
    {
        let mut scoreboard = context.scoreboard.borrow_mut();
        scoreboard.set_window(begun_ns, context.now_ns());
        costs.delivered_in_window = scoreboard.counters.delivered;
        costs.acknowledged_in_window = scoreboard.counters.acknowledged;
    }
    let (mut seen, mut since) = (0, Instant::now());
    while options.publishers > 0 && since.elapsed() < GRACE {
        pause(context, CHECK_INTERVAL).await?;
        let scoreboard = context.scoreboard.borrow();
        let counters = &scoreboard.counters;
        if scoreboard.unanswered() == 0 && counters.delivered >= counters.expected {
            break;
        }
        let now = counters.delivered + counters.acknowledged;
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
    }
    costs.work = work();
    Ok(())
}

/// Shows every second on standard error how the run goes, on a terminal or with `--progress`.
async fn show_progress(context: Rc<RunContext>) {
    let is_terminal = std::io::stderr().is_terminal();
    if !is_terminal && !context.options.progress {
        return;
    }
    let mut every = tokio::time::interval(Duration::from_secs(1));
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    every.tick().await;
    let (mut published, mut delivered) = (0, 0);
    for second in 1_u64.. {
        every.tick().await;
        let line = {
            let counters = &context.scoreboard.borrow().counters;
            let line = format!(
                "{second} s: {} members, {} publishes/s, {} deliveries/s, p99 {:.3} ms, {} waiting, {} repeated, {} out of order",
                counters.joined - counters.disconnected,
                counters.published - published,
                counters.delivered - delivered,
                counters.latency.ms(0.99).unwrap_or(0.0),
                counters.expected.saturating_sub(counters.delivered),
                counters.repeated,
                counters.out_of_order,
            );
            (published, delivered) = (counters.published, counters.delivered);
            line
        };
        // On a terminal each line replaces the one before, and the report can replace the last.
        print_error(if is_terminal { format!("\r\x1b[K{line}\r") } else { format!("{line}\n") });
    }
}
