//! A publisher session of a load run: one half sends the messages that the scoreboard says are due, all of them in one
//! write; the other half reads the replies. The run starts one task for each session, and at a fixed rate the thread
//! that wakes them.

use super::{
    link::{self, Link},
    options::LoadModel,
    run_context::RunContext,
};
use crate::connection::Connection;
use serde::Deserialize;
use std::{
    borrow::Cow,
    cell::RefCell,
    future::poll_fn,
    io,
    rc::Rc,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};
use tokio::{
    io::{ReadHalf, WriteHalf},
    sync::Notify,
};

/// How many bytes are composed before they are written.
const BATCH_BYTES: usize = 32 * 1024;

/// The shortest step: messages that are due within one step go out together.
const STEP_MIN: Duration = Duration::from_micros(200);
/// How much too early a publisher is woken. It then waits for the exact time itself, because the time that two threads take
/// to wake up is not the gateway's latency.
const LEAD: Duration = Duration::from_micros(200);
/// Above this many messages a second a publisher would be waiting all the time, so there is no lead.
const LEAD_RATE_MAX: f64 = 1000.0;

/// Answers to pings, which the sending half puts between two frames.
type Pongs = RefCell<Vec<u8>>;

/// Opens a session and lives as long as its connection.
pub(super) async fn run(context: Rc<RunContext>, index: usize) {
    let node = context.publish_node.as_ref().unwrap_or(&context.nodes[0]);
    let link = match node.open(context.options.local_address(index)).await {
        Ok(link) => link,
        Err(why) => return context.fail(why),
    };
    let (read, write) = link.split();
    let pongs = Pongs::default();
    let why = tokio::select! {
        why = send(&context, index, write, &pongs) => why,
        why = receive(&context, index, read, &pongs) => why,
    };
    // A gateway closes a session that caused too many errors; the refusals before tell which.
    let why = match context.scoreboard.borrow().counters.explanation() {
        none if none.is_empty() => format!("publisher: {why}"),
        explanation => format!("publisher: {why} ({explanation})"),
    };
    context.fail(why);
}

async fn send(context: &RunContext, index: usize, mut stream: WriteHalf<Connection>, pongs: &Pongs) -> String {
    let mut batch = Vec::with_capacity(2 * BATCH_BYTES);
    loop {
        batch.append(&mut pongs.borrow_mut());
        {
            let mut scoreboard = context.scoreboard.borrow_mut();
            while batch.len() < BATCH_BYTES && scoreboard.publish(index, context.now_ns(), &mut batch) {}
        }
        if !batch.is_empty() {
            if let Err(why) = link::write(&mut stream, &batch).await {
                return why;
            }
            batch.clear();
            continue;
        }
        let is_almost_due = context.scoreboard.borrow().due_ns(index).is_some_and(|due_ns| {
            let wait_ns = due_ns.saturating_sub(context.now_ns());
            lead(context.options.pace()).as_nanos() as u64 > wait_ns
        });
        if is_almost_due {
            // Meanwhile the other tasks read what has arrived.
            tokio::task::yield_now().await;
        } else {
            context.wakers[index].notified().await;
        }
    }
}

async fn receive(context: &RunContext, index: usize, mut link: Link<ReadHalf<Connection>>, pongs: &Pongs) -> String {
    let mut each = |text: &[u8]| reply(context, index, text);
    if let Err(why) = link.take_early(&mut each) {
        return why;
    }
    loop {
        let read = poll_fn(|task| link.poll(task, &mut context.scratch.borrow_mut(), &mut each)).await;
        if let Err(why) = read {
            return why;
        }
        let mut new = link.take_pongs();
        if !new.is_empty() {
            pongs.borrow_mut().append(&mut new);
            context.wake(Some(index));
        }
    }
}

/// The reply to a publish; other frames do not matter here.
#[derive(Deserialize)]
struct PublishReply<'a> {
    #[serde(rename = "type", borrow)]
    kind: Cow<'a, str>,
    id: Option<u64>,
    code: Option<Cow<'a, str>>,
    message: Option<Cow<'a, str>>,
}

/// Takes a frame that the gateway sent to the publisher.
fn reply(context: &RunContext, index: usize, text: &[u8]) {
    let now_ns = context.now_ns();
    let mut scoreboard = context.scoreboard.borrow_mut();
    if let Some(id) = acknowledged_id(text) {
        return context.wake(scoreboard.acknowledged(index, id, now_ns));
    }
    let Ok(reply) = serde_json::from_slice::<PublishReply<'_>>(text) else { return };
    let publisher = match (&*reply.kind, reply.id) {
        ("published", Some(id)) => scoreboard.acknowledged(index, id, now_ns),
        ("error", Some(id)) => {
            let why = [reply.code, reply.message].map(Option::unwrap_or_default).join(": ");
            scoreboard.refused(index, id, why)
        }
        _ => None,
    };
    context.wake(publisher);
}

/// The request id of an acknowledgement in the order of fields in which the gateway writes it; any other order is parsed as
/// JSON.
fn acknowledged_id(text: &[u8]) -> Option<u64> {
    let rest = text.strip_prefix(br#"{"type":"published","id":"#)?;
    let digits = rest.iter().position(|byte| !byte.is_ascii_digit())?;
    str::from_utf8(&rest[..digits]).ok()?.parse().ok()
}

/// How much too early publishers are woken at this pace.
fn lead(pace: LoadModel) -> Duration {
    match pace {
        LoadModel::Rate(rate) if rate <= LEAD_RATE_MAX => LEAD,
        LoadModel::Rate(_) | LoadModel::InFlight(_) => Duration::ZERO,
    }
}

/// Starts the thread that wakes publishers by the clock. It is a thread because the runtime's timers are a millisecond
/// coarse, which is more than the latency to be measured. It ends when the result is dropped; without a rate there is
/// none.
pub(super) fn start_pacer(pace: LoadModel, wakers: Vec<Arc<Notify>>) -> io::Result<Arc<()>> {
    let alive = Arc::new(());
    let LoadModel::Rate(rate) = pace else { return Ok(alive) };
    let step = Duration::from_secs_f64(1.0 / rate).max(STEP_MIN);
    let watch = Arc::downgrade(&alive);
    let begun = Instant::now();
    let run = move || {
        let mut steps = 0_u32;
        while watch.strong_count() > 0 {
            wakers.iter().for_each(|waker| waker.notify_one());
            steps = steps.saturating_add(1);
            // 10 µs after the time: a publisher that is woken just before it would wait for the next step.
            let due = begun + step.mul_f64(f64::from(steps)) + Duration::from_micros(10) - lead(pace);
            while Instant::now() < due {
                thread::park_timeout(due.saturating_duration_since(Instant::now()));
            }
        }
    };
    thread::Builder::new().name("pacer".to_owned()).spawn(run)?;
    Ok(alive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledgements_are_recognised_by_their_beginning() {
        assert_eq!(acknowledged_id(br#"{"type":"published","id":42,"room":"a"}"#), Some(42));
        assert_eq!(acknowledged_id(br#"{"type":"published","id":42}"#), Some(42));
        for other in [&br#"{"type":"published","room":"a","id":42}"#[..], b"{\"type\":\"error\",\"id\":1}", b""] {
            assert_eq!(acknowledged_id(other), None);
        }
    }
}
