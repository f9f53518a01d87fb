//! Splits `application/x-ndjson`: bytes go in as they come, whole lines come out. `subscribe` feeds it. It does not look into
//! the lines. A last line without a line feed is dropped, because the end of the body may have cut it.

use crate::size_limit::{FRAME_BYTES_MAX, TooLong};

/// The state between two pieces of a body.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    /// The beginning of a line whose end has not come.
    rest: Vec<u8>,
}

impl Lines {
    /// Takes the next bytes; gives the lines that end in them, without empty ones.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<Vec<String>, TooLong> {
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
    fn a_line_is_given_once_it_is_whole() {
        let mut lines = Lines::default();
        assert_eq!(lines.feed(b"{\"a\":1}\n\n{\"b\":"), Ok(vec!["{\"a\":1}".to_owned()]));
        assert_eq!(lines.feed(b"2}\r\n{"), Ok(vec!["{\"b\":2}".to_owned()]));
        assert_eq!(lines.feed(b""), Ok(vec![]));
    }

    #[test]
    fn an_endless_line_is_refused() {
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
