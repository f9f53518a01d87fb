//! A parser of event streams. It follows the WHATWG HTML standard (section 9.2.6, "Interpreting an event stream") and
//! shares no code with the gateway, so that each can reveal mistakes of the other. Called by `sse` with bytes as they
//! come; pure. It keeps an incomplete line until the next bytes come.

/// The lines up to a blank line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SseBlock {
    /// The event that the blank line dispatched; `None` if the block has no data.
    pub event: Option<SseEvent>,
    /// The last event ID after the block, which a browser would send as `Last-Event-ID`.
    pub id: String,
    /// The reconnection time that the block set, in milliseconds.
    pub retry_ms: Option<u64>,
    /// The bytes of the block, with the blank line.
    pub raw: Vec<u8>,
}

/// An event that a browser would pass to a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SseEvent {
    /// The name of the event; `message` if the stream does not name it.
    pub kind: String,
    /// The lines of data, joined with line feeds.
    pub data: String,
    /// The last event ID at the time of the event.
    pub id: String,
}

/// The state of one stream.
#[derive(Clone, Debug, Default)]
pub struct SseParser {
    /// The bytes of the incomplete line.
    line: Vec<u8>,
    /// The bytes of the incomplete block.
    raw: Vec<u8>,
    /// Whether the last byte was a CR, so that a LF would belong to the same line end.
    after_return: bool,
    /// Whether the first line, which may begin with a byte order mark, has been read.
    past_first: bool,
    kind: String,
    data: String,
    /// The last event ID, which stays until another `id` changes it.
    id: String,
    retry_ms: Option<u64>,
}

const BYTE_ORDER_MARK: &str = "\u{feff}";

impl SseParser {
    /// Parses the next bytes and calls `complete` with each block that they complete.
    pub fn feed(&mut self, mut bytes: &[u8], mut complete: impl FnMut(SseBlock)) {
        while let Some(first) = bytes.first() {
            if std::mem::take(&mut self.after_return) && *first == b'\n' {
                self.raw.push(b'\n');
                bytes = &bytes[1..];
                continue;
            }
            let Some(end) = bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else {
                self.line.extend_from_slice(bytes);
                self.raw.extend_from_slice(bytes);
                return;
            };
            self.line.extend_from_slice(&bytes[..end]);
            self.raw.extend_from_slice(&bytes[..=end]);
            self.after_return = bytes[end] == b'\r';
            bytes = &bytes[end + 1..];
            if let Some(block) = self.end_line() {
                complete(block);
            }
        }
    }

    /// Interprets a complete line; a blank one completes a block.
    fn end_line(&mut self) -> Option<SseBlock> {
        let bytes = std::mem::take(&mut self.line);
        // The standard decodes the whole stream. Decoding line by line gives the same, because no UTF-8 character contains
        // a line end.
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
            // Browsers ignore an empty value (WPT: format-field-retry-empty).
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
