//! What this tool publishes: JSON data of a given size with a stamp in it (which run, which message of the room, and when)
//! that is found without parsing. The scoreboard writes and reads it; nothing else looks into messages.

/// The beginning of the data. A stamp is found by this text, whatever stands around it in the frame.
const OPENING: &[u8] = b"{\"bench\":\"";
const MIDDLE: &[u8] = b"\",\"pad\":\"";
const CLOSING: &[u8] = b"\"}";
/// Hexadecimal digits: the run, the sequence number, the time.
const DIGITS: [usize; 3] = [8, 12, 16];
/// The size of data without padding: no payload is smaller.
pub(super) const BYTES_MIN: usize = OPENING.len() + DIGITS[0] + DIGITS[1] + DIGITS[2] + MIDDLE.len() + CLOSING.len();

/// Identifies a message and its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) run: u32,
    /// Its number in its room, from 1.
    pub(super) sequence: u64,
    /// When it was published or, at a fixed rate, was scheduled: nanoseconds since 1970 on the publisher's steady clock.
    pub(super) at_ns: u64,
}

impl Stamp {
    /// Appends data of `bytes` bytes, at least [`BYTES_MIN`].
    pub(super) fn write(self, bytes: usize, out: &mut Vec<u8>) {
        let end = out.len() + bytes.max(BYTES_MIN) - CLOSING.len();
        out.extend_from_slice(OPENING);
        for (number, digits) in [u64::from(self.run), self.sequence, self.at_ns].into_iter().zip(DIGITS) {
            for digit in (0..digits).rev() {
                out.push(b"0123456789abcdef"[(number >> (4 * digit)) as usize & 15]);
            }
        }
        out.extend_from_slice(MIDDLE);
        out.resize(end, b'x');
        out.extend_from_slice(CLOSING);
    }

    /// The stamp of a message frame. `at` is the index where the last one was found: frames of one run differ in length by
    /// a digit now and then, so this index is mostly right and no search is needed.
    pub(super) fn find(frame: &[u8], at: &mut usize) -> Option<Self> {
        if frame.get(*at..*at + OPENING.len()) != Some(OPENING) {
            *at = frame.windows(OPENING.len()).position(|window| window == OPENING)?;
        }
        let mut rest = frame.get(*at + OPENING.len()..)?;
        let mut numbers = [0_u64; 3];
        for (number, digits) in numbers.iter_mut().zip(DIGITS) {
            for &digit in rest.get(..digits)? {
                *number = *number << 4 | u64::from((digit as char).to_digit(16)?);
            }
            rest = &rest[digits..];
        }
        let [run, sequence, at_ns] = numbers;
        Some(Self { run: run as u32, sequence, at_ns })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_json_of_the_given_size_and_is_found_again() {
        let stamp = Stamp { run: 0xdead_beef, sequence: 42, at_ns: 1_763_760_000_123_456_789 };
        for bytes in [BYTES_MIN, 128, 4096] {
            let mut data = Vec::new();
            stamp.write(bytes, &mut data);
            assert_eq!(data.len(), bytes);
            assert!(serde_json::from_slice::<serde::de::IgnoredAny>(&data).is_ok());
            let mut at = 7;
            for head in ["{\"type\":\"message\",\"data\":", "{\"data\":"] {
                let frame = [head.as_bytes(), &data, b",\"ts\":1}"].concat();
                assert_eq!(Stamp::find(&frame, &mut at), Some(stamp));
                assert_eq!(at, head.len());
            }
        }
    }

    #[test]
    fn other_frames_have_no_stamp() {
        for frame in [
            "",
            "{\"type\":\"joined\"}",
            "{\"bench\":\"00",
            "{\"bench\":\"gggggggggggggggggggggggggggggggggggggggggg\"",
        ] {
            assert_eq!(Stamp::find(frame.as_bytes(), &mut 0), None, "{frame}");
        }
    }
}
