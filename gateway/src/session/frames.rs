//! Frames that wait for clients, and the memory that they hold. A frame for many clients is one buffer, which all of
//! their outboxes refer to. So memory is counted by buffer, from when it is made until the last reference is gone, and
//! not by outbox.

use bytes::{Bytes, BytesMut};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// One or more whole frames in one buffer, queued as one entry.
#[derive(Debug, Clone)]
pub(crate) struct Frames {
    bytes: Bytes,
    /// Zero: the frame goes on in the next entry.
    count: u32,
    /// Other clients may refer to the same buffer, so it is not charged to this one.
    is_shared: bool,
}

impl Frames {
    /// These bytes of the buffer, with this many whole frames.
    pub(crate) fn slice(&self, range: std::ops::Range<usize>, count: u32) -> Self {
        Self { bytes: self.bytes.slice(range), count, is_shared: self.is_shared }
    }

    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    pub(super) fn bytes_mut(&mut self) -> &mut Bytes {
        &mut self.bytes
    }

    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    /// Bytes that only one client needs.
    pub(super) fn own_bytes(&self) -> usize {
        if self.is_shared { 0 } else { self.bytes.len() }
    }
}

/// The bytes of all buffers that were counted here and are still referred to.
#[derive(Debug, Clone, Default)]
pub(crate) struct HeldBytes(Arc<AtomicUsize>);

impl HeldBytes {
    pub(crate) fn total(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Frames that many clients get.
    pub(crate) fn shared(&self, bytes: BytesMut, count: u32) -> Frames {
        let held = self.hold(bytes.capacity());
        Frames { bytes: held.with(bytes), count, is_shared: true }
    }

    /// A frame that one client gets.
    pub(crate) fn own(&self, bytes: Bytes) -> Frames {
        Frames { bytes: self.hold(bytes.len()).with(bytes), count: 1, is_shared: false }
    }

    /// Counts `bytes` for as long as the hold lives.
    pub(crate) fn hold(&self, bytes: usize) -> Hold {
        self.0.fetch_add(bytes, Ordering::Relaxed);
        Hold { held: self.clone(), bytes }
    }
}

/// Memory that is counted until this is dropped.
#[derive(Debug, Default)]
pub(crate) struct Hold {
    held: HeldBytes,
    bytes: usize,
}

impl Hold {
    /// Counts until the last reference to this buffer is gone.
    pub(crate) fn with(self, bytes: impl AsRef<[u8]> + Send + 'static) -> Bytes {
        match bytes.as_ref() {
            [] => Bytes::new(),
            _ => Bytes::from_owner(Counted { bytes, _hold: self }),
        }
    }

    /// Counts `bytes` from now on.
    pub(crate) fn set(&mut self, bytes: usize) {
        // Wraps as the counter does, so that the difference may be negative.
        self.held.0.fetch_add(bytes.wrapping_sub(self.bytes), Ordering::Relaxed);
        self.bytes = bytes;
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.held.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

struct Counted<T> {
    bytes: T,
    _hold: Hold,
}

impl<T: AsRef<[u8]>> AsRef<[u8]> for Counted<T> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_counts_once_until_its_last_reference_is_gone() {
        let held = HeldBytes::default();
        let frames = held.shared(BytesMut::from(&[0; 100][..]), 2);
        let members = vec![frames.clone(); 1000];
        let part = frames.slice(10..20, 1);
        assert_eq!(held.total(), 100);
        drop((frames, members));
        assert_eq!(held.total(), 100);
        drop(part);
        assert_eq!(held.total(), 0);
        let mut hold = held.hold(5);
        hold.set(3);
        assert_eq!(held.total(), 3);
        let bytes = hold.with(Bytes::from_static(b"abc"));
        assert_eq!((held.total(), &bytes[..]), (3, &b"abc"[..]));
        drop(bytes);
        assert_eq!(held.total(), 0);
    }
}
