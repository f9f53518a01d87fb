//! Secrets that let a client act as its session: in the address to which it posts its commands, and in the value that a
//! polling client repeats. The id of a session ([`SessionId`]) is public and grants nothing.

use base64::{Engine as _, display::Base64Display, engine::general_purpose::URL_SAFE_NO_PAD};
use fanfare_broker::{NodeId, SessionId};
use sha2::{Digest as _, Sha256};
use std::{fmt, str::FromStr};
use subtle::ConstantTimeEq as _;

/// Decodes base64url without padding (RFC 4648 section 5); an error for other text or another length.
fn from_text<const BYTES: usize>(text: &str) -> Result<[u8; BYTES], ()> {
    URL_SAFE_NO_PAD.decode(text).map_err(drop)?.try_into().map_err(drop)
}

fn to_text(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    fmt::Display::fmt(&Base64Display::new(bytes, &URL_SAFE_NO_PAD), f)
}

/// 144 random bits that prove that a client is the session. `Debug` does not show them.
#[derive(Clone, Copy)]
pub(crate) struct Secret([u8; 18]);

impl Secret {
    pub(crate) fn random() -> Self {
        let mut bytes = [0; 18];
        getrandom::fill(&mut bytes).expect("the operating system gives random numbers");
        Self(bytes)
    }

    /// Compares in constant time.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

/// The address to which a client without a sending connection posts its commands: node, shard, slot of the session in the
/// shard, and the secret. As text one path segment of 48 characters. Only the shard can read `slot`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PostAddress {
    pub(crate) node: NodeId,
    pub(crate) shard: u16,
    pub(crate) slot: u64,
    pub(crate) secret: Secret,
}

impl PostAddress {
    const BYTES: usize = 36;

    /// The bytes, as they travel between nodes.
    pub(crate) fn bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.node.0.to_be_bytes());
        bytes[8..10].copy_from_slice(&self.shard.to_be_bytes());
        bytes[10..18].copy_from_slice(&self.slot.to_be_bytes());
        bytes[18..].copy_from_slice(&self.secret.0);
        bytes
    }

    /// Reads what [`PostAddress::bytes`] wrote; `None` for another length.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        let (node, rest) = bytes.split_first_chunk()?;
        let (shard, rest) = rest.split_first_chunk()?;
        let (slot, secret) = rest.split_first_chunk()?;
        Some(Self {
            node: NodeId(u64::from_be_bytes(*node)),
            shard: u16::from_be_bytes(*shard),
            slot: u64::from_be_bytes(*slot),
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

/// The value that a polling client repeats, so that its polls belong to one session.
#[derive(Clone, Copy)]
pub(crate) struct PollSession(Secret);

impl PollSession {
    pub(crate) fn random() -> Self {
        Self(Secret::random())
    }

    /// The public id of the session: a hash, so that every node finds the same id and nobody finds the secret from it.
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
        let address = PostAddress { node: NodeId(7), shard: 3, slot: 1 << 40 | 5, secret: Secret::random() };
        let text = address.to_string();
        assert_eq!(text.len(), 48);
        let back: PostAddress = text.parse().unwrap();
        assert_eq!((back.node, back.shard, back.slot), (NodeId(7), 3, 1 << 40 | 5));
        assert!(back.secret.is(&address.secret) && !back.secret.is(&Secret::random()));
        for wrong in [&text[1..], "", &text.replace(|_: char| true, "*")] {
            assert!(wrong.parse::<PostAddress>().is_err());
        }
        assert!(!format!("{address:?}").contains(&text[24..]), "secrets are not shown");
    }

    #[test]
    fn the_public_id_of_a_polling_session_does_not_show_its_secret() {
        let session = PollSession::random();
        let again: PollSession = session.to_string().parse().unwrap();
        assert_eq!(again.id(), session.id());
        assert!(!session.to_string().contains(&session.id().to_string()));
        assert!("x".repeat(23).parse::<PollSession>().is_err());
    }
}
