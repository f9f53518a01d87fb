//! The part of RFC 6455 that a load tool's hot path needs: it reads whole, unmasked frames of a server in place, and writes
//! masked frames of a client. A library would copy every message into a `String` and hold a buffer per connection; with
//! 200,000 deliveries a second and 18,000 connections that would cost as much as the gateway that is being measured. A
//! fragmented or masked frame is an error. Links and publishers use this file.

use tokio_tungstenite::tungstenite::protocol::frame::{
    FrameHeader,
    coding::{Control, Data, OpCode},
};

/// The largest frame that is read, in bytes. The largest message that this tool publishes (`PAYLOAD_BYTES_MAX` in `options`,
/// 128 KiB) fits with everything around it.
pub(super) const FRAME_BYTES_MAX: usize = 192 * 1024;

/// A frame of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Frame<'a> {
    /// A message of the protocol above.
    Text(&'a [u8]),
    /// The client answers with [`pong`].
    Ping(&'a [u8]),
    /// The end, with its code (1005 for a close frame without one) and reason.
    Close(u16, &'a [u8]),
    /// Nothing to do.
    Pong,
}

/// The first frame of `bytes` and its length, or `None` while its end has not come. A frame that no gateway sends is an
/// error.
pub(super) fn next(bytes: &[u8]) -> Result<Option<(Frame<'_>, usize)>, &'static str> {
    let &[first, second, ..] = bytes else { return Ok(None) };
    if first & 0x70 != 0 || second & 0x80 != 0 {
        return Err("a frame with reserved bits or a mask");
    }
    let (head, length) = match (second, bytes) {
        (126, &[_, _, a, b, ..]) => (4, usize::from(u16::from_be_bytes([a, b]))),
        (127, &[_, _, 0, 0, 0, 0, a, b, c, d, ..]) => (10, u32::from_be_bytes([a, b, c, d]) as usize),
        (127, &[_, _, _, _, _, _, _, _, _, _, ..]) => return Err("a frame of more than 4 GiB"),
        (126 | 127, _) => return Ok(None),
        (length, _) => (2, usize::from(length)),
    };
    if length > FRAME_BYTES_MAX {
        return Err("a frame that is larger than this command reads");
    }
    let Some(payload) = bytes.get(head..head + length) else { return Ok(None) };
    let frame = match first {
        0x81 => Frame::Text(payload),
        0x89 => Frame::Ping(payload),
        0x8a => Frame::Pong,
        0x88 => match payload {
            [a, b, reason @ ..] => Frame::Close(u16::from_be_bytes([*a, *b]), reason),
            _ => Frame::Close(1005, &[]),
        },
        _ => return Err("a fragmented or binary frame"),
    };
    Ok(Some((frame, head + length)))
}

/// Appends a text frame.
pub(super) fn text(payload: &[u8], out: &mut Vec<u8>) {
    masked(OpCode::Data(Data::Text), payload, out);
}

/// Appends the answer to a ping.
pub(super) fn pong(payload: &[u8], out: &mut Vec<u8>) {
    masked(OpCode::Control(Control::Pong), payload, out);
}

/// A mask of zeros is valid (RFC 6455 section 5.3) and leaves the payload as it is. Masks protect proxies from scripts in
/// browsers; this tool is no browser.
fn masked(opcode: OpCode, payload: &[u8], out: &mut Vec<u8>) {
    let header = FrameHeader { opcode, mask: Some([0; 4]), ..FrameHeader::default() };
    // Writing to memory cannot fail.
    let _ = header.format(payload.len() as u64, out);
    out.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server's frame, made from a client's.
    fn unmasked(payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        text(payload, &mut frame);
        frame[1] &= 0x7f;
        let mask = frame.len() - payload.len() - 4;
        frame.drain(mask..mask + 4);
        frame
    }

    #[test]
    fn frames_of_every_length_are_read_back_and_a_cut_one_waits() {
        for length in [0, 1, 125, 126, 127, 65535, 65536, 100_000] {
            let payload = vec![b'x'; length];
            let mut bytes = unmasked(&payload);
            for cut in [0, 1, 2, 3, 5, 9, bytes.len() - 1] {
                let cut = cut.min(bytes.len() - 1);
                assert_eq!(next(&bytes[..cut]), Ok(None), "{length} cut at {cut}");
            }
            let whole = bytes.len();
            bytes.extend_from_slice(b"\x89");
            assert_eq!(next(&bytes), Ok(Some((Frame::Text(&payload), whole))));
        }
    }

    #[test]
    fn control_frames_are_recognised_and_unexpected_frames_refused() {
        assert_eq!(next(b"\x89\x01a"), Ok(Some((Frame::Ping(b"a"), 3))));
        assert_eq!(next(b"\x8a\x00"), Ok(Some((Frame::Pong, 2))));
        assert_eq!(next(b"\x88\x00"), Ok(Some((Frame::Close(1005, b""), 2))));
        assert_eq!(next(b"\x88\x04\x11\x9cab"), Ok(Some((Frame::Close(4508, b"ab"), 6))));
        for bytes in
            [&b"\x01\x01a"[..], b"\x82\x01a", b"\xc1\x01a", b"\x81\x81a", b"\x81\x7f\x00\x00\x00\x00\xff\xff\xff\xff"]
        {
            assert!(next(bytes).is_err(), "{bytes:?}");
        }
    }
}
