//! `SessionId`: the public id of a session, as members see it and as nodes send it to each other. The gateway makes it
//! when a session opens; the broker stores and compares it.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use std::{fmt, str::FromStr};

/// The id of a session, unique in the cluster: 96 random bits, written as 16 characters of base64url (RFC 4648 section
/// 5, without padding). It is public: a client that knows it cannot act as the session.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub [u8; Self::BYTES]);

/// The text is not 16 characters of base64url.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a session id has 16 characters of base64url")]
pub struct SessionIdInvalid;

impl SessionId {
    /// Bytes of an id.
    pub const BYTES: usize = 12;
    /// Characters of an id's text.
    pub const TEXT: usize = Self::BYTES / 3 * 4;

    /// Makes a random id.
    ///
    /// # Panics
    /// If the operating system gives no random numbers.
    #[must_use]
    pub fn random() -> Self {
        let mut bytes = [0; Self::BYTES];
        getrandom::fill(&mut bytes).expect("the operating system gives random numbers");
        Self(bytes)
    }

    /// The 16 characters.
    #[must_use]
    pub fn text(self) -> [u8; Self::TEXT] {
        let mut text = [0; Self::TEXT];
        let written = URL_SAFE_NO_PAD.encode_slice(self.0, &mut text);
        debug_assert_eq!(written, Ok(Self::TEXT));
        text
    }
}

impl FromStr for SessionId {
    type Err = SessionIdInvalid;

    fn from_str(text: &str) -> Result<Self, SessionIdInvalid> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| SessionIdInvalid)?;
        bytes.try_into().map(Self).map_err(|_| SessionIdInvalid)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_back_from_its_sixteen_characters() {
        for _ in 0..1000 {
            let id = SessionId::random();
            assert_eq!(id.to_string().len(), SessionId::TEXT);
            assert_eq!(id.to_string().parse(), Ok(id));
        }
    }

    #[test]
    fn malformed_ids_are_refused() {
        for text in ["", "short", "AAAAAAAAAAAAAAA*", "AAAAAAAAAAAAAAA=", "AAAAAAAAAAAAAAAAA", "AAAAAAAAAAAAAAAAAAAA"] {
            assert_eq!(text.parse::<SessionId>(), Err(SessionIdInvalid), "{text}");
        }
    }
}
