//! `Cursor`: how far a reader has got in a room, written `epoch.offset`. Opaque to clients; compared only here and in
//! `position.rs`.

use std::{fmt, str::FromStr};

/// A message's number within its epoch. The first message has 1; 0 stands before the first message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Offset(pub u64);

impl Offset {
    /// The offset of the next message.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// One incarnation of a room's numbering: 8 characters of `[A-Za-z0-9_-]`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Epoch([u8; Self::LEN]);

impl Epoch {
    /// Characters of an epoch.
    pub const LEN: usize = 8;
    /// Stands for every epoch of another length, which another version may make. It is equal to no room's epoch.
    pub const FOREIGN: Self = Self([0; Self::LEN]);

    /// Makes an epoch from 48 random bits: two incarnations of one room get the same with a chance of 2^-48.
    #[must_use]
    pub fn random() -> Self {
        Self::from_bits(random_u64())
    }

    /// The epoch that stands for the low 48 of these bits.
    #[must_use]
    pub(crate) fn from_bits(bits: u64) -> Self {
        const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-";
        Self(std::array::from_fn(|i| ALPHABET[(bits >> (6 * i)) as usize & 63]))
    }

    /// Reads the characters of [`Epoch::as_bytes`]; `None` if one of them is not allowed.
    #[must_use]
    pub fn from_bytes(bytes: [u8; Self::LEN]) -> Option<Self> {
        bytes.iter().all(|b| is_epoch_byte(*b)).then_some(Self(bytes))
    }

    /// The characters.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }
}

/// 64 random bits from the operating system. Panics without them: ids that can be guessed would be unsafe.
pub(crate) fn random_u64() -> u64 {
    getrandom::u64().expect("the operating system gives random numbers")
}

fn is_epoch_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'_' || b == b'-'
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.0).unwrap_or_default())
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How far a reader has got in a room: everything after this message is still to be delivered.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cursor {
    /// The epoch of the offset.
    pub epoch: Epoch,
    /// The last message that the reader has got.
    pub offset: Offset,
}

impl Cursor {
    /// Makes a cursor.
    #[must_use]
    pub fn new(epoch: Epoch, offset: Offset) -> Self {
        Self { epoch, offset }
    }
}

/// The text is not a cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a cursor is epoch.offset")]
pub struct CursorInvalid;

impl FromStr for Cursor {
    type Err = CursorInvalid;

    fn from_str(text: &str) -> Result<Self, CursorInvalid> {
        let (epoch, offset) = text.split_once('.').ok_or(CursorInvalid)?;
        if !(Epoch::LEN..=64).contains(&epoch.len()) || !epoch.bytes().all(is_epoch_byte) {
            return Err(CursorInvalid);
        }
        if offset.is_empty() || !offset.bytes().all(|b| b.is_ascii_digit()) {
            return Err(CursorInvalid);
        }
        let offset = Offset(offset.parse().map_err(|_| CursorInvalid)?);
        let epoch = epoch.as_bytes().try_into().map_or(Epoch::FOREIGN, Epoch);
        Ok(Self { epoch, offset })
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.offset.0)
    }
}

impl fmt::Debug for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_back_from_its_text() {
        let cursor: Cursor = "Xk2p9QaB.42".parse().unwrap();
        assert_eq!(cursor.offset, Offset(42));
        assert_eq!(cursor.to_string(), "Xk2p9QaB.42");
        let longer: Cursor = "Xk2p9QaBcc.42".parse().unwrap();
        assert_eq!(longer.epoch, Epoch::FOREIGN);
        for bad in ["", "x", ".1", "Xk2p9Qa.1", "Xk2p9QaB.", "Xk2p9QaB.-1", "Xk2p9QaB.1x", "Xk2p9Q B.1", "Xk2p9QaB.+1"]
        {
            assert_eq!(bad.parse::<Cursor>(), Err(CursorInvalid), "{bad:?}");
        }
        assert_eq!("Xk2p9QaB.99999999999999999999".parse::<Cursor>(), Err(CursorInvalid));
    }

    #[test]
    fn a_random_epoch_is_a_valid_one() {
        let epoch = Epoch::random();
        assert_eq!(Epoch::from_bytes(*epoch.as_bytes()), Some(epoch));
        assert_ne!(epoch, Epoch::random());
    }
}
