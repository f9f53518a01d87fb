//! The rules of the scoreboard, without any connection.

use super::*;

/// A scoreboard with this many members in each room, publishing from 0 to 1 s.
fn scoreboard(pace: &str, rooms: usize, publishers: usize, members: usize) -> Scoreboard {
    let flags = format!("--{pace} --rooms {rooms} --publishers {publishers} --room-prefix r --payload 64");
    let mut scoreboard = Scoreboard::new(&BenchOptions::of(&flags), 7);
    for index in 0..rooms * members {
        let member = scoreboard.add_member(index % rooms);
        scoreboard.joined(member);
    }
    scoreboard.set_window(0, 1_000_000_000);
    scoreboard
}

/// The text of the publisher's next message.
fn publish(scoreboard: &mut Scoreboard, publisher: usize, now_ns: u64) -> Option<String> {
    let mut out = Vec::new();
    scoreboard.publish(publisher, now_ns, &mut out).then(|| String::from_utf8_lossy(&out[8..]).into_owned())
}

fn room_of(text: &str) -> &str {
    text.split("\"room\":\"").nth(1).unwrap().split('"').next().unwrap()
}

#[test]
fn rooms_take_turns_and_each_has_one_publisher() {
    let mut scoreboard = scoreboard("in-flight=100", 5, 2, 0);
    let rooms: Vec<String> = (0..7).map(|_| room_of(&publish(&mut scoreboard, 0, 1).unwrap()).to_owned()).collect();
    assert_eq!(rooms, ["r0", "r2", "r4", "r0", "r2", "r4", "r0"]);
    let rooms: Vec<String> = (0..4).map(|_| room_of(&publish(&mut scoreboard, 1, 1).unwrap()).to_owned()).collect();
    assert_eq!(rooms, ["r1", "r3", "r1", "r3"]);
}

#[test]
fn a_rate_follows_the_clock_and_ends_with_the_window() {
    let mut scoreboard = scoreboard("rate=100", 1, 1, 0);
    assert!(publish(&mut scoreboard, 0, 0).is_some() && publish(&mut scoreboard, 0, 9_999_999).is_none());
    let due = (0..1000).take_while(|_| publish(&mut scoreboard, 0, 500_000_000).is_some()).count();
    assert_eq!((due, scoreboard.due_ns(0)), (50, Some(510_000_000)));
    assert!(publish(&mut scoreboard, 0, 1_000_000_000).is_none());
    scoreboard.set_window(0, 500_000_000);
    assert_eq!(scoreboard.due_ns(0), None, "ended early");
}

#[test]
fn a_message_is_in_flight_until_every_member_has_it() {
    let mut scoreboard = scoreboard("in-flight=1", 1, 1, 2);
    let text = publish(&mut scoreboard, 0, 1).unwrap();
    assert_eq!(publish(&mut scoreboard, 0, 1), None);
    assert_eq!(scoreboard.acknowledged(0, 0, 2), None);
    assert_eq!(scoreboard.received(0, text.as_bytes(), 2), Ok(None));
    assert_eq!(scoreboard.received(0, text.as_bytes(), 3), Ok(None), "a repetition is no arrival");
    assert_eq!(scoreboard.received(1, text.as_bytes(), 4), Ok(Some(0)));
    assert!(publish(&mut scoreboard, 0, 5).is_some());
    assert_eq!((scoreboard.counters.delivered, scoreboard.counters.repeated, scoreboard.counters.expected), (2, 1, 2));
}

#[test]
fn without_members_an_acknowledgement_ends_a_flight_in_any_order() {
    let mut scoreboard = scoreboard("in-flight=2", 1, 1, 0);
    assert!(publish(&mut scoreboard, 0, 1).is_some() && publish(&mut scoreboard, 0, 1).is_some());
    assert!(publish(&mut scoreboard, 0, 1).is_none());
    assert_eq!(scoreboard.acknowledged(0, 1, 2), Some(0));
    assert_eq!(scoreboard.acknowledged(0, 1, 2), None);
    assert_eq!(scoreboard.refused(0, 0, "no".to_owned()), Some(0));
    assert_eq!((scoreboard.unanswered(), scoreboard.counters.acknowledged, scoreboard.counters.refused), (0, 1, 1));
    assert!(publish(&mut scoreboard, 0, 3).is_some());
    assert_eq!(scoreboard.unanswered(), 1);
}

#[test]
fn lost_is_what_was_acknowledged_and_a_connected_member_lacks() {
    let mut scoreboard = scoreboard("in-flight=10", 1, 1, 2);
    let texts: Vec<String> = (0..4).map(|_| publish(&mut scoreboard, 0, 1).unwrap()).collect();
    scoreboard.refused(0, 1, "no".to_owned());
    scoreboard.acknowledged(0, 0, 2);
    scoreboard.acknowledged(0, 2, 2);
    // The last one is unanswered. The first member has 1, the second 3 and then 1.
    assert_eq!(scoreboard.received(0, texts[0].as_bytes(), 3), Ok(None));
    assert_eq!(scoreboard.received(1, texts[2].as_bytes(), 3), Ok(None));
    assert_eq!(scoreboard.lost(), 2);
    assert_eq!(scoreboard.received(1, texts[0].as_bytes(), 3), Ok(Some(0)));
    assert_eq!((scoreboard.lost(), scoreboard.counters.out_of_order), (1, 1));
    scoreboard.disconnected(0, "closed".to_owned());
    assert_eq!((scoreboard.lost(), scoreboard.counters.disconnected), (0, 1));
}

#[test]
fn a_listening_run_counts_other_runs_one_after_another() {
    let mut publisher = scoreboard("in-flight=10", 1, 1, 0);
    let texts: Vec<String> = (0..5).map(|_| publish(&mut publisher, 0, 1).unwrap()).collect();
    let mut listener = scoreboard("in-flight=1", 1, 0, 1);
    let mut receive = |text: &str| listener.received(0, text.as_bytes(), 9);
    for text in [&texts[1], &texts[3], &texts[4]] {
        assert_eq!(receive(text), Ok(None));
    }
    assert_eq!(receive(&texts[2].replace("\"bench\":\"00000007", "\"bench\":\"00000008")), Ok(None));
    assert_eq!(receive("{\"type\":\"gap\"}"), Err(NoStamp));
    assert_eq!((listener.counters.delivered, listener.lost()), (4, 3), "one of the first, two of the second");
}

#[test]
fn messages_of_another_run_are_not_counted_by_one_that_publishes() {
    let mut scoreboard = scoreboard("in-flight=1", 1, 1, 1);
    let text = publish(&mut scoreboard, 0, 1).unwrap().replace("\"bench\":\"00000007", "\"bench\":\"00000008");
    assert_eq!(scoreboard.received(0, text.as_bytes(), 2), Ok(None));
    assert_eq!((scoreboard.counters.strange, scoreboard.counters.delivered), (1, 0));
}
