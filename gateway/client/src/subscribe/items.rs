//! Splits the body of a streaming response into items: `text/event-stream` (WHATWG HTML, "Server-sent events", 9.2.5
//! and 9.2.6) and `application/x-ndjson`. `stream` feeds it. However the bytes are cut into pieces, the items are the
//! same.

use crate::http::FRAME_BYTES_MAX;

/// The server sent an item of more than [`FRAME_BYTES_MAX`].
const TOO_LONG: &str = "the server sent more than 16777216 bytes in one piece";

/// An item of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StreamItem {
    /// How long to wait before the next reconnect, in milliseconds.
    Retry(u64),
    /// A line, or the data of an event of any name.
    Event(String),
    /// The id of the last event. It comes after its event, or alone.
    Id(String),
}

/// The lines of `application/x-ndjson`, without empty ones. A last line without a line feed is dropped, because the end
/// of the body may have cut it.
#[derive(Debug, Default)]
pub(super) struct Lines {
    /// The beginning of a line whose end has not come.
    rest: Vec<u8>,
}

impl Lines {
    /// Takes the next bytes; gives the lines that end in them.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<Vec<StreamItem>, &'static str> {
        let mut lines = Vec::new();
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.rest.extend_from_slice(piece);
            if self.rest.len() > FRAME_BYTES_MAX {
                return Err(TOO_LONG);
            }
            if piece.ends_with(b"\n") {
                let line = std::mem::take(&mut self.rest);
                let text = String::from_utf8_lossy(&line);
                let text = text.trim_end_matches(['\r', '\n']);
                lines.extend((!text.is_empty()).then(|| StreamItem::Event(text.to_owned())));
            }
        }
        Ok(lines)
    }
}

/// An event stream between two pieces of its body.
#[derive(Debug, Default)]
pub(super) struct EventStream {
    /// The beginning of a line whose end has not come.
    line: Vec<u8>,
    /// The `data` lines of the event whose end has not come, each with a line feed.
    data: String,
    /// The `id` of that event.
    id: Option<String>,
    /// The last byte was a carriage return: a line feed right after it ends the same line.
    after_return: bool,
    /// A line has been read: no byte order mark can come any more.
    has_begun: bool,
}

impl EventStream {
    /// Takes the next bytes; gives the items that end in them.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<Vec<StreamItem>, &'static str> {
        let mut items = Vec::new();
        let mut rest = bytes;
        while let Some(first) = rest.first() {
            if std::mem::take(&mut self.after_return) && *first == b'\n' {
                rest = &rest[1..];
                continue;
            }
            let end = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n'));
            self.line.extend_from_slice(&rest[..end.unwrap_or(rest.len())]);
            if self.line.len() + self.data.len() > FRAME_BYTES_MAX {
                return Err(TOO_LONG);
            }
            let Some(end) = end else { break };
            self.after_return = rest[end] == b'\r';
            rest = &rest[end + 1..];
            self.end_line(&mut items);
        }
        Ok(items)
    }

    fn end_line(&mut self, items: &mut Vec<StreamItem>) {
        let line = std::mem::take(&mut self.line);
        let mut line = &*line;
        if !std::mem::replace(&mut self.has_begun, true) {
            line = line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(line);
        }
        if line.is_empty() {
            return self.end_event(items);
        }
        let text = String::from_utf8_lossy(line);
        let (field, value) = text.split_once(':').unwrap_or((&text, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => {
                self.data.push_str(value);
                self.data.push('\n');
            }
            "id" if !value.contains('\0') => self.id = Some(value.to_owned()),
            "retry" if value.bytes().all(|byte| byte.is_ascii_digit()) => {
                items.extend(value.parse().map(StreamItem::Retry));
            }
            // `event:` repeats the `type` in the data. A line that begins with a colon is a comment.
            _ => {}
        }
    }

    fn end_event(&mut self, items: &mut Vec<StreamItem>) {
        let mut data = std::mem::take(&mut self.data);
        if data.pop().is_some() {
            items.push(StreamItem::Event(data));
        }
        items.extend(self.id.take().map(StreamItem::Id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Vec<StreamItem> {
        EventStream::default().feed(text.as_bytes()).unwrap()
    }

    fn event(data: &str) -> StreamItem {
        StreamItem::Event(data.to_owned())
    }

    fn id(id: &str) -> StreamItem {
        StreamItem::Id(id.to_owned())
    }

    #[test]
    fn the_stream_of_a_gateway_is_read() {
        let text = "retry:1500\n\nevent:welcome\ndata:{\"type\":\"welcome\"}\n\n\
                    event:joined\ndata:{\"type\":\"joined\"}\nid:Epoch000.1~-\n\n\
                    data:{\"a\": \"b:  c\"}\nid:Epoch000.2~-\n\nid:Epoch000.3~-\n\n";
        let expected = [
            StreamItem::Retry(1500),
            event(r#"{"type":"welcome"}"#),
            event(r#"{"type":"joined"}"#),
            id("Epoch000.1~-"),
            event(r#"{"a": "b:  c"}"#),
            id("Epoch000.2~-"),
            id("Epoch000.3~-"),
        ];
        assert_eq!(read(text), expected);
        assert_eq!(read("retry: 5100\n\n"), [StreamItem::Retry(5100)], "as nginx writes it");
    }

    /// The `format-*` cases of web-platform-tests' `eventsource/`.
    #[test]
    fn odd_cases_of_the_standard_are_read_as_by_browsers() {
        assert_eq!(
            read("\u{feff}data:1\n\n\u{feff}data:2\n\ndata:3\n\n"),
            [event("1"), event("3")],
            "a byte order mark at the beginning"
        );
        assert_eq!(read("data:1\rdata:2\r\ndata:3\n\r\n"), [event("1\n2\n3")], "every end of line");
        assert_eq!(read(":comment\n:\ndata:1\n\n"), [event("1")]);
        assert_eq!(read("data\n\ndata\ndata\n\ndata:x"), [event(""), event("\n")], "no colon; cut at the end");
        assert_eq!(read("data:  x\n\n"), [event(" x")], "one space goes");
        assert_eq!(read("id:a\0b\ndata:x\n\n"), [event("x")]);
        assert_eq!(read("id\ndata:x\n\n"), [event("x"), id("")], "an empty id resets it");
        assert_eq!(read("retry:1x\nretry:-1\nretry: 5 \nRetry:7\nretry:\n\n"), []);
        assert_eq!(read(&format!("retry:{}\n\n", "9".repeat(30))), [], "longer than any number");
        assert_eq!(read("data:\u{fffd}\n\n"), EventStream::default().feed(b"data:\xff\n\n").unwrap());
    }

    #[test]
    fn an_endless_event_is_refused() {
        let mut stream = EventStream::default();
        let line = vec![b'x'; 1 << 20];
        let fed = (0..20).try_for_each(|_| stream.feed(&line).map(|_| ()));
        assert!(matches!(fed, Err(TOO_LONG)));
        let mut stream = EventStream::default();
        let line = format!("data:{}\n", "x".repeat(1 << 20));
        let fed = (0..20).try_for_each(|_| stream.feed(line.as_bytes()).map(|_| ()));
        assert!(matches!(fed, Err(TOO_LONG)));
    }

    #[test]
    fn a_line_is_given_once_it_is_whole() {
        let mut lines = Lines::default();
        assert_eq!(lines.feed(b"{\"a\":1}\n\n{\"b\":"), Ok(vec![event("{\"a\":1}")]));
        assert_eq!(lines.feed(b"2}\r\n{"), Ok(vec![event("{\"b\":2}")]));
        assert_eq!(lines.feed(b""), Ok(vec![]));
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut lines = Lines::default();
        let piece = vec![b'x'; 1 << 20];
        assert_eq!((0..20).try_for_each(|_| lines.feed(&piece).map(|_| ())), Err(TOO_LONG));
    }

    proptest! {
        #[test]
        fn any_chunking_gives_the_same_items(
            text in "([a\u{feff}é:\r\n ]|data:|id:|retry:|event:|[0-9]){0,60}",
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut stream = EventStream::default();
            let pieces: Vec<StreamItem> =
                cuts.windows(2).flat_map(|cut| stream.feed(&bytes[cut[0]..cut[1]]).unwrap()).collect();
            prop_assert_eq!(pieces, read(&text));
        }

        #[test]
        fn data_on_one_line_comes_out_byte_for_byte(lines in prop::collection::vec("[^\r\n ][^\r\n]*", 0..8)) {
            let text: String = lines.iter().map(|line| format!("data:{line}\n\n")).collect();
            prop_assert_eq!(read(&text), lines.iter().map(|line| event(line)).collect::<Vec<_>>());
        }

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
            let read: Vec<StreamItem> =
                cuts.windows(2).flat_map(|cut| reader.feed(&bytes[cut[0]..cut[1]]).unwrap()).collect();
            prop_assert_eq!(read, lines.iter().map(|line| event(line)).collect::<Vec<_>>());
        }
    }
}
