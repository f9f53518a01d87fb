//! A publisher session of a load run: one side sends what the board says is due, as much as is due in one write; the other
//! reads the answers. The run starts one task for each session. The pacer is the thread that wakes them by the clock.

use super::{
    frame::{self, Frame},
    link::{Door, Link},
    options::Pace,
    stage::Stage,
};
use serde::Deserialize;
use std::{
    borrow::Cow,
    cell::RefCell,
    future::poll_fn,
    io,
    net::IpAddr,
    rc::Rc,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};
use tokio::{
    io::AsyncWriteExt as _,
    net::tcp::{OwnedReadHalf, OwnedWriteHalf},
    sync::Notify,
};

/// What is composed before it is written.
const BATCH_BYTES: usize = 32 * 1024;
/// The pacer's shortest step: what is due in it goes out together.
const STEP_MIN: Duration = Duration::from_micros(200);

/// How much earlier the pacer wakes a publisher, which then counts the time itself: two threads' waking is not the gateway's
/// latency. Above `LEAD_RATE_MAX` messages a second that would be counting all the time.
const LEAD: Duration = Duration::from_micros(200);
const LEAD_RATE_MAX: f64 = 1000.0;

/// Answers to pings, which the writing side sends between two frames.
type Pongs = RefCell<Vec<u8>>;

/// Opens a session and lives as long as it does.
pub(super) async fn publish(stage: Rc<Stage>, index: usize, door: Rc<Door>, from: Option<IpAddr>) {
    let link = match door.open(from).await {
        Ok(link) => link,
        Err(why) => return stage.fail(why),
    };
    let (read, write) = link.split();
    let pongs = Pongs::default();
    let why = tokio::select! {
        why = send(&stage, index, write, &pongs) => why,
        why = hear(&stage, index, read, &pongs) => why,
    };
    stage.fail(format!("publisher: {why}"));
}

async fn send(stage: &Stage, index: usize, mut write: OwnedWriteHalf, pongs: &Pongs) -> String {
    let mut batch = Vec::with_capacity(2 * BATCH_BYTES);
    loop {
        batch.append(&mut pongs.borrow_mut());
        {
            let mut board = stage.board.borrow_mut();
            while batch.len() < BATCH_BYTES && board.publish(index, stage.clock.now_ns(), &mut batch) {}
        }
        if batch.is_empty() {
            let is_close = stage.board.borrow().due_ns(index).is_some_and(|at_ns| {
                let wait_ns = at_ns.saturating_sub(stage.clock.now_ns());
                lead(stage.order.pace).as_nanos() as u64 > wait_ns
            });
            if is_close {
                // Whatever has arrived is read in between.
                tokio::task::yield_now().await;
            } else {
                stage.bells[index].notified().await;
            }
        } else if let Err(error) = write.write_all(&batch).await {
            return error.to_string();
        }
        batch.clear();
    }
}

fn lead(pace: Pace) -> Duration {
    match pace {
        Pace::Rate(rate) if rate <= LEAD_RATE_MAX => LEAD,
        Pace::Rate(_) | Pace::InFlight(_) => Duration::ZERO,
    }
}

async fn hear(stage: &Stage, index: usize, mut link: Link<OwnedReadHalf>, pongs: &Pongs) -> String {
    let mut each = |_: &OwnedReadHalf, frame: Frame<'_>| match frame {
        Frame::Text(text) => answer(stage, index, text),
        Frame::Ping(payload) => {
            frame::pong(payload, &mut pongs.borrow_mut());
            stage.ring(Some(index));
        }
        Frame::Pong | Frame::Close(..) => {}
    };
    if let Err(why) = link.take_early(&mut each) {
        return why;
    }
    loop {
        let read = poll_fn(|context| link.poll(context, &mut stage.scratch.borrow_mut(), &mut each)).await;
        if let Err(why) = read {
            return why;
        }
    }
}

/// An answer to a publish; other frames say nothing here.
fn answer(stage: &Stage, index: usize, text: &[u8]) {
    let now_ns = stage.clock.now_ns();
    let mut board = stage.board.borrow_mut();
    if let Some(id) = published(text) {
        return stage.ring(board.acknowledged(index, id, now_ns));
    }
    #[derive(Deserialize)]
    struct Answer<'a> {
        #[serde(rename = "type", borrow)]
        kind: Cow<'a, str>,
        id: Option<u64>,
        code: Option<Cow<'a, str>>,
        message: Option<Cow<'a, str>>,
    }
    let Ok(answer) = serde_json::from_slice::<Answer<'_>>(text) else { return };
    let bell = match (&*answer.kind, answer.id) {
        ("published", Some(id)) => board.acknowledged(index, id, now_ns),
        ("error", Some(id)) => {
            let why = [answer.code, answer.message].map(Option::unwrap_or_default).join(": ");
            board.refused(index, id, why)
        }
        _ => None,
    };
    stage.ring(bell);
}

/// The request id of an acknowledgement as the gateway writes it; any other order of fields takes the long way.
fn published(text: &[u8]) -> Option<u64> {
    let rest = text.strip_prefix(br#"{"type":"published","id":"#)?;
    let digits = rest.iter().position(|byte| !byte.is_ascii_digit())?;
    str::from_utf8(&rest[..digits]).ok()?.parse().ok()
}

/// Wakes publishers when a message is due. A thread, because the runtime's timers are a millisecond coarse, which is more than
/// the latency to be measured; it sleeps, and does nothing but ring bells. Without a rate there is none.
#[derive(Debug)]
pub(super) struct Pacer {
    alive: Option<Arc<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Pacer {
    /// Starts it together with the window of publishing.
    pub(super) fn start(pace: Pace, bells: Vec<Arc<Notify>>) -> io::Result<Self> {
        let Pace::Rate(rate) = pace else { return Ok(Self { alive: None, thread: None }) };
        let step = Duration::from_secs_f64(1.0 / rate).max(STEP_MIN);
        let alive = Arc::new(());
        let watch = Arc::downgrade(&alive);
        let begun = Instant::now();
        let beat = move || {
            let mut beats = 0_u32;
            while watch.strong_count() > 0 {
                bells.iter().for_each(|bell| bell.notify_one());
                beats = beats.saturating_add(1);
                // A moment after the time and not a moment before, when the publisher would wait for the next beat.
                let due = begun + step.mul_f64(f64::from(beats)) + Duration::from_micros(10) - lead(pace);
                while watch.strong_count() > 0 && Instant::now() < due {
                    thread::park_timeout(due - Instant::now());
                }
            }
        };
        let thread = thread::Builder::new().name("pacer".to_owned()).spawn(beat)?;
        Ok(Self { alive: Some(alive), thread: Some(thread) })
    }
}

impl Drop for Pacer {
    fn drop(&mut self) {
        self.alive = None;
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It cannot have panicked: it only rings and sleeps.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acknowledgements_are_read_by_their_beginning() {
        assert_eq!(published(br#"{"type":"published","id":42,"room":"a"}"#), Some(42));
        assert_eq!(published(br#"{"type":"published","id":42}"#), Some(42));
        for other in [&br#"{"type":"published","room":"a","id":42}"#[..], b"{\"type\":\"error\",\"id\":1}", b""] {
            assert_eq!(published(other), None);
        }
    }
}
