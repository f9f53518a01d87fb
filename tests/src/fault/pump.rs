//! One proxied connection: two pumps that read, hold back as the fault of the moment says, and write. Called by the
//! proxy for each connection; it never keeps more than a bounded number of pieces in memory.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::{Direction, Fault};
use crate::rng::Rng;

/// The most that is read at once.
const PIECE: usize = 16 << 10;
/// Pieces that may be under way with a delay; then the reader waits, as a full link makes it.
const UNDER_WAY_MAX: usize = 256;

/// No cut has been begun on this connection.
const NO_CUT: u64 = u64::MAX;

/// What a pump's reader hands to its writer.
enum Piece {
    /// Bytes, and when they are due.
    Bytes(Instant, Vec<u8>),
    /// The sender has said all it had to say.
    End(Instant),
    /// The connection is to be reset.
    Reset,
}

/// The connection is to be reset.
struct Reset;

impl From<io::Error> for Reset {
    fn from(_: io::Error) -> Self {
        Self
    }
}

/// Carries until both sides are finished or the connection is reset.
pub(super) async fn both_ways(
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

/// One direction.
struct Pump<'a> {
    direction: Direction,
    fault: watch::Receiver<Fault>,
    /// What `CutAfter` lets pass yet on this connection.
    left: &'a AtomicU64,
    rng: Rng,
    /// When the last piece is due: later ones do not overtake it.
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
            // What came while nothing may pass waits, the end of the connection as well.
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
        // Both pumps of a connection run in one task: nobody writes between the load and the store.
        let left = self.left.load(Ordering::Relaxed).min(*limit);
        let allowed = left.min(count as u64);
        self.left.store(left - allowed, Ordering::Relaxed);
        usize::try_from(allowed).expect("no more than a count of bytes")
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

/// Waits until something may pass this direction, and says under which fault.
async fn passes(fault: &mut watch::Receiver<Fault>, direction: Direction) -> Fault {
    let open = |fault: &Fault| *fault != Fault::Stall && *fault != Fault::BlackHole(direction);
    // A proxy that is gone has said `Reset` before.
    fault.wait_for(open).await.map_or(Fault::Reset, |fault| fault.clone())
}
