//! `FrameShape` = protocol × carrier: all members whose bytes are the same share one encoded frame. Here are the
//! carriers' envelopes; a server's WebSocket frames are unmasked, which is why they can be shared at all.

use bytes::{BufMut, Bytes, BytesMut};

/// How a text reaches a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FrameShape {
    /// The native protocol in WebSocket text frames.
    NativeWebSocket,
}

const FIN: u8 = 0x80;
const TEXT: u8 = 0x1;

/// Appends `text` in `shape`. WebSocket: one unfragmented text frame (RFC 6455 section 5.2).
pub(crate) fn put_frame(out: &mut BytesMut, shape: FrameShape, text: &[&[u8]]) {
    match shape {
        FrameShape::NativeWebSocket => put_websocket(out, TEXT, text),
    }
}

fn put_websocket(out: &mut BytesMut, opcode: u8, parts: &[&[u8]]) {
    let len: usize = parts.iter().map(|p| p.len()).sum();
    out.reserve(10 + len);
    out.put_u8(FIN | opcode);
    match len {
        0..=125 => out.put_u8(len as u8),
        126..=0xFFFF => {
            out.put_u8(126);
            out.put_u16(len as u16);
        }
        _ => {
            out.put_u8(127);
            out.put_u64(len as u64);
        }
    }
    for part in parts {
        out.put_slice(part);
    }
}

/// WebSocket control frames (RFC 6455 section 5.5).
pub(crate) mod control {
    use super::{Bytes, BytesMut, put_websocket};
    use crate::close::CloseReason;

    const CLOSE: u8 = 0x8;
    const PING: u8 = 0x9;

    /// A close frame with the reason's code and text.
    pub(crate) fn close(reason: CloseReason) -> Bytes {
        let mut out = BytesMut::new();
        put_websocket(&mut out, CLOSE, &[&reason.code().to_be_bytes(), reason.text().as_bytes()]);
        out.freeze()
    }

    /// An empty ping.
    pub(crate) fn ping() -> Bytes {
        Bytes::from_static(&[super::FIN | PING, 0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(len: usize) -> Vec<u8> {
        let mut out = BytesMut::new();
        put_frame(&mut out, FrameShape::NativeWebSocket, &[&vec![b'x'; len]]);
        out.to_vec()
    }

    #[test]
    fn the_three_lengths_of_rfc_6455() {
        assert_eq!(frame(0), [0x81, 0]);
        assert_eq!(frame(125)[..2], [0x81, 125]);
        assert_eq!(frame(126)[..4], [0x81, 126, 0, 126]);
        assert_eq!(frame(65_535)[..4], [0x81, 126, 0xFF, 0xFF]);
        assert_eq!(frame(65_536)[..10], [0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(frame(65_536).len(), 10 + 65_536);
    }

    #[test]
    fn a_close_frame_has_code_and_text() {
        let bytes = control::close(crate::close::CloseReason::Draining);
        assert_eq!(&bytes[..], b"\x88\x0a\x03\xf4draining");
    }
}
