//! Reads `application/x-ndjson`: bytes go in as they come, whole lines come out. `subscribe` feeds it. Pure; what a line
//! says is not its business, and a line that the end of the body cuts is never one.

use super::{FRAME_BYTES_MAX, TooLong};

/// A body, as far as it has been read.
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// The line that is not whole yet.
    rest: Vec<u8>,
}

impl Lines {
    /// Takes the next bytes; gives all lines that are whole with them, but for empty ones.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<Vec<String>, TooLong> {
        let mut lines = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.rest.extend_from_slice(piece);
            if self.rest.len() > FRAME_BYTES_MAX {
                return Err(TooLong);
            }
            if piece.ends_with(b"\n") {
                let line = std::mem::take(&mut self.rest);
                let text = String::from_utf8_lossy(&line);
                lines.extend(Some(text.trim_end_matches(['\r', '\n']).to_owned()).filter(|line| !line.is_empty()));
            }
        }
        Ok(lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_are_whole_or_wait() {
        let mut lines = Lines::default();
        assert_eq!(lines.feed(b"{\"a\":1}\n\n{\"b\":"), Ok(vec!["{\"a\":1}".to_owned()]));
        assert_eq!(lines.feed(b"2}\r\n{"), Ok(vec!["{\"b\":2}".to_owned()]));
        assert_eq!(lines.feed(b""), Ok(vec![]));
    }

    #[test]
    fn a_line_without_an_end_is_not_kept_without_one() {
        let mut lines = Lines::default();
        let piece = vec![b'x'; 1 << 20];
        assert_eq!((0..20).try_for_each(|_| lines.feed(&piece).map(|_| ())), Err(TooLong));
    }

    proptest! {
        #[test]
        fn any_chunking_gives_the_same_lines(
            lines in prop::collection::vec("[^\r\n]+", 0..8),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut reader = Lines::default();
            let read: Vec<String> =
                cuts.windows(2).flat_map(|cut| reader.feed(&bytes[cut[0]..cut[1]]).unwrap()).collect();
            prop_assert_eq!(read, lines);
        }
    }
}
