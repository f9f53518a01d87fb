//! `Room`: the checked name of a room. Made where bytes enter the process, and cloned from there on.

use std::{borrow::Borrow, fmt, sync::Arc};

/// A room's name: 1 to 255 bytes of visible ASCII without `{ } " \`. A clone is a reference count.
///
/// The excluded characters keep names safe inside JSON strings, Redis hash tags and URLs without escaping.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Room(Arc<str>);

/// Why a name is not a room's name. The text may be shown to clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RoomInvalid {
    /// Empty, or longer than [`Room::BYTES_MAX`].
    #[error("a room name has 1 to 255 bytes")]
    Length,
    /// Has a character that is not allowed.
    #[error("a room name is visible ASCII without {{ }} \" \\")]
    Alphabet,
    /// Begins with `$`.
    #[error("room names that begin with $ are reserved")]
    Reserved,
}

impl Room {
    /// The longest name, in bytes.
    pub const BYTES_MAX: usize = 255;

    /// Checks and copies a name that a client or a back end sent.
    ///
    /// # Errors
    /// [`RoomInvalid`] names the first rule that is broken.
    pub fn parse(name: &str) -> Result<Self, RoomInvalid> {
        if name.is_empty() || name.len() > Self::BYTES_MAX {
            return Err(RoomInvalid::Length);
        }
        if !name.bytes().all(|b| matches!(b, 0x21..=0x7E) && !matches!(b, b'{' | b'}' | b'"' | b'\\')) {
            return Err(RoomInvalid::Alphabet);
        }
        if name.starts_with('$') {
            return Err(RoomInvalid::Reserved);
        }
        Ok(Self(name.into()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for Room {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_visible_ascii_without_braces_quotes_and_backslash() {
        for good in ["a", "chat:1", "a,b", "~!@#%^&*()_+-=[]|;',./<>?`", "x$", &"x".repeat(255)] {
            assert_eq!(Room::parse(good).unwrap().as_str(), good);
        }
        for (bad, why) in [
            ("", RoomInvalid::Length),
            (&*"x".repeat(256), RoomInvalid::Length),
            ("a b", RoomInvalid::Alphabet),
            ("a\u{7f}", RoomInvalid::Alphabet),
            ("é", RoomInvalid::Alphabet),
            ("a{b", RoomInvalid::Alphabet),
            ("a}b", RoomInvalid::Alphabet),
            ("a\"b", RoomInvalid::Alphabet),
            ("a\\b", RoomInvalid::Alphabet),
            ("a\nb", RoomInvalid::Alphabet),
            ("$sys", RoomInvalid::Reserved),
        ] {
            assert_eq!(Room::parse(bad), Err(why), "{bad:?}");
        }
    }
}
