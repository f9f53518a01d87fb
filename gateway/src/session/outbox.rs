//! The bounded buffer of one client: frames that wait for its socket. It holds references to shared frames, not copies,
//! and owns no allocation while it is empty. It reports an overflow; `shard` closes the session. No I/O in here.

use super::Frames;
use bytes::Buf;
use std::{collections::VecDeque, io::IoSlice};

/// How much may wait for one client; the same for all clients of a node.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OutboxLimits {
    /// Bytes, and [`READING_FACTOR`] times as many as long as the client reads. Of these, [`OWN_FACTOR`] times as many
    /// may be bytes that no other client shares.
    pub(crate) bytes: usize,
    /// Frames, and [`READING_FACTOR`] times as many as long as the client reads.
    pub(crate) frames: usize,
    /// For how long a client with waiting frames may take none of their bytes, in milliseconds.
    pub(crate) age_ms: u32,
}

/// A client reads if its socket has taken bytes within this time, in milliseconds. A lost packet costs a second at
/// most (RFC 6298 section 2), and a busy page takes that long to come to its messages.
const READING_MS: u32 = 2_000;
/// How much more may wait for a client that reads. A burst of what one call may publish, or what a room has missed
/// while its node was cut off, is a few MiB; it exists once, and each client takes it at its pace.
const READING_FACTOR: usize = 32;
/// How much of that may be the client's own: event ids of many rooms. A call of 100 messages makes 150 KiB of them.
const OWN_FACTOR: usize = 8;

/// The outbox counts in 32 bits.
const BYTES_MAX: usize = 1 << 31;

/// A limit of the outbox is exceeded: the client reads too slowly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Overflow;

/// The most slices of one vectored write; the next write takes the rest.
pub(crate) const SLICES_MAX: usize = 64;

/// The frames that wait for one client, in order.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// The oldest entry. It is not in `rest`, so that a queue of one entry, which is the usual case, needs no
    /// allocation.
    first: Option<Frames>,
    rest: VecDeque<Frames>,
    /// Bytes that wait, and those of them that no other client shares.
    bytes: u32,
    own: u32,
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
        self.bytes as usize
    }

    /// Queues all parts, unless they exceed a limit. `is_blocked`: the socket has refused bytes; otherwise what waits has
    /// not been offered to it yet.
    pub(crate) fn push<const PARTS: usize>(
        &mut self,
        parts: &[Frames; PARTS],
        is_blocked: bool,
        now_ms: u32,
        limits: &OutboxLimits,
    ) -> Result<(), Overflow> {
        // Without waiting frames any size is taken: the code that makes frames bounds their size.
        if self.first.is_some() && !self.fits(parts, is_blocked, now_ms, limits) {
            return Err(Overflow);
        }
        parts.iter().for_each(|frames| self.push_unbounded(frames.clone(), now_ms));
        Ok(())
    }

    fn fits(&self, parts: &[Frames], is_blocked: bool, now_ms: u32, limits: &OutboxLimits) -> bool {
        let sum = |of: fn(&Frames) -> usize| parts.iter().map(of).sum::<usize>();
        let entries = (1 + self.rest.len() + parts.len()) * size_of::<Frames>();
        let own = self.own as usize + sum(Frames::own_bytes);
        let bytes = self.bytes() + sum(|frames| frames.bytes().len());
        let count = self.frames as usize + sum(|frames| frames.count() as usize);
        let fits = |times: usize| bytes <= (limits.bytes * times).min(BYTES_MAX) && count <= limits.frames * times;
        let is_reading = !is_blocked || self.idle_ms(now_ms) <= READING_MS;
        let fits_reader = is_reading && own <= limits.bytes * OWN_FACTOR && fits(READING_FACTOR);
        // No budget counts the entries themselves.
        entries <= limits.bytes && (fits(1) || fits_reader) && !self.is_stale(now_ms, limits)
    }

    /// Queues frames regardless of the limits: the close frame, and messages from history, whose sender waits for the
    /// outbox itself.
    pub(crate) fn push_unbounded(&mut self, frames: Frames, now_ms: u32) {
        self.bytes += frames.bytes().len() as u32;
        self.own += frames.own_bytes() as u32;
        self.frames = self.frames.saturating_add(frames.count());
        if self.first.is_none() {
            self.since_ms = now_ms;
            self.first = Some(frames);
        } else {
            self.rest.push_back(frames);
        }
    }

    /// Whether half of the allowed bytes or frames wait.
    pub(crate) fn is_half_full(&self, limits: &OutboxLimits) -> bool {
        self.bytes() > limits.bytes / 2 || self.frames as usize > limits.frames / 2
    }

    /// For how long the socket has taken nothing, in milliseconds; without meaning while nothing waits.
    pub(crate) fn idle_ms(&self, now_ms: u32) -> u32 {
        now_ms.wrapping_sub(self.since_ms)
    }

    /// Whether frames wait and nothing has been written for longer than allowed.
    pub(crate) fn is_stale(&self, now_ms: u32, limits: &OutboxLimits) -> bool {
        self.first.is_some() && self.idle_ms(now_ms) > limits.age_ms
    }

    /// The next bytes to write, as slices for one vectored write; returns how many of `slices` are filled.
    pub(crate) fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; SLICES_MAX]) -> usize {
        let waiting = self.first.iter().chain(&self.rest);
        let mut filled = 0;
        for (slot, frames) in slices.iter_mut().zip(waiting) {
            *slot = IoSlice::new(frames.bytes());
            filled += 1;
        }
        filled
    }

    /// Notes that the socket took `written` bytes.
    pub(crate) fn advance(&mut self, mut written: usize, now_ms: u32) {
        if written > 0 {
            self.since_ms = now_ms;
        }
        while let Some(first) = &mut self.first {
            let taken = written.min(first.bytes().len());
            let own = first.own_bytes();
            first.bytes_mut().advance(taken);
            written -= taken;
            self.bytes -= taken as u32;
            self.own -= (own - first.own_bytes()) as u32;
            if first.bytes().has_remaining() {
                self.cut |= taken > 0;
                return;
            }
            self.frames -= first.count();
            self.cut = first.count() == 0; // the frame goes on in the next entry
            self.first = self.rest.pop_front();
        }
        if self.rest.capacity() > 0 {
            self.rest = VecDeque::new();
        }
    }

    /// Drops everything but a frame that has been written in part, so that a close frame can follow at a frame border.
    pub(crate) fn discard(&mut self) {
        let waiting = self.first.take().into_iter().chain(std::mem::take(&mut self.rest));
        let mut is_cut = std::mem::take(&mut self.cut);
        (self.bytes, self.own, self.frames) = (0, 0, 0);
        let since_ms = self.since_ms;
        for frames in waiting {
            if !is_cut {
                break;
            }
            is_cut = frames.count() == 0;
            self.push_unbounded(frames, since_ms);
            self.cut = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::HeldBytes, *};
    use bytes::{Bytes, BytesMut};
    use proptest::prelude::*;

    const LIMITS: OutboxLimits = OutboxLimits { bytes: 400, frames: 8, age_ms: 5000 };
    /// A time at which a client that has taken nothing since time 0 does not read.
    const LATE_MS: u32 = READING_MS + 1;

    fn shared(bytes: &[u8]) -> Frames {
        HeldBytes::default().shared(BytesMut::from(bytes), 1)
    }

    fn own(bytes: &[u8]) -> Frames {
        HeldBytes::default().own(Bytes::copy_from_slice(bytes))
    }

    fn push(outbox: &mut Outbox, frames: Frames, now_ms: u32) -> Result<(), Overflow> {
        outbox.push(&[frames], true, now_ms, &LIMITS)
    }

    #[test]
    fn overflows_by_bytes_by_count_and_by_age() {
        let mut outbox = Outbox::default();
        push(&mut outbox, shared(&[0; 300]), 0).unwrap();
        assert_eq!(push(&mut outbox, shared(&[0; 101]), LATE_MS), Err(Overflow));
        push(&mut outbox, shared(&[0; 100]), LATE_MS).unwrap();
        assert_eq!(outbox.bytes(), 400);
        let mut outbox = Outbox::default();
        for _ in 0..8 {
            push(&mut outbox, shared(b"x"), 0).unwrap();
        }
        assert_eq!(push(&mut outbox, shared(b"x"), LATE_MS), Err(Overflow));
        let mut outbox = Outbox::default();
        push(&mut outbox, shared(b"x"), u32::MAX - 10).unwrap();
        push(&mut outbox, shared(b"x"), 4000).unwrap();
        assert_eq!(push(&mut outbox, shared(b"x"), 5000), Err(Overflow), "the clock wrapped in between");
    }

    #[test]
    fn a_client_that_reads_may_fall_behind_by_what_it_shares_with_others() {
        let mut outbox = Outbox::default();
        for _ in 0..10 {
            push(&mut outbox, shared(&[0; 400]), 0).unwrap();
        }
        assert_eq!(push(&mut outbox, shared(&[0; 400]), 0), Err(Overflow), "ten entries take 400 bytes of its own");
        let mut outbox = Outbox::default();
        push(&mut outbox, shared(&[0; 300]), 0).unwrap();
        push(&mut outbox, shared(&[0; 12_500]), READING_MS).unwrap();
        assert_eq!(push(&mut outbox, shared(b"x"), LATE_MS), Err(Overflow));
        outbox.advance(1, LATE_MS);
        push(&mut outbox, shared(b"x"), LATE_MS).unwrap();
        let mut outbox = Outbox::default();
        push(&mut outbox, own(&[0; 3_200]), 0).unwrap();
        assert_eq!(push(&mut outbox, own(b"x"), 0), Err(Overflow), "copies of its own are not shared");
        push(&mut outbox, shared(b"x"), 0).unwrap();
    }

    #[test]
    fn one_large_entry_passes_when_nothing_waits() {
        push(&mut Outbox::default(), own(&[0; 1000]), 0).unwrap();
    }

    #[test]
    fn discarding_keeps_what_is_half_written() {
        let mut outbox = Outbox::default();
        push(&mut outbox, shared(b"abc"), 0).unwrap();
        push(&mut outbox, shared(b"def"), 0).unwrap();
        outbox.advance(1, 0);
        outbox.discard();
        outbox.push_unbounded(own(b"X"), 0);
        assert_eq!(drain(&mut outbox, 10), b"bcX");
    }

    #[test]
    fn discarding_keeps_both_parts_of_a_frame_or_none() {
        let event = |text: &[u8]| [shared(text).slice(0..3, 0), own(b"id")];
        for (taken, rest) in [(0, &b"X"[..]), (1, b"bcidX"), (3, b"idX"), (4, b"dX"), (5, b"X"), (6, b"efidX")] {
            let mut outbox = Outbox::default();
            outbox.push(&event(b"abc"), true, 0, &LIMITS).unwrap();
            outbox.push(&event(b"def"), true, 0, &LIMITS).unwrap();
            outbox.advance(taken, 0);
            outbox.discard();
            outbox.push_unbounded(own(b"X"), 0);
            assert_eq!(drain(&mut outbox, 10), rest, "{taken} bytes were taken");
        }
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
        assert_eq!((outbox.bytes, outbox.own, outbox.frames, outbox.rest.capacity()), (0, 0, 0, 0));
        out
    }

    proptest! {
        #[test]
        fn whatever_the_socket_takes_the_bytes_come_out_in_order(
            entries in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..9), 0..8), step in 1usize..20,
        ) {
            let mut outbox = Outbox::default();
            for (n, entry) in entries.iter().enumerate() {
                push(&mut outbox, if n % 2 == 0 { shared(entry) } else { own(entry) }, 0).unwrap();
            }
            prop_assert_eq!(drain(&mut outbox, step), entries.concat());
        }
    }
}
