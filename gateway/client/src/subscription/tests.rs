//! What a subscription does about frames, cursors, poll responses and ends. No clock and no socket.

use super::*;
use std::time::Duration;

const WELCOME: &str = r#"{"type":"welcome","session":"s","node":"n","ping_ms":5000,"limits":{}}"#;

fn of(rooms: &[&str], since: Option<&str>, history: Option<u32>) -> Subscription {
    Subscription::new(rooms.iter().map(|room| (*room).to_owned()).collect(), since, history).unwrap()
}

fn joins(subscription: &mut Subscription) -> Vec<String> {
    match subscription.frame(WELCOME) {
        SubscriptionAction::Begin { silence } => assert_eq!(silence.as_secs(), 20),
        other => panic!("{other:?}"),
    }
    subscription.joins()
}

#[test]
fn every_room_resumes_after_the_last_message_seen() {
    let mut subscription = of(&["a", "b", "c"], None, Some(3));
    assert_eq!(joins(&mut subscription)[0], r#"{"history":3,"id":0,"room":"a","type":"join"}"#);
    let note = subscription.frame(r#"{"type":"joined","room":"a","cursor":"Epoch000.4"}"#);
    assert_eq!(note, SubscriptionAction::Note("joined a at Epoch000.4".to_owned()));
    subscription.frame(r#"{"type":"joined","room":"b","cursor":"Epoch001.0"}"#);
    subscription.frame(r#"{"type":"joined","room":"c"}"#);
    let message =
        r#"{"type":"message","room":"a","cursor":"Epoch000.5","data":{"type":"x"},"from":{"session":"s"},"ts":1}"#;
    assert_eq!(subscription.frame(message), SubscriptionAction::Message);
    assert_eq!(subscription.frame(r#"{"type":"message","room":"c","data":1,"ts":1}"#), SubscriptionAction::Message);
    let gap = subscription.frame(r#"{"type":"gap","room":"b","from":"Epoch001.0","to":"Epoch002.9"}"#);
    let unknown =
        "gap in b: messages may be missing (a new epoch: nobody knows how many); the room goes on after Epoch002.9";
    assert_eq!(gap, SubscriptionAction::Note(unknown.to_owned()));
    assert_eq!(
        joins(&mut subscription),
        [
            r#"{"id":0,"room":"a","since":"Epoch000.5","type":"join"}"#,
            r#"{"id":1,"room":"b","since":"Epoch002.9","type":"join"}"#,
            r#"{"id":2,"room":"c","type":"join"}"#,
        ]
    );
}

#[test]
fn a_cursor_of_several_rooms_is_split_into_its_parts() {
    let mut subscription = of(&["a", "b", "c"], Some("Epoch000.1~-~"), None);
    let joins = joins(&mut subscription);
    assert!(joins[0].contains("Epoch000.1") && !joins[1].contains("since") && !joins[2].contains("since"));
    let wrong = Subscription::new(vec!["a".to_owned()], Some("x.1~y.2"), None).unwrap_err();
    assert_eq!(wrong.exit_code, 78);
}

#[test]
fn close_codes_that_forbid_a_reconnect_end_the_command() {
    for code in [1009, 4400, 4401, 4403, 4408, 4429, 4499] {
        assert!(matches!(of(&["a"], None, None).closed(Some(code), "no"), SubscriptionAction::Stop(_)), "{code}");
    }
    for code in [None, Some(1000), Some(1001), Some(1006), Some(1012), Some(1013), Some(4500), Some(4508)] {
        let step = of(&["a"], None, None).closed(code, "away");
        assert!(matches!(step, SubscriptionAction::Reconnect { after: None, .. }), "{code:?}");
    }
}

#[test]
fn a_reconnect_frame_sets_the_wait_of_the_next_close_only() {
    let mut subscription = of(&["a"], None, None);
    subscription.frame(r#"{"type":"reconnect","after_ms":1500,"reason":"draining"}"#);
    let step = subscription.closed(Some(1012), "draining");
    let expected = SubscriptionAction::Reconnect {
        after: Some(Duration::from_millis(1500)),
        why: "closed with 1012 draining".into(),
    };
    assert_eq!(step, expected);
    assert!(matches!(subscription.closed(None, "gone"), SubscriptionAction::Reconnect { after: None, .. }));
}

#[test]
fn the_end_of_the_last_room_ends_the_command() {
    let mut subscription = of(&["a", "b"], None, None);
    let refused = r#"{"type":"error","room":"a","code":"room_invalid","message":"no","retryable":false}"#;
    assert_eq!(subscription.frame(refused), SubscriptionAction::Note("a: room_invalid: no".to_owned()));
    assert_eq!(joins(&mut subscription).len(), 1);
    let later = r#"{"type":"error","room":"b","code":"draining","message":"","retryable":true,"retry_after_ms":9}"#;
    assert!(matches!(subscription.frame(later), SubscriptionAction::Reconnect { after: Some(_), .. }));
    assert_eq!(
        subscription.frame(r#"{"type":"left","room":"b","reason":"kicked"}"#),
        SubscriptionAction::Stop("b: kicked".to_owned())
    );
}

#[test]
fn an_error_without_a_room_is_about_the_join_with_its_id() {
    let mut subscription = of(&["a", "b"], Some("x~"), None);
    let error = r#"{"type":"error","id":0,"code":"bad_request","message":"since is not a cursor","retryable":false}"#;
    assert_eq!(subscription.frame(error), SubscriptionAction::Note("a: bad_request: since is not a cursor".to_owned()));
    assert_eq!(joins(&mut subscription), [r#"{"id":1,"room":"b","type":"join"}"#]);
    let error = r#"{"type":"error","code":"rate_limited","message":"slower","retryable":true}"#;
    assert_eq!(subscription.frame(error), SubscriptionAction::Note("rate_limited: slower".to_owned()));
}

#[test]
fn another_protocol_ends_the_command_and_unknown_frames_are_ignored() {
    assert!(matches!(of(&["a"], None, None).frame("hello"), SubscriptionAction::Stop(_)));
    assert_eq!(of(&["a"], None, None).frame(r#"{"type":"novelty","x":1}"#), SubscriptionAction::Nothing);
}

#[test]
fn a_url_names_the_rooms_and_where_each_continues() {
    let mut subscription = of(&["chat:1", "a,b", "c/d"], None, Some(5));
    assert_eq!(subscription.target("sse"), "/v1/rooms/chat%3A1,c%2Fd/sse?room=a%2Cb&last=5");
    // In the order of the URL.
    subscription.advance("Epoch000.1~~Epoch002.3");
    assert_eq!(
        subscription.target("stream"),
        "/v1/rooms/chat%3A1,c%2Fd/stream?room=a%2Cb&since=Epoch000.1~~Epoch002.3&last=5"
    );
    for joined in [
        r#"{"type":"joined","room":"chat:1","cursor":"Epoch000.2","resumed":true}"#,
        r#"{"type":"joined","room":"a,b"}"#,
        r#"{"type":"joined","room":"c/d","cursor":"Epoch001.0"}"#,
    ] {
        assert!(matches!(subscription.frame(joined), SubscriptionAction::Note(_)));
    }
    let expected = "/v1/rooms/chat%3A1,c%2Fd/sse?room=a%2Cb&since=Epoch000.2~Epoch001.0~";
    assert_eq!(subscription.target("sse"), expected, "a room without history has no cursor");
    subscription.frame(r#"{"type":"left","room":"chat:1","reason":"kicked"}"#);
    subscription.advance("Epoch000.2~Epoch001.7~-");
    assert_eq!(
        subscription.target("sse"),
        "/v1/rooms/c%2Fd/sse?room=a%2Cb&since=Epoch001.7~",
        "a room that was left is not requested"
    );
    subscription.advance("Epoch000.9~Epoch001.9~-");
    assert!(subscription.target("sse").contains("since=Epoch001.7~"), "a cursor of another number of rooms is ignored");
}

#[test]
fn ids_and_heartbeats_move_idle_rooms_along() {
    let mut subscription = of(&["a", "b"], Some("Epoch000.1~Epoch001.1"), None);
    assert_eq!(subscription.target("stream"), "/v1/rooms/a,b/stream?since=Epoch000.1~Epoch001.1");
    assert_eq!(subscription.frame(r#"{"type":"ping","cursor":"Epoch000.4~Epoch001.1"}"#), SubscriptionAction::Nothing);
    subscription.advance("Epoch000.4~Epoch001.8");
    assert_eq!(subscription.target("stream"), "/v1/rooms/a,b/stream?since=Epoch000.4~Epoch001.8");
}

#[test]
fn the_last_frame_says_whether_and_when_to_reconnect() {
    let after = |text: &str| match of(&["a"], None, None).frame(text) {
        SubscriptionAction::Reconnect { after, .. } => after.map(|after| after.as_millis()),
        other => panic!("{text}: {other:?}"),
    };
    assert_eq!(after(r#"{"type":"close","code":1012,"reconnect":true,"after_ms":1500}"#), Some(1500));
    assert_eq!(after(r#"{"type":"close","code":4508,"reconnect":true}"#), None);
    assert_eq!(after(r#"{"type":"close"}"#), None);
    for over in [
        r#"{"type":"close","code":4403,"reconnect":false}"#,
        r#"{"type":"close","code":4401,"reconnect":true,"after_ms":1}"#,
        r#"{"type":"close","code":1000,"reconnect":false}"#,
    ] {
        assert!(matches!(of(&["a"], None, None).frame(over), SubscriptionAction::Stop(_)), "{over}");
    }
}

#[test]
fn retry_sets_the_wait_of_the_next_end_and_a_later_hint_wins() {
    let mut subscription = of(&["a"], None, None);
    subscription.retry(2500);
    assert!(matches!(subscription.frame(WELCOME), SubscriptionAction::Begin { .. }), "retry comes before welcome");
    let ms = |step| {
        if let SubscriptionAction::Reconnect { after, .. } = step { after.map(|after| after.as_millis()) } else { None }
    };
    assert_eq!(ms(subscription.closed(None, "the connection ended")), Some(2500));
    assert_eq!(ms(subscription.closed(None, "cannot connect")), None, "then the client's own back-off");
    subscription.retry(u64::MAX);
    assert_eq!(ms(subscription.closed(None, "")), Some(AFTER_MAX.as_millis()));
    subscription.retry(2500);
    assert_eq!(ms(subscription.frame(r#"{"type":"close","code":1012,"reconnect":true,"after_ms":7}"#)), Some(7));
}

#[test]
fn polls_go_on_from_cursor_to_cursor_and_are_one_member() {
    let mut subscription = of(&["a", "b"], None, Some(2));
    assert_eq!(subscription.poll_request(25), PollRequest::Get("/v1/rooms/a,b/poll?last=2&wait=25".to_owned()));
    let message = r#"{"type":"message","room":"a","cursor":"Epoch000.5","data":{"n": 1.0},"ts":1}"#;
    let body = format!(
        r#"{{"session":"s+t","cursor":"Epoch000.5~Epoch001.0","messages":[ {message} ],"more":true,"next_ms":0}}"#
    );
    let taken = subscription.poll_response(&body, true).unwrap();
    assert_eq!(taken.messages, [message], "byte for byte");
    assert_eq!(taken.notes, ["joined a at Epoch000.5", "joined b at Epoch001.0"]);
    assert_eq!((taken.more, taken.next), (true, Duration::ZERO));
    let next = "/v1/rooms/a,b/poll?since=Epoch000.5~Epoch001.0&wait=0&session=s%2Bt";
    assert_eq!(subscription.poll_request(0), PollRequest::Get(next.to_owned()));
    let body = r#"{"session":"s+t","cursor":"Epoch000.5~Epoch002.9","messages":[],"more":false,"gap":{"b":{"missed":null}},"next_ms":1500}"#;
    let taken = subscription.poll_response(body, false).unwrap();
    assert_eq!(
        taken.notes,
        ["gap in b: messages may be missing (a new epoch: nobody knows how many); the room goes on after Epoch002.9"]
    );
    assert_eq!((taken.more, taken.next), (false, Duration::from_millis(1500)));
    let body = r#"{"cursor":"Epoch000.5~Epoch002.9","messages":[],"gap":{"a":{"missed":3}}}"#;
    let expected = ["joined a at Epoch000.5, after a gap: 3 messages are missing", "joined b at Epoch002.9, resumed"];
    assert_eq!(subscription.poll_response(body, true).unwrap().notes, expected);
    let next = "/v1/rooms/a,b/poll?since=Epoch000.5~Epoch002.9&wait=25&session=s%2Bt";
    assert_eq!(
        subscription.poll_request(25),
        PollRequest::Get(next.to_owned()),
        "a response without a session keeps the last one"
    );
    for wrong in ["<html>", "{}", r#"{"cursor":"x","messages":[1]}"#, r#"{"messages":[{"type":"pong"}]}"#] {
        assert!(matches!(subscription.poll_response(wrong, true), Err(SubscriptionAction::Stop(_))), "{wrong}");
    }
}

#[test]
fn a_long_list_of_rooms_is_polled_by_post() {
    let names: Vec<_> = (0..100).map(|n| format!("{n:0>200}")).collect();
    let mut subscription = Subscription::new(names.clone(), None, None).unwrap();
    let PollRequest::Post(body) = subscription.poll_request(25) else { panic!("too long for a URL") };
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((&body["wait"], &body["rooms"][&names[99]]), (&25.into(), &serde_json::Value::Null));
    let answer = serde_json::json!({"cursors": {(&*names[99]): "Epoch000.1"}, "messages": [], "session": "s"});
    subscription.poll_response(&answer.to_string(), true).unwrap();
    let PollRequest::Post(body) = subscription.poll_request(25) else { panic!("too long for a URL") };
    let body: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!((&body["session"], &body["rooms"][&names[99]]), (&"s".into(), &"Epoch000.1".into()));
}

#[test]
fn a_gap_within_an_epoch_tells_how_many_messages_are_missing() {
    let mut subscription = of(&["a"], None, None);
    subscription.frame(r#"{"type":"joined","room":"a","cursor":"Epoch000.4"}"#);
    let mut gap =
        |to: &str| subscription.frame(&format!(r#"{{"type":"gap","room":"a","from":"Epoch000.4","to":"{to}"}}"#));
    assert_eq!(
        gap("Epoch000.7"),
        SubscriptionAction::Note("gap in a: 3 messages are missing; the room goes on after Epoch000.7".into())
    );
    assert_eq!(
        gap("Epoch000.8"),
        SubscriptionAction::Note("gap in a: 1 message is missing; the room goes on after Epoch000.8".into())
    );
    let joined = r#"{"type":"joined","room":"a","resumed":false,"gap":{"missed":null}}"#;
    let SubscriptionAction::Note(note) = subscription.frame(joined) else { panic!("a note") };
    assert!(note.ends_with("after a gap: messages may be missing (the room keeps no history)"), "{note}");
}
