//! One proxied connection: two pumps, one for each direction, which read bytes, hold them back as the current fault
//! demands, and write them. Called by `proxy` for each connection. The pieces in memory are bounded in number.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::kind::{Direction, Fault};
use crate::rng::Rng;

/// The largest number of bytes that is read at once.
const PIECE: usize = 16 << 10;
/// The largest number of delayed pieces. At this number the pump stops reading, as a full network link would.
const UNDER_WAY_MAX: usize = 256;

/// The value of `left` if no cut is due on this connection.
const NO_CUT: u64 = u64::MAX;

/// What the reading half of a pump hands to its writing half.
enum Piece {
    /// Bytes, and the time at which they may be written.
    Bytes(Instant, Vec<u8>),
    /// The end of the stream, and the time at which it may be passed on.
    End(Instant),
    /// The connection has to be reset.
    Reset,
}

/// The reason why a pump ends early: the connection has to be reset.
struct Reset;

impl From<io::Error> for Reset {
    fn from(_: io::Error) -> Self {
        Self
    }
}

/// Copies bytes until both sides have finished or the connection is reset.
pub(super) async fn both_directions(
    (mut near, mut far): (TcpStream, TcpStream),
    fault: &watch::Sender<Fault>,
    mut resets: watch::Receiver<u64>,
    seed: u64,
) {
    let is_reset = {
        let ((near_read, near_write), (far_read, far_write)) = (near.split(), far.split());
        let left = AtomicU64::new(NO_CUT);
        let pump =
            |direction, seed| Pump { direction, fault: fault.subscribe(), left: &left, rng: Rng::new(seed), due: None };
        let up = pump(Direction::ToServer, seed).run(near_read, far_write);
        let down = pump(Direction::ToClient, !seed).run(far_read, near_write);
        let mut watched = fault.subscribe();
        tokio::select! {
            ended = async { tokio::try_join!(up, down) } => ended.is_err(),
            _ = resets.changed() => true,
            _ = watched.wait_for(|fault| *fault == Fault::Reset) => true,
        }
    };
    if is_reset {
        let _ = (near.set_zero_linger(), far.set_zero_linger());
    }
}

/// The pump of one direction.
struct Pump<'a> {
    direction: Direction,
    fault: watch::Receiver<Fault>,
    /// How many bytes `CutAfter` still lets pass on this connection.
    left: &'a AtomicU64,
    rng: Rng,
    /// When the last piece may be written; later pieces must not overtake it.
    due: Option<Instant>,
}

impl Pump<'_> {
    async fn run(self, from: ReadHalf<'_>, to: WriteHalf<'_>) -> Result<(), Reset> {
        let (pieces, under_way) = mpsc::channel(UNDER_WAY_MAX);
        let (direction, fault) = (self.direction, self.fault.clone());
        tokio::try_join!(self.read(from, pieces), write(direction, fault, under_way, to)).map(|_| ())
    }

    async fn read(mut self, mut from: ReadHalf<'_>, pieces: mpsc::Sender<Piece>) -> Result<(), Reset> {
        let mut buffer = vec![0; PIECE];
        loop {
            let read = from.read(&mut buffer).await;
            // While nothing may pass, the bytes wait here, and so does the end of the connection.
            let fault = passes(&mut self.fault, self.direction).await;
            let bytes = match read {
                Ok(0) => {
                    let due = self.due(&fault);
                    let _ = pieces.send(Piece::End(due)).await;
                    return Ok(());
                }
                Ok(count) => &buffer[..count],
                Err(_) => return Err(Reset),
            };
            let allowed = self.allowed(&fault, bytes.len());
            let piece = Piece::Bytes(self.due(&fault), bytes[..allowed].to_vec());
            let cut = allowed < bytes.len();
            if pieces.send(piece).await.is_err() {
                return Ok(());
            }
            if cut {
                let _ = pieces.send(Piece::Reset).await;
                return Ok(());
            }
        }
    }

    /// How many of these bytes may pass before the cut.
    fn allowed(&self, fault: &Fault, count: usize) -> usize {
        let Fault::CutAfter(limit) = fault else {
            self.left.store(NO_CUT, Ordering::Relaxed);
            return count;
        };
        // Both pumps of a connection run in one task, so `left` does not change between the load and the store.
        let left = self.left.load(Ordering::Relaxed).min(*limit);
        let allowed = left.min(count as u64);
        self.left.store(left - allowed, Ordering::Relaxed);
        usize::try_from(allowed).expect("at most `count`")
    }

    fn due(&mut self, fault: &Fault) -> Instant {
        let now = Instant::now();
        let due = match fault {
            Fault::Delay { least, jitter } => now + *least + self.rng.up_to(*jitter),
            _ => now,
        };
        let due = self.due.map_or(due, |last| last.max(due));
        self.due = Some(due);
        due
    }
}

async fn write(
    direction: Direction,
    mut fault: watch::Receiver<Fault>,
    mut pieces: mpsc::Receiver<Piece>,
    mut to: WriteHalf<'_>,
) -> Result<(), Reset> {
    while let Some(piece) = pieces.recv().await {
        match piece {
            Piece::Bytes(due, bytes) => {
                sleep_until(due).await;
                let step = if passes(&mut fault, direction).await == Fault::Chop { 1 } else { bytes.len().max(1) };
                for part in bytes.chunks(step) {
                    to.write_all(part).await?;
                }
            }
            Piece::End(due) => {
                sleep_until(due).await;
                passes(&mut fault, direction).await;
                to.shutdown().await?;
                return Ok(());
            }
            Piece::Reset => return Err(Reset),
        }
    }
    Ok(())
}

/// Waits until bytes may pass in this direction and returns the fault that then holds.
async fn passes(fault: &mut watch::Receiver<Fault>, direction: Direction) -> Fault {
    let open = |fault: &Fault| *fault != Fault::Stall && *fault != Fault::BlackHole(direction);
    // A proxy sets `Reset` before it is dropped.
    fault.wait_for(open).await.map_or(Fault::Reset, |fault| fault.clone())
}
