//! The bytes that nodes send to each other: one fixed header, then the payload as it came. Written once, and read
//! without a copy.
//!
//! ```text
//!  0  version   u8   1; envelopes of other versions are counted and dropped
//!  1  kind      u8   1 message, 2 joined, 3 left, 4 control, 5 messages
//!  2  flags     u8   bit 0: the message has a cursor
//!  3  epoch     8 characters, or zeros
//! 11  offset    u64  the message's offset; for joined and left the presence version
//! 19  node      u64  ┐
//! 27  number    u64  │ the tail: written by the publisher, stored in history as it is;
//! 35  ts        u64  │ the header before it is written by the script that assigns
//! 43  author    12   │ the offset
//! 55  payload        ┘
//! ```
//! Kind 5 has several messages of one room: for each its length (u32) and its tail. The offset is that of the first
//! one. Integers are big-endian. A presence payload is `user bytes u16, user, info`; user bytes 0xFFFF: anonymous.

use crate::{
    Cursor, Epoch, MessageId, NodeId, Offset, PresenceEvent, PresenceKind, Publication, RoomEvent, SessionId, User, Who,
};
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The version of the layout.
const VERSION: u8 = 1;
/// The offset of the tail: the length of the header before it.
const TAIL: usize = 19;
const PAYLOAD: usize = 55;
const HAS_CURSOR: u8 = 1;
const ANONYMOUS: u16 = u16::MAX;

/// Whether these bytes are the payload of a message. What is not was damaged, or is another program's.
pub type IsPayload = fn(&[u8]) -> bool;

/// What an envelope carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum EnvelopeKind {
    Message = 1,
    Joined = 2,
    Left = 3,
    Control = 4,
    /// Several publications of one room with consecutive offsets.
    Messages = 5,
}

/// A decoded envelope.
#[derive(Debug, Clone)]
pub(crate) enum Envelope {
    /// Something that happened in a room.
    Room(RoomEvent),
    /// Publications of one room, in order.
    Messages(Vec<Publication>),
    /// A control message between nodes.
    Control(Bytes),
}

/// The first three bytes of an envelope. The script that assigns the offset writes the rest of the header.
pub(crate) fn head(kind: EnvelopeKind, has_cursor: bool) -> [u8; 3] {
    [VERSION, kind as u8, if has_cursor { HAS_CURSOR } else { 0 }]
}

/// The whole header of an envelope without cursor.
fn header(kind: EnvelopeKind, number: u64) -> [u8; TAIL] {
    let mut bytes = [0; TAIL];
    bytes[..3].copy_from_slice(&head(kind, false));
    bytes[11..].copy_from_slice(&number.to_be_bytes());
    bytes
}

/// Appends a tail: everything from `node` on.
pub(crate) fn put_tail(out: &mut BytesMut, id: MessageId, ts_ms: u64, author: Option<SessionId>, payload: &[u8]) {
    out.reserve(PAYLOAD - TAIL + payload.len());
    out.put_u64(id.node.0);
    out.put_u64(id.number);
    out.put_u64(ts_ms);
    out.put_slice(&author.map_or([0; SessionId::BYTES], |session| session.0));
    out.put_slice(payload);
}

/// The whole envelope of one or several messages of a room without history.
pub(crate) fn messages_without_cursor(kind: EnvelopeKind, tails: impl Iterator<Item = BytesMut>) -> Bytes {
    let mut out = BytesMut::from(&header(kind, 0)[..]);
    for tail in tails {
        if kind == EnvelopeKind::Messages {
            out.put_u32(tail.len() as u32); // messages are limited to far less
        }
        out.put_slice(&tail);
    }
    out.freeze()
}

/// The whole envelope of a control message.
pub(crate) fn control(from: NodeId, payload: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(PAYLOAD + payload.len());
    out.put_slice(&header(EnvelopeKind::Control, 0));
    put_tail(&mut out, MessageId { node: from, number: 0 }, 0, None, payload);
    out.freeze()
}

/// The payload of a presence event.
pub(crate) fn presence_payload(who: &Who, info: Option<&[u8]>) -> Vec<u8> {
    let (len, name) = match who {
        Who::User(user) => (user.as_str().len().min(usize::from(ANONYMOUS) - 1) as u16, user.as_str().as_bytes()),
        Who::Session(_) => (ANONYMOUS, &[][..]),
    };
    let mut out = Vec::with_capacity(2 + name.len() + info.map_or(0, <[u8]>::len));
    out.extend(len.to_be_bytes());
    out.extend(&name[..name.len().min(usize::from(len))]);
    out.extend(info.unwrap_or_default());
    out
}

/// Reads an envelope. Its payload is a slice of `bytes`. `None` for other versions and kinds, short input, and a
/// malformed cursor or user name.
pub(crate) fn decode(bytes: &Bytes) -> Option<Envelope> {
    if bytes.len() < PAYLOAD || bytes[0] != VERSION {
        return None;
    }
    let number = (&bytes[11..]).get_u64();
    let cursor = match bytes[2] & HAS_CURSOR {
        0 => None,
        _ => Some(Cursor::new(Epoch::from_bytes(*bytes[3..].first_chunk()?)?, Offset(number))),
    };
    if bytes[1] == EnvelopeKind::Messages as u8 {
        return decode_tails(bytes.slice(TAIL..), cursor).map(Envelope::Messages);
    }
    let publication = decode_tail(&bytes.slice(TAIL..), cursor)?;
    Some(match bytes[1] {
        k if k == EnvelopeKind::Message as u8 => Envelope::Room(RoomEvent::Message(publication)),
        k if k == EnvelopeKind::Joined as u8 => presence(PresenceKind::Joined, &publication, number)?,
        k if k == EnvelopeKind::Left as u8 => presence(PresenceKind::Left, &publication, number)?,
        k if k == EnvelopeKind::Control as u8 => Envelope::Control(publication.payload),
        _ => return None,
    })
}

/// Reads a tail, as history stores it, of a message whose cursor is known. `None` for short input.
pub(crate) fn decode_tail(tail: &Bytes, cursor: Option<Cursor>) -> Option<Publication> {
    let mut fields = tail.get(..PAYLOAD - TAIL)?;
    let id = MessageId { node: NodeId(fields.get_u64()), number: fields.get_u64() };
    let ts_ms = fields.get_u64();
    let author = SessionId(fields.try_into().ok()?);
    let author = (author.0 != [0; SessionId::BYTES]).then_some(author);
    Some(Publication { cursor, id, author, ts_ms, payload: tail.slice(PAYLOAD - TAIL..) })
}

/// Reads several tails, each after its length. `cursor` is that of the first one.
fn decode_tails(mut rest: Bytes, mut cursor: Option<Cursor>) -> Option<Vec<Publication>> {
    let mut list = Vec::new();
    while !rest.is_empty() {
        let len = rest.try_get_u32().ok()? as usize;
        if len > rest.len() {
            return None;
        }
        list.push(decode_tail(&rest.split_to(len), cursor)?);
        cursor = cursor.map(|last| Cursor::new(last.epoch, last.offset.next()));
    }
    Some(list)
}

fn presence(kind: PresenceKind, p: &Publication, version: u64) -> Option<Envelope> {
    let (who, info) = read_presence_payload(&p.payload, p.author)?;
    Some(Envelope::Room(RoomEvent::Presence(PresenceEvent { kind, who, info, version })))
}

/// Reads the payload of a presence event. An anonymous member is named by its session.
pub(crate) fn read_presence_payload(payload: &Bytes, session: Option<SessionId>) -> Option<(Who, Option<Bytes>)> {
    let (len, rest) = payload.split_first_chunk::<2>()?;
    let (who, name_len) = match u16::from_be_bytes(*len) {
        ANONYMOUS => (Who::Session(session?), 0),
        len => {
            let name = rest.get(..usize::from(len))?;
            (Who::User(User::new(std::str::from_utf8(name).ok()?)), usize::from(len))
        }
    };
    let info = payload.slice(2 + name_len..);
    Some((who, (!info.is_empty()).then_some(info)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: MessageId = MessageId { node: NodeId(0x0102_0304_0506_0708), number: 9 };

    fn with_cursor(payload: &[u8]) -> Bytes {
        let mut out = BytesMut::new();
        out.put_slice(&head(EnvelopeKind::Message, true));
        out.put_slice(b"Xk2p9QaB");
        out.put_u64(42);
        put_tail(&mut out, ID, 1_763_760_000_123, Some(SessionId(*b"abcdefghijkl")), payload);
        out.freeze()
    }

    /// Golden bytes: nodes of two versions share a Redis during a deploy, so the layout never changes.
    #[test]
    fn the_layout_of_a_message_is_stable() {
        let bytes = with_cursor(b"hi");
        let golden = b"\x01\x01\x01Xk2p9QaB\0\0\0\0\0\0\0\x2a\x01\x02\x03\x04\x05\x06\x07\x08\0\0\0\0\0\0\0\x09\
            \0\0\x01\x9a\xa8\x49\xcc\x7babcdefghijklhi";
        assert_eq!(&bytes[..], &golden[..]);
        let Some(Envelope::Room(RoomEvent::Message(p))) = decode(&bytes) else { panic!("a message") };
        assert_eq!(p.cursor.unwrap().to_string(), "Xk2p9QaB.42");
        assert_eq!((p.id, p.ts_ms, p.author), (ID, 1_763_760_000_123, Some(SessionId(*b"abcdefghijkl"))));
        assert_eq!(&p.payload[..], b"hi");
        assert_eq!(p.payload.as_ptr(), bytes[PAYLOAD..].as_ptr(), "the payload is not copied");
    }

    #[test]
    fn the_layout_of_a_leave_is_stable() {
        let mut out = BytesMut::from(&header(EnvelopeKind::Left, 7)[..]);
        let payload = presence_payload(&Who::User(User::new("u42")), Some(b"{}"));
        put_tail(&mut out, ID, 0, Some(SessionId(*b"abcdefghijkl")), &payload);
        assert_eq!(&out[PAYLOAD..], b"\0\x03u42{}");
        let Some(Envelope::Room(RoomEvent::Presence(e))) = decode(&out.freeze()) else { panic!("a presence event") };
        assert_eq!((e.kind, e.version), (PresenceKind::Left, 7));
        assert_eq!(e.who, Who::User(User::new("u42")));
        assert_eq!(e.info.as_deref(), Some(&b"{}"[..]));
    }

    #[test]
    fn an_anonymous_member_is_named_by_its_session() {
        let mut out = BytesMut::from(&header(EnvelopeKind::Joined, 1)[..]);
        let session = SessionId(*b"abcdefghijkl");
        put_tail(&mut out, ID, 0, Some(session), &presence_payload(&Who::Session(session), None));
        let Some(Envelope::Room(RoomEvent::Presence(e))) = decode(&out.freeze()) else { panic!("a presence event") };
        assert_eq!((e.who, e.info), (Who::Session(session), None));
    }

    #[test]
    fn the_layout_of_several_messages_is_stable() {
        let mut out = BytesMut::from(&head(EnvelopeKind::Messages, true)[..]);
        out.put_slice(b"Xk2p9QaB");
        out.put_u64(42);
        for payload in ["hi", "", "there"] {
            out.put_u32((PAYLOAD - TAIL + payload.len()) as u32);
            put_tail(&mut out, ID, 7, Some(SessionId(*b"abcdefghijkl")), payload.as_bytes());
        }
        let whole = out.freeze();
        let Some(Envelope::Messages(list)) = decode(&whole) else { panic!("messages") };
        let seen: Vec<_> = list.iter().map(|p| (p.cursor.unwrap().to_string(), &p.payload[..])).collect();
        let due: [(_, &[u8]); 3] = [("Xk2p9QaB.42", b"hi"), ("Xk2p9QaB.43", b""), ("Xk2p9QaB.44", b"there")];
        assert_eq!(seen, due.map(|(cursor, payload)| (cursor.to_owned(), payload)));
        for cut in TAIL + 1..whole.len() {
            let whole_messages = cut == TAIL + 42 || cut == TAIL + 82;
            assert_eq!(decode(&whole.slice(..cut)).is_some(), whole_messages && cut >= PAYLOAD, "cut to {cut}");
        }
    }

    #[test]
    fn other_versions_and_kinds_are_unreadable() {
        for (at, value) in [(0, 2), (1, 0), (1, 6), (3, b'*')] {
            let mut bytes = with_cursor(b"hi").to_vec();
            bytes[at] = value;
            assert!(decode(&bytes.into()).is_none(), "byte {at} = {value}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes.into());
        }

        #[test]
        fn no_damaged_envelope_panics(at in 0usize..60, value: u8, cut in 0usize..64) {
            let mut bytes = with_cursor(b"\0\x03u42").to_vec();
            let at = at % bytes.len();
            bytes[at] = value;
            bytes.truncate(bytes.len().min(cut.max(1)));
            let _ = decode(&bytes.into());
        }
    }
}
