//! The bounded buffer of one client: frames that wait for its socket. It holds references to shared frames, not copies,
//! and owns no allocation while it is empty. It reports an overflow; `shard` closes the session. No I/O in here.

use bytes::{Buf, Bytes};
use std::{collections::VecDeque, io::IoSlice};

/// How much may wait for one client; the same for all clients of a node.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OutboxLimits {
    pub(crate) bytes: usize,
    pub(crate) frames: usize,
    /// How old the oldest waiting frame may be, in milliseconds.
    pub(crate) age_ms: u32,
}

/// A limit of the outbox is exceeded: the client reads too slowly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Overflow;

/// One or more whole frames in one buffer, queued as one entry.
#[derive(Debug, Clone)]
pub(crate) struct Frames {
    pub(crate) bytes: Bytes,
    pub(crate) count: u32,
}

/// The most slices of one vectored write; the next write takes the rest.
pub(crate) const SLICES_MAX: usize = 64;

/// The frames that wait for one client, in order.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// The oldest entry. It is not in `rest`, so that a queue of one entry, which is the usual case, needs no
    /// allocation.
    first: Option<Frames>,
    rest: VecDeque<Frames>,
    bytes: usize,
    frames: u32,
    /// The first entry has been written in part. The rest of it must be written too, or the client would get a broken
    /// frame.
    cut: bool,
    /// When bytes were last written, or the first frame was queued into the empty outbox. In milliseconds of the
    /// shard's clock.
    since_ms: u32,
}

impl Outbox {
    pub(crate) fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Queues frames, unless that exceeds a limit.
    pub(crate) fn push(&mut self, frames: Frames, now_ms: u32, limits: &OutboxLimits) -> Result<(), Overflow> {
        let bytes = self.bytes + frames.bytes.len();
        let count = self.frames.saturating_add(frames.count);
        let old = self.first.is_some() && now_ms.wrapping_sub(self.since_ms) > limits.age_ms;
        // A single entry may have any size: no other one waits, and the code that makes entries bounds their size.
        if self.first.is_some() && (bytes > limits.bytes || count as usize > limits.frames || old) {
            return Err(Overflow);
        }
        self.push_unbounded(frames, now_ms);
        Ok(())
    }

    /// Queues frames regardless of the limits: the close frame, and messages from history, whose sender waits for the
    /// outbox itself.
    pub(crate) fn push_unbounded(&mut self, frames: Frames, now_ms: u32) {
        self.bytes += frames.bytes.len();
        self.frames = self.frames.saturating_add(frames.count);
        if self.first.is_none() {
            self.since_ms = now_ms;
            self.first = Some(frames);
        } else {
            self.rest.push_back(frames);
        }
    }

    /// Whether half of the allowed bytes or frames wait.
    pub(crate) fn is_half_full(&self, limits: &OutboxLimits) -> bool {
        self.bytes > limits.bytes / 2 || self.frames as usize > limits.frames / 2
    }

    /// Whether frames wait and nothing has been written for longer than allowed.
    pub(crate) fn is_stale(&self, now_ms: u32, limits: &OutboxLimits) -> bool {
        self.first.is_some() && now_ms.wrapping_sub(self.since_ms) > limits.age_ms
    }

    /// The next bytes to write, as slices for one vectored write; returns how many of `slices` are filled.
    pub(crate) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; SLICES_MAX]) -> usize {
        let waiting = self.first.iter().chain(&self.rest);
        let mut filled = 0;
        for (slot, frames) in slices.iter_mut().zip(waiting) {
            *slot = IoSlice::new(&frames.bytes);
            filled += 1;
        }
        filled
    }

    /// Notes that the socket took `written` bytes.
    pub(crate) fn advance(&mut self, mut written: usize, now_ms: u32) {
        self.bytes -= written;
        while let Some(first) = &mut self.first {
            if written < first.bytes.len() {
                if written > 0 {
                    first.bytes.advance(written);
                    self.cut = true;
                    self.since_ms = now_ms;
                }
                return;
            }
            written -= first.bytes.len();
            self.frames -= first.count;
            self.first = self.rest.pop_front();
            self.cut = false;
            self.since_ms = now_ms;
        }
        if self.rest.capacity() > 0 {
            self.rest = VecDeque::new();
        }
    }

    /// Drops everything but an entry that has been written in part, so that a close frame can follow at a frame border.
    pub(crate) fn discard(&mut self) {
        self.rest = VecDeque::new();
        if !self.cut {
            self.first = None;
        }
        self.bytes = self.first.as_ref().map_or(0, |f| f.bytes.len());
        self.frames = self.first.as_ref().map_or(0, |f| f.count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: OutboxLimits = OutboxLimits { bytes: 100, frames: 8, age_ms: 5000 };

    fn frames(bytes: &[u8]) -> Frames {
        Frames { bytes: Bytes::copy_from_slice(bytes), count: 1 }
    }

    #[test]
    fn overflows_by_bytes_by_count_and_by_age() {
        let mut outbox = Outbox::default();
        outbox.push(frames(&[0; 60]), 0, &LIMITS).unwrap();
        assert_eq!(outbox.push(frames(&[0; 41]), 0, &LIMITS), Err(Overflow));
        outbox.push(frames(&[0; 40]), 0, &LIMITS).unwrap();
        assert_eq!(outbox.bytes(), 100);
        let mut outbox = Outbox::default();
        for _ in 0..8 {
            outbox.push(frames(b"x"), 0, &LIMITS).unwrap();
        }
        assert_eq!(outbox.push(frames(b"x"), 0, &LIMITS), Err(Overflow));
        let mut outbox = Outbox::default();
        outbox.push(frames(b"x"), u32::MAX - 10, &LIMITS).unwrap();
        outbox.push(frames(b"x"), 4000, &LIMITS).unwrap();
        assert_eq!(outbox.push(frames(b"x"), 5000, &LIMITS), Err(Overflow), "the clock wrapped in between");
    }

    #[test]
    fn one_large_entry_passes_when_nothing_waits() {
        Outbox::default().push(frames(&[0; 1000]), 0, &LIMITS).unwrap();
    }

    #[test]
    fn discarding_keeps_what_is_half_written() {
        let mut outbox = Outbox::default();
        outbox.push(frames(b"abc"), 0, &LIMITS).unwrap();
        outbox.push(frames(b"def"), 0, &LIMITS).unwrap();
        outbox.advance(1, 0);
        outbox.discard();
        outbox.push_unbounded(frames(b"X"), 0);
        assert_eq!(drain(&mut outbox, 10), b"bcX");
    }

    fn drain(outbox: &mut Outbox, step: usize) -> Vec<u8> {
        let mut out = Vec::new();
        while !outbox.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let n = outbox.slices(&mut slices);
            let bytes: Vec<u8> = slices[..n].iter().flat_map(|s| s.iter().copied()).take(step).collect();
            outbox.advance(bytes.len(), 0);
            out.extend(bytes);
        }
        assert_eq!((outbox.bytes, outbox.frames, outbox.rest.capacity()), (0, 0, 0));
        out
    }

    proptest! {
        #[test]
        fn whatever_the_socket_takes_the_bytes_come_out_in_order(
            entries in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..9), 0..8), step in 1usize..20,
        ) {
            let mut outbox = Outbox::default();
            for entry in &entries {
                outbox.push(frames(entry), 0, &LIMITS).unwrap();
            }
            prop_assert_eq!(drain(&mut outbox, step), entries.concat());
        }
    }
}
