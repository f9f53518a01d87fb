//! The names of sessions. `SessionId` is public, as it stands in `from`: knowing it lets nobody act as the session. What
//! does is a secret, in the address of a session's commands or in the value that a polling client repeats.

use fanfare_broker::{NodeId, Origin};
use serde::{Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use std::{fmt, str::FromStr};
use subtle::ConstantTimeEq as _;

/// 96 random bits, written as 16 characters of base64url (RFC 4648 section 5, no padding).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SessionId([u8; 12]);

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// base64url of bytes whose number is a multiple of three, so that nothing is padded.
fn put_text(bytes: &[u8], out: &mut [u8]) {
    for (three, four) in bytes.chunks_exact(3).zip(out.chunks_exact_mut(4)) {
        let bits = u32::from(three[0]) << 16 | u32::from(three[1]) << 8 | u32::from(three[2]);
        for (i, c) in four.iter_mut().enumerate() {
            *c = ALPHABET[(bits >> (18 - 6 * i)) as usize & 63];
        }
    }
}

/// Bytes from their base64url.
fn read_text<const BYTES: usize>(text: &str) -> Result<[u8; BYTES], ()> {
    if text.len() != BYTES / 3 * 4 {
        return Err(());
    }
    let mut bytes = [0; BYTES];
    for (four, three) in text.as_bytes().chunks_exact(4).zip(bytes.chunks_exact_mut(3)) {
        let mut bits = 0u32;
        for c in four {
            let value = ALPHABET.iter().position(|a| a == c).ok_or(())?;
            bits = bits << 6 | value as u32;
        }
        three.copy_from_slice(&bits.to_be_bytes()[1..]);
    }
    Ok(bytes)
}

/// Random bytes; without them from the operating system nothing here would be safe, so it aborts.
fn random<const BYTES: usize>() -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    getrandom::fill(&mut bytes).expect("the operating system gives random numbers");
    bytes
}

impl SessionId {
    /// A fresh id.
    pub(crate) fn random() -> Self {
        Self(random())
    }

    /// The 16 characters.
    pub(crate) fn text(self) -> [u8; 16] {
        let mut out = [0; 16];
        put_text(&self.0, &mut out);
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
        read_text(text).map(Self)
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

/// Whoever knows it may act as the session: 144 random bits. `Debug` does not show it.
#[derive(Clone, Copy)]
pub(crate) struct Secret([u8; 18]);

impl Secret {
    pub(crate) fn random() -> Self {
        Self(random())
    }

    /// Takes the same time wherever they differ.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

/// Where a session that cannot send takes its commands: which node's, which shard's, which entry; and its secret. One
/// path segment of 48 characters. `place` is the shard's own and means nothing elsewhere.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PostAddress {
    pub(crate) node: NodeId,
    pub(crate) shard: u16,
    pub(crate) place: u64,
    pub(crate) secret: Secret,
}

impl PostAddress {
    const BYTES: usize = 36;

    /// The bytes, as they travel between nodes.
    pub(crate) fn bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.node.0.to_be_bytes());
        bytes[8..10].copy_from_slice(&self.shard.to_be_bytes());
        bytes[10..18].copy_from_slice(&self.place.to_be_bytes());
        bytes[18..].copy_from_slice(&self.secret.0);
        bytes
    }

    /// Takes what [`PostAddress::bytes`] gave; `None` for another length.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let (node, rest) = bytes.split_first_chunk()?;
        let (shard, rest) = rest.split_first_chunk()?;
        let (place, secret) = rest.split_first_chunk()?;
        Some(Self {
            node: NodeId(u64::from_be_bytes(*node)),
            shard: u16::from_be_bytes(*shard),
            place: u64::from_be_bytes(*place),
            secret: Secret(secret.try_into().ok()?),
        })
    }
}

impl fmt::Display for PostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; Self::BYTES / 3 * 4];
        put_text(&self.bytes(), &mut text);
        f.write_str(std::str::from_utf8(&text).unwrap_or_default())
    }
}

impl FromStr for PostAddress {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::read(&read_text::<{ Self::BYTES }>(text)?).ok_or(())
    }
}

/// What a polling client repeats so that its polls are one session's.
#[derive(Clone, Copy)]
pub(crate) struct PollSession(Secret);

impl PollSession {
    pub(crate) fn random() -> Self {
        Self(Secret::random())
    }

    /// The session's public name. Any node finds the same one; the secret cannot be found from it.
    pub(crate) fn id(&self) -> SessionId {
        let digest = Sha256::digest(self.0.0);
        let mut id = [0; 12];
        id.copy_from_slice(&digest[..12]);
        SessionId(id)
    }
}

impl FromStr for PollSession {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        read_text(text).map(|bytes| Self(Secret(bytes)))
    }
}

impl fmt::Display for PollSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; 24];
        put_text(&self.0.0, &mut text);
        f.write_str(std::str::from_utf8(&text).unwrap_or_default())
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

    #[test]
    fn an_address_and_back() {
        let address = PostAddress { node: NodeId(7), shard: 3, place: 1 << 40 | 5, secret: Secret::random() };
        let text = address.to_string();
        assert_eq!(text.len(), 48);
        let back: PostAddress = text.parse().unwrap();
        assert_eq!((back.node, back.shard, back.place), (NodeId(7), 3, 1 << 40 | 5));
        assert!(back.secret.is(&address.secret) && !back.secret.is(&Secret::random()));
        for wrong in [&text[1..], "", &text.replace(|_: char| true, "*")] {
            assert!(wrong.parse::<PostAddress>().is_err());
        }
        assert!(!format!("{address:?}").contains(&text[24..]), "secrets are not shown");
    }

    #[test]
    fn a_polling_session_has_one_public_name_which_is_not_its_secret() {
        let session = PollSession::random();
        let again: PollSession = session.to_string().parse().unwrap();
        assert_eq!(again.id(), session.id());
        assert!(!session.to_string().contains(&session.id().to_string()));
        assert!("x".repeat(23).parse::<PollSession>().is_err());
    }
}
