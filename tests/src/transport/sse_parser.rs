//! A parser of event streams, written from the WHATWG HTML standard (section 9.2.6, "Interpreting an event stream") and
//! from nothing of the gateway's, so that each can find the other's mistakes. Called by `sse` with bytes as they come;
//! pure, and it never waits: a line that is incomplete stays for the next bytes.

/// What lies between two blank lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SseBlock {
    /// The event that its blank line dispatched; none where there was no data.
    pub event: Option<SseEvent>,
    /// The last event ID after it: what a browser would say as `Last-SseEvent-ID`.
    pub id: String,
    /// The reconnection time it set, in milliseconds.
    pub retry_ms: Option<u64>,
    /// Its bytes, with the blank line.
    pub raw: Vec<u8>,
}

/// What a browser would hand to a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SseEvent {
    /// `message`, if the stream does not name it.
    pub kind: String,
    /// The lines of data.
    pub data: String,
    /// The last event ID at its dispatch.
    pub id: String,
}

/// The state of one stream.
#[derive(Clone, Debug, Default)]
pub struct SseParser {
    /// The line that has begun.
    line: Vec<u8>,
    /// The block that has begun.
    raw: Vec<u8>,
    /// The last byte was a CR: a LF now belongs to it.
    after_return: bool,
    /// The first line, which may open with a byte order mark, is behind.
    past_first: bool,
    kind: String,
    data: String,
    /// Persists: only another `id` changes it.
    id: String,
    retry_ms: Option<u64>,
}

const BYTE_ORDER_MARK: &str = "\u{feff}";

impl SseParser {
    /// Takes the next bytes; each block they complete goes to `complete`.
    pub fn feed(&mut self, mut bytes: &[u8], mut complete: impl FnMut(SseBlock)) {
        while let Some(first) = bytes.first() {
            if std::mem::take(&mut self.after_return) && *first == b'\n' {
                self.raw.push(b'\n');
                bytes = &bytes[1..];
                continue;
            }
            let Some(place) = bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else {
                self.line.extend_from_slice(bytes);
                self.raw.extend_from_slice(bytes);
                return;
            };
            self.line.extend_from_slice(&bytes[..place]);
            self.raw.extend_from_slice(&bytes[..=place]);
            self.after_return = bytes[place] == b'\r';
            bytes = &bytes[place + 1..];
            if let Some(block) = self.end_line() {
                complete(block);
            }
        }
    }

    /// A line is complete; a blank one dispatches.
    fn end_line(&mut self) -> Option<SseBlock> {
        let bytes = std::mem::take(&mut self.line);
        // A line end is never part of a character, so lines can be decoded one by one as the standard decodes the whole.
        let text = String::from_utf8_lossy(&bytes);
        let mut line = &*text;
        if !std::mem::replace(&mut self.past_first, true) {
            line = line.strip_prefix(BYTE_ORDER_MARK).unwrap_or(line);
        }
        if line.is_empty() {
            return Some(self.dispatch());
        }
        match line.split_once(':') {
            Some(("", _)) => {}
            Some((field, value)) => self.field(field, value.strip_prefix(' ').unwrap_or(value)),
            None => self.field(line, ""),
        }
        None
    }

    fn field(&mut self, field: &str, value: &str) {
        match field {
            "event" => value.clone_into(&mut self.kind),
            "data" => {
                self.data.push_str(value);
                self.data.push('\n');
            }
            "id" if !value.contains('\0') => value.clone_into(&mut self.id),
            // Without a digit it is no number; browsers agree (WPT: format-field-retry-empty).
            "retry" if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) => {
                self.retry_ms = Some(value.parse().unwrap_or(u64::MAX));
            }
            _ => {}
        }
    }

    fn dispatch(&mut self) -> SseBlock {
        let (mut data, kind) = (std::mem::take(&mut self.data), std::mem::take(&mut self.kind));
        let event = data.pop().map(|_| SseEvent {
            kind: if kind.is_empty() { "message".to_owned() } else { kind },
            data,
            id: self.id.clone(),
        });
        let (raw, retry_ms) = (std::mem::take(&mut self.raw), self.retry_ms.take());
        SseBlock { event, id: self.id.clone(), retry_ms, raw }
    }
}

#[cfg(test)]
#[path = "sse_parser_tests.rs"]
mod tests;
