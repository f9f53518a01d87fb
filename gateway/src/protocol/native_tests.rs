//! Tests of the native codec: every command's fields, what is refused and how, and the bytes of a message.

use super::*;
use fanfare_broker::{MessageId, NodeId, SessionId};
use proptest::prelude::*;

fn refused(text: &str) -> (RequestId, ErrorCode) {
    match decode(text) {
        Err(DecodeError::Refused { id, refusal }) => (id, refusal.code),
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn a_join_with_everything() {
    let text = r#"{"type":"join","id":9007199254740992,"room":"chat:1","since":"Xk2p9QaB.42","history":5,
        "presence":true,"echo":false,"exclude":["AAAAAAAAAAAAAAAA"],"x-unknown":[1,{"a":2}]}"#;
    let Ok(Command { id: Some(REQUEST_ID_MAX), request: Request::Join { room, options } }) = decode(text) else {
        panic!("{:?}", decode(text))
    };
    assert_eq!(room, "chat:1");
    assert_eq!(options.since.unwrap().to_string(), "Xk2p9QaB.42");
    assert_eq!((options.last, options.wants_presence, options.skips_own), (5, true, true));
    assert_eq!(options.exclude.len(), 1);
}

#[test]
fn a_publish_borrows_its_data() {
    let text = r#"{"data": {"n": 1.0} ,"type":"pub\u006cish","room":"a","event":"e\"","key":"k"}"#;
    let Ok(Command { id: None, request: Request::Publish(request) }) = decode(text) else {
        panic!("{:?}", decode(text))
    };
    assert_eq!(
        (request.data, request.event.as_deref(), request.key.as_deref()),
        ("{\"n\": 1.0}", Some("e\""), Some("k"))
    );
    assert!(text.as_bytes().as_ptr_range().contains(&request.data.as_ptr()));
}

#[test]
fn what_is_not_an_object_is_not_our_protocol() {
    for text in ["", "x", "1", "[]", "null", "\"a\"", "{", "{\"type\":}", "{}x", "{\"a\":01}", "[{\"type\":\"ping\"}]"]
    {
        assert_eq!(decode(text).err(), Some(DecodeError::NotOurProtocol), "{text:?}");
    }
}

#[test]
fn wrong_fields_are_refused_with_the_id() {
    use ErrorCode::{BadRequest, UnknownType};
    for (text, id, code) in [
        (r#"{}"#, None, BadRequest),
        (r#"{"type":1}"#, None, BadRequest),
        (r#"{"type":"nope","id":3}"#, Some(3), UnknownType),
        (r#"{"type":"join","id":3}"#, Some(3), BadRequest),
        (r#"{"type":"join","id":3,"room":5}"#, Some(3), BadRequest),
        (r#"{"type":"join","id":3,"room":"a","since":"x"}"#, Some(3), BadRequest),
        (r#"{"type":"join","id":3,"room":"a","since":7}"#, Some(3), BadRequest),
        (r#"{"type":"join","id":3,"room":"a","history":-1}"#, Some(3), BadRequest),
        (r#"{"type":"join","id":3,"room":"a","presence":"yes"}"#, Some(3), BadRequest),
        (r#"{"type":"join","id":3,"room":"a","exclude":["x"]}"#, Some(3), BadRequest),
        (r#"{"type":"join","id":3,"room":"a","exclude":"AAAAAAAAAAAAAAAA"}"#, Some(3), BadRequest),
        (r#"{"type":"publish","id":3,"room":"a"}"#, Some(3), BadRequest),
        (r#"{"type":"publish","id":3,"room":"a","data":1,"event":""}"#, Some(3), BadRequest),
        (r#"{"type":"ping","id":-1}"#, None, BadRequest),
        (r#"{"type":"ping","id":1.5}"#, None, BadRequest),
        (r#"{"type":"ping","id":"1"}"#, None, BadRequest),
        (r#"{"type":"ping","id":9007199254740993}"#, None, BadRequest),
        (r#"{"type":"auth"}"#, None, BadRequest),
        (r#"{"type":"ping","type":"ping"}"#, None, BadRequest),
    ] {
        assert_eq!(refused(text), (id, code), "{text}");
    }
}

#[test]
fn null_is_absent_but_as_data() {
    let publish = decode(r#"{"type":"publish","room":"a","data":null,"event":null}"#);
    assert!(matches!(
        publish,
        Ok(Command { request: Request::Publish(PublishRequest { data: "null", event: None, .. }), .. })
    ));
    assert!(matches!(decode(r#"{"type":"ping","id":null}"#), Ok(Command { id: None, request: Request::Ping })));
}

#[test]
fn the_bytes_of_a_message() {
    let session: SessionId = "AAAAAAAAAAAAAAAA".parse().unwrap();
    let payload = payload("{ \"n\" : 1.0 }", Some("typing"), Sender::Session(session, Some(&User::new("u42"))));
    let publication = Publication {
        cursor: Some("Xk2p9QaB.42".parse().unwrap()),
        id: MessageId { node: NodeId(1), number: 1 },
        author: None,
        ts_ms: 1_763_760_000_123,
        payload: payload.into(),
    };
    let text = MessageText::new(&Room::parse("chat:1").unwrap(), &publication);
    assert_eq!(
        String::from_utf8(text.parts(&publication).concat()).unwrap(),
        r#"{"type":"message","room":"chat:1","cursor":"Xk2p9QaB.42","data":{"n":1.0},"event":"typing","from":{"session":"AAAAAAAAAAAAAAAA","user":"u42"},"ts":1763760000123}"#
    );
    let bare = Publication { cursor: None, payload: super::payload("1", None, Sender::Backend).into(), ..publication };
    let text = MessageText::new(&Room::parse("a").unwrap(), &bare);
    let bytes = text.parts(&bare).concat();
    assert_eq!(bytes, br#"{"type":"message","room":"a","data":1,"ts":1763760000123}"#);
}

/// Whatever was in an entry of history became part of a frame: a browser lost its connection again and again, with all its
/// rooms.
#[test]
fn what_is_not_the_json_of_a_message_is_no_payload() {
    let real = payload("[\"\u{7f}\\n\"]", Some("a\nb"), Sender::Backend);
    assert!(is_payload(&real), "{real:?}");
    for damaged in
        ["", "damaged", "\"data\":", "\"data\":1}", "\"data\":1,\n\"event\":\"a\"", "\"event\":\"a\"", "\"data\":\"a"]
    {
        assert!(!is_payload(damaged.as_bytes()), "{damaged}");
    }
    assert!(!is_payload(b"\"data\":\"\xFF\""), "not UTF-8");
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,200}") {
        let _ = decode(&text);
    }

    #[test]
    fn no_object_of_our_fields_panics(
        field in "type|id|room|data|event|key|since|history|limit|presence|echo|exclude|token",
        value in "-?[0-9]{1,20}|\"[a-z\\\\\"]{0,5}\"|null|true|\\[\\]|\\{\\}|\\[\"x\"\\]",
        kind in "join|leave|publish|presence|history|auth|ping|nope",
    ) {
        let _ = decode(&format!("{{\"type\":\"{kind}\",\"room\":\"a\",\"{field}\":{value}}}"));
    }
}
