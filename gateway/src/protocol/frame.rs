//! The bytes around a JSON text on each transport that stays open. Members with the same [`FrameShape`] share one
//! encoded frame; this works for WebSocket too, since a server's frames are not masked (RFC 6455 section 5.1).

use bytes::{BufMut, Bytes, BytesMut};

/// How a JSON text is framed for a client. The discriminant is an index into tables with one entry for each shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FrameShape {
    /// WebSocket text frames.
    WebSocket,
    /// Server-sent events.
    Sse,
    /// Lines of JSON: HTTP streaming.
    Line,
}

impl FrameShape {
    pub(crate) const COUNT: usize = 3;
    pub(crate) const ALL: [Self; Self::COUNT] = [Self::WebSocket, Self::Sse, Self::Line];

    /// The label of the transport in metrics.
    pub(crate) const fn transport(self) -> &'static str {
        match self {
            Self::WebSocket => "ws",
            Self::Sse => "sse",
            Self::Line => "stream",
        }
    }
}

const FIN: u8 = 0x80;
const TEXT: u8 = 0x1;

/// Appends a JSON text, given in parts, in `shape`. WebSocket: one unfragmented text frame (RFC 6455 section 5.2).
/// Server-sent event: one line of data, since JSON without white space has no line breaks (WHATWG HTML, section 9.2.5);
/// the event is left open for its `id` and the blank line, which [`end_event`] adds.
pub(crate) fn put_frame(out: &mut BytesMut, shape: FrameShape, parts: &[&[u8]]) {
    match shape {
        FrameShape::WebSocket => put_websocket(out, TEXT, parts),
        FrameShape::Sse => {
            put_parts(out, b"data:", parts);
            out.put_u8(b'\n');
        }
        FrameShape::Line => {
            put_parts(out, b"", parts);
            out.put_u8(b'\n');
        }
    }
}

/// Begins a server-sent event with a name, by which pages listen for it. Messages have no name.
pub(crate) fn name_event(out: &mut BytesMut, name: &[u8]) {
    put_parts(out, b"event:", &[name, b"\n"]);
}

/// Ends a server-sent event: its `id`, if it has one, and the blank line.
pub(crate) fn end_event(out: &mut BytesMut, id: Option<&[u8]>) {
    if let Some(id) = id {
        put_parts(out, b"id:", &[id, b"\n"]);
    }
    out.put_u8(b'\n');
}

fn put_parts(out: &mut BytesMut, before: &[u8], parts: &[&[u8]]) {
    out.reserve(before.len() + 2 + parts.iter().map(|part| part.len()).sum::<usize>());
    out.put_slice(before);
    parts.iter().for_each(|part| out.put_slice(part));
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
pub(crate) mod control_frame {
    use super::{Bytes, BytesMut, put_websocket};
    use crate::protocol::close::CloseReason;

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
        put_frame(&mut out, FrameShape::WebSocket, &[&vec![b'x'; len]]);
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
    fn an_event_is_a_line_of_data_its_id_and_a_blank_line() {
        let mut out = BytesMut::new();
        put_frame(&mut out, FrameShape::Sse, &[b"{\"a\":", b"1}"]);
        end_event(&mut out, Some(b"Xk2p9QaB.1"));
        end_event(&mut out, None);
        assert_eq!(&out[..], b"data:{\"a\":1}\nid:Xk2p9QaB.1\n\n\n");
        let mut out = BytesMut::new();
        put_frame(&mut out, FrameShape::Line, &[b"{}"]);
        assert_eq!(&out[..], b"{}\n");
    }

    #[test]
    fn a_close_frame_has_code_and_text() {
        let bytes = control_frame::close(crate::protocol::close::CloseReason::Draining);
        assert_eq!(&bytes[..], b"\x88\x0a\x03\xf4draining");
    }

    #[test]
    fn every_shape_has_its_own_index() {
        for (index, shape) in FrameShape::ALL.into_iter().enumerate() {
            assert_eq!(shape as usize, index);
        }
    }
}
