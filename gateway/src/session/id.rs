//! `SessionId`: the public name of a session, as it stands in `from`. Knowing it lets nobody act as the session.

use fanfare_broker::Origin;
use serde::{Serialize, Serializer};
use std::{fmt, str::FromStr};

/// 96 random bits, written as 16 characters of base64url (RFC 4648 section 5, no padding).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SessionId([u8; 12]);

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

impl SessionId {
    /// A fresh id; without random numbers from the operating system nothing here would be safe, so it aborts.
    pub(crate) fn random() -> Self {
        let mut bytes = [0; 12];
        getrandom::fill(&mut bytes).expect("the operating system gives random numbers");
        Self(bytes)
    }

    /// The 16 characters.
    pub(crate) fn text(self) -> [u8; 16] {
        let mut out = [0; 16];
        for (three, four) in self.0.chunks_exact(3).zip(out.chunks_exact_mut(4)) {
            let bits = u32::from(three[0]) << 16 | u32::from(three[1]) << 8 | u32::from(three[2]);
            for (i, c) in four.iter_mut().enumerate() {
                *c = ALPHABET[(bits >> (18 - 6 * i)) as usize & 63];
            }
        }
        out
    }
}

impl From<SessionId> for Origin {
    fn from(id: SessionId) -> Self {
        Self(id.0)
    }
}

impl From<Origin> for SessionId {
    fn from(origin: Origin) -> Self {
        Self(origin.0)
    }
}

impl FromStr for SessionId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let text: &[u8; 16] = text.as_bytes().try_into().map_err(|_| ())?;
        let mut bytes = [0; 12];
        for (four, three) in text.chunks_exact(4).zip(bytes.chunks_exact_mut(3)) {
            let mut bits = 0u32;
            for c in four {
                let value = ALPHABET.iter().position(|a| a == c).ok_or(())?;
                bits = bits << 6 | value as u32;
            }
            three.copy_from_slice(&bits.to_be_bytes()[1..]);
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(std::str::from_utf8(&self.text()).unwrap_or_default())
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for SessionId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        for _ in 0..100 {
            let id = SessionId::random();
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        assert!("short".parse::<SessionId>().is_err());
        assert!("AAAAAAAAAAAAAAA*".parse::<SessionId>().is_err());
    }
}
