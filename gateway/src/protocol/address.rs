//! The secret names of sessions. A session's public id ([`SessionId`]) stands in `from`, and knowing it lets nobody act as
//! the session. What does is a secret: in the address that takes a session's posted commands, or in the value that a polling
//! client repeats.

use base64::{Engine as _, display::Base64Display, engine::general_purpose::URL_SAFE_NO_PAD};
use fanfare_broker::{NodeId, SessionId};
use sha2::{Digest as _, Sha256};
use std::{fmt, str::FromStr};
use subtle::ConstantTimeEq as _;

/// Bytes from their base64url (RFC 4648 section 5, no padding); an error for other text or another length.
fn from_text<const BYTES: usize>(text: &str) -> Result<[u8; BYTES], ()> {
    URL_SAFE_NO_PAD.decode(text).map_err(drop)?.try_into().map_err(drop)
}

fn to_text(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    fmt::Display::fmt(&Base64Display::new(bytes, &URL_SAFE_NO_PAD), f)
}

/// 144 random bits that permit to act as a session. `Debug` does not show them.
#[derive(Clone, Copy)]
pub(crate) struct Secret([u8; 18]);

impl Secret {
    pub(crate) fn random() -> Self {
        let mut bytes = [0; 18];
        getrandom::fill(&mut bytes).expect("the operating system gives random numbers");
        Self(bytes)
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
        to_text(&self.bytes(), f)
    }
}

impl FromStr for PostAddress {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::read(&from_text::<{ Self::BYTES }>(text)?).ok_or(())
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
        from_text(text).map(|bytes| Self(Secret(bytes)))
    }
}

impl fmt::Display for PollSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        to_text(&self.0.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
