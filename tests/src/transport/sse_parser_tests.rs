//! The examples of the WHATWG HTML standard (section 9.2.6) and the cases of the Web Platform Tests
//! (`eventsource/format-*`). Each stream is parsed whole, byte by byte, and cut in two at every position.

use super::{SseBlock, SseEvent, SseParser};

fn blocks(pieces: &[&[u8]]) -> Vec<SseBlock> {
    let (mut parser, mut blocks) = (SseParser::default(), Vec::new());
    for piece in pieces {
        parser.feed(piece, |block| blocks.push(block));
    }
    blocks
}

/// The blocks of a stream, after checking that they are the same however the stream is cut.
fn parse(stream: &[u8]) -> Vec<SseBlock> {
    let whole = blocks(&[stream]);
    assert_eq!(blocks(&stream.chunks(1).collect::<Vec<_>>()), whole);
    for cut in 0..=stream.len() {
        assert_eq!(blocks(&[&stream[..cut], &stream[cut..]]), whole, "cut at {cut}");
    }
    whole
}

fn events(stream: &str) -> Vec<SseEvent> {
    parse(stream.as_bytes()).into_iter().filter_map(|block| block.event).collect()
}

fn data(stream: &str) -> Vec<String> {
    events(stream).into_iter().map(|event| event.data).collect()
}

/// The data and the id of each event.
fn with_ids(stream: &str) -> Vec<(String, String)> {
    events(stream).into_iter().map(|event| (event.data, event.id)).collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(one, other)| ((*one).to_owned(), (*other).to_owned())).collect()
}

// Examples of the standard.

#[test]
fn consecutive_lines_of_data_are_one_event() {
    assert_eq!(data("data: YHOO\ndata: +2\ndata: 10\n\n"), ["YHOO\n+2\n10"]);
}

#[test]
fn an_id_holds_until_another_one_and_an_empty_one_resets_it() {
    let stream = ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n";
    assert_eq!(with_ids(stream), pairs(&[("first event", "1"), ("second event", ""), (" third event", "")]));
    let without_its_end = stream.strip_suffix('\n').unwrap();
    assert_eq!(data(without_its_end), ["first event", "second event"], "an event without its blank line is dropped");
}

#[test]
fn empty_data_makes_an_event_and_absent_data_makes_none() {
    assert_eq!(data("data\n\ndata\ndata\n\ndata:"), ["", "\n"]);
    assert_eq!(data("event:x\n\nid:1\n\n:\n\n\n\n"), [""; 0]);
}

#[test]
fn one_space_after_the_colon_is_not_part_of_the_value() {
    assert_eq!(data("data:test\n\ndata: test\n\n"), ["test", "test"]);
    assert_eq!(data("data:\ttest\rdata: \ndata:test\n\n"), ["\ttest\n\ntest"]);
}

// Cases of the Web Platform Tests.

#[test]
fn a_byte_order_mark_is_dropped_once_at_the_beginning() {
    assert_eq!(data("\u{feff}data:1\n\n\u{feff}data:2\n\ndata:3\n\n"), ["1", "3"]);
    assert_eq!(data("\u{feff}\u{feff}data:1\n\ndata:2\n\n"), ["2"]);
    assert_eq!(data("\u{feff}\n\ndata:1\n\n"), ["1"]);
}

#[test]
fn lines_end_with_lf_cr_or_crlf() {
    assert_eq!(data("data:test\r\ndata\ndata:test\r\n\r"), ["test\n\ntest"]);
    for mark in ["\n", "\r", "\r\n"] {
        let stream = format!("data:a{mark}id:1{mark}{mark}data:b{mark}{mark}");
        assert_eq!(with_ids(&stream), pairs(&[("a", "1"), ("b", "1")]), "{mark:?}");
    }
}

#[test]
fn a_carriage_return_ends_a_line_before_the_next_byte_comes() {
    assert_eq!(blocks(&[b"data:x\r\r"]).len(), 1);
    let cut_in_the_line_end: Vec<SseBlock> = blocks(&[b"data:x\r\n\r", b"\ndata:y\r", b"\n\r\n"]);
    let texts: Vec<_> =
        cut_in_the_line_end.into_iter().filter_map(|block| block.event).map(|event| event.data).collect();
    assert_eq!(texts, ["x", "y"]);
}

#[test]
fn field_names_are_compared_byte_by_byte() {
    let stream =
        "data:\0\ndata:  2\rData:1\ndata\0:2\ndata:1\r\0data:4\nda-ta:3\rdata_5\ndata:3\rdata:\r\n data:32\ndata:4\n\n";
    assert_eq!(data(stream), ["\0\n 2\n1\n3\n\n4"]);
    assert_eq!(data("data:test\n data\ndata\nfoobar:xxx\njustsometext\n:thisisacommentyay\n\n"), ["test\n"]);
}

#[test]
fn comments_are_ignored() {
    let long = "x".repeat(5_000);
    let stream = format!("data:1\r:\0\n:\r\ndata:2\n:{long}\rdata:3\n:data:fail\r:{long}\ndata:4\n\n");
    // Cutting this long stream at every position would take long and show nothing new.
    let texts: Vec<_> = blocks(&[stream.as_bytes()]).into_iter().filter_map(|block| block.event).collect();
    assert_eq!(texts[0].data, "1\n2\n3\n4");
}

#[test]
fn the_last_name_of_an_event_counts_and_the_default_is_message() {
    let names = |stream: &str| events(stream).into_iter().map(|event| event.kind).collect::<Vec<_>>();
    assert_eq!(names("event:test\ndata:x\n\ndata:x\n\n"), ["test", "message"]);
    assert_eq!(
        names("event:one\nevent: two\ndata:x\n\nevent: \ndata:x\n\nevent\ndata\n\n"),
        ["two", "message", "message"]
    );
    assert_eq!(names("event:lost\n\ndata:x\n\n"), ["message"], "a blank line resets the name");
}

#[test]
fn an_id_with_a_nul_is_ignored() {
    assert_eq!(
        with_ids("id:1\ndata:a\n\nid:2\0\ndata:b\n\nid: …\ndata:c\n\n"),
        pairs(&[("a", "1"), ("b", "1"), ("c", "…")])
    );
}

#[test]
fn a_block_of_an_id_alone_changes_the_id_and_dispatches_nothing() {
    let blocks = parse(b"id:1\ndata:a\n\nid:2\n\n:beat\n\n");
    let seen: Vec<_> = blocks.iter().map(|block| (block.event.is_some(), block.id.as_str())).collect();
    assert_eq!(seen, [(true, "1"), (false, "2"), (false, "2")]);
    assert_eq!(blocks[1].raw, b"id:2\n\n");
}

#[test]
fn a_reconnection_time_consists_of_digits() {
    let retry = |stream: &str| parse(stream.as_bytes())[0].retry_ms;
    assert_eq!(retry("retry:2500\n\n"), Some(2_500));
    assert_eq!(retry("retry: 03000\ndata:x\n\n"), Some(3_000));
    assert_eq!(retry("retry:1\nretry:99999999999999999999\n\n"), Some(u64::MAX));
    for bogus in ["1000x", "", "-1", "1.5", "1e3", " 5", "٣"] {
        assert_eq!(retry(&format!("retry:{bogus} \n\n")), None, "{bogus:?}");
        let kept = if bogus == " 5" { Some(5) } else { Some(3_000) };
        assert_eq!(retry(&format!("retry:3000\nretry:{bogus}\n\n")), kept, "{bogus:?}");
    }
}

#[test]
fn bytes_that_are_not_utf_8_are_replaced() {
    let stream = b"data:ok\xe2\x80\xa6\ndata:\xe2\x28\xff\n\n";
    assert_eq!(parse(stream)[0].event.as_ref().unwrap().data, "ok…\n\u{fffd}(\u{fffd}");
    assert_eq!(data("data:a\u{2028}b\u{2029}c\u{85}d\u{b}e\u{c}f\n\n"), ["a\u{2028}b\u{2029}c\u{85}d\u{b}e\u{c}f"]);
}

#[test]
fn the_raw_bytes_of_all_blocks_make_up_the_stream() {
    let stream = b"\xef\xbb\xbfretry:1\r\n\r\nid:1\ndata:x\r\r:c\n\n";
    let raw: Vec<u8> = parse(stream).into_iter().flat_map(|block| block.raw).collect();
    assert_eq!(raw, stream);
}
