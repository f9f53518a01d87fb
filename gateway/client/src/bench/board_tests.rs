//! The board's rules, without any connection.

use super::*;
use crate::bench::options::Format;

fn order(pace: Pace, rooms: usize, publishers: usize) -> Bench {
    Bench {
        urls: Vec::new(),
        publish_url: None,
        token: None,
        members: 0,
        rooms,
        room_prefix: "r".to_owned(),
        publishers,
        pace,
        payload_bytes: 64,
        seconds: 1.0,
        idle_seconds: 0.0,
        connects_per_second: None,
        from: Vec::new(),
        pids: Vec::new(),
        format: Format::Text,
        progress: false,
    }
}

/// A board with so many members in each room, publishing from 0 to 1 s.
fn board(pace: Pace, rooms: usize, publishers: usize, members: usize) -> Board {
    let mut board = Board::new(&order(pace, rooms, publishers), 7);
    for index in 0..rooms * members {
        let member = board.enter(index % rooms);
        board.joined(member);
    }
    board.begin(0, 1_000_000_000);
    board
}

/// The text of the publisher's next message.
fn publish(board: &mut Board, publisher: usize, now_ns: u64) -> Option<String> {
    let mut out = Vec::new();
    board.publish(publisher, now_ns, &mut out).then(|| String::from_utf8_lossy(&out[8..]).into_owned())
}

fn room_of(text: &str) -> &str {
    text.split("\"room\":\"").nth(1).unwrap().split('"').next().unwrap()
}

#[test]
fn rooms_take_turns_and_each_has_one_publisher() {
    let mut board = board(Pace::InFlight(100), 5, 2, 0);
    let rooms: Vec<String> = (0..7).map(|_| room_of(&publish(&mut board, 0, 1).unwrap()).to_owned()).collect();
    assert_eq!(rooms, ["r0", "r2", "r4", "r0", "r2", "r4", "r0"]);
    let rooms: Vec<String> = (0..4).map(|_| room_of(&publish(&mut board, 1, 1).unwrap()).to_owned()).collect();
    assert_eq!(rooms, ["r1", "r3", "r1", "r3"]);
}

#[test]
fn a_rate_follows_the_clock_and_ends_with_the_window() {
    let mut board = board(Pace::Rate(100.0), 1, 1, 0);
    assert!(publish(&mut board, 0, 0).is_some() && publish(&mut board, 0, 9_999_999).is_none());
    let due = (0..1000).take_while(|_| publish(&mut board, 0, 500_000_000).is_some()).count();
    assert_eq!((due, board.due_ns(0)), (50, Some(510_000_000)));
    assert!(publish(&mut board, 0, 1_000_000_000).is_none());
    board.begin(0, 500_000_000);
    assert_eq!(board.due_ns(0), None, "ended early");
}

#[test]
fn a_message_is_in_flight_until_every_member_has_it() {
    let mut board = board(Pace::InFlight(1), 1, 1, 2);
    let text = publish(&mut board, 0, 1).unwrap();
    assert_eq!(publish(&mut board, 0, 1), None);
    assert_eq!(board.acknowledged(0, 0, 2), None);
    assert_eq!(board.received(0, text.as_bytes(), 2), Ok(None));
    assert_eq!(board.received(0, text.as_bytes(), 3), Ok(None), "a repetition is no arrival");
    assert_eq!(board.received(1, text.as_bytes(), 4), Ok(Some(0)));
    assert!(publish(&mut board, 0, 5).is_some());
    assert_eq!((board.tally.delivered, board.tally.repeated, board.tally.expected), (2, 1, 2));
}

#[test]
fn without_members_the_acknowledgement_frees_and_answers_come_in_any_order() {
    let mut board = board(Pace::InFlight(2), 1, 1, 0);
    assert!(publish(&mut board, 0, 1).is_some() && publish(&mut board, 0, 1).is_some());
    assert!(publish(&mut board, 0, 1).is_none());
    assert_eq!(board.acknowledged(0, 1, 2), Some(0));
    assert_eq!(board.acknowledged(0, 1, 2), None);
    assert_eq!(board.refused(0, 0, "no".to_owned()), Some(0));
    assert_eq!((board.unanswered(), board.tally.acknowledged, board.tally.refused), (0, 1, 1));
    assert!(publish(&mut board, 0, 3).is_some());
    assert_eq!(board.unanswered(), 1);
}

#[test]
fn lost_is_what_was_acknowledged_and_a_connected_member_lacks() {
    let mut board = board(Pace::InFlight(10), 1, 1, 2);
    let texts: Vec<String> = (0..4).map(|_| publish(&mut board, 0, 1).unwrap()).collect();
    board.refused(0, 1, "no".to_owned());
    board.acknowledged(0, 0, 2);
    board.acknowledged(0, 2, 2);
    // The last one is unanswered. The first member has 1, the second 3 and then 1.
    assert_eq!(board.received(0, texts[0].as_bytes(), 3), Ok(None));
    assert_eq!(board.received(1, texts[2].as_bytes(), 3), Ok(None));
    assert_eq!(board.lost(), 2);
    assert_eq!(board.received(1, texts[0].as_bytes(), 3), Ok(Some(0)));
    assert_eq!((board.lost(), board.tally.out_of_order), (1, 1));
    board.left(0, "closed".to_owned());
    assert_eq!((board.lost(), board.tally.disconnected), (0, 1));
}

#[test]
fn a_listener_counts_foreign_runs_one_after_another() {
    let mut publisher = board(Pace::InFlight(10), 1, 1, 0);
    let texts: Vec<String> = (0..5).map(|_| publish(&mut publisher, 0, 1).unwrap()).collect();
    let mut listener = board(Pace::InFlight(1), 1, 0, 1);
    let mut hear = |text: &str| listener.received(0, text.as_bytes(), 9);
    for text in [&texts[1], &texts[3], &texts[4]] {
        assert_eq!(hear(text), Ok(None));
    }
    assert_eq!(hear(&texts[2].replace("\"bench\":\"00000007", "\"bench\":\"00000008")), Ok(None));
    assert_eq!(hear("{\"type\":\"gap\"}"), Err(()));
    assert_eq!((listener.tally.delivered, listener.lost()), (4, 3), "one of the first, two of the second");
}

#[test]
fn messages_of_another_run_are_not_counted_by_one_that_publishes() {
    let mut board = board(Pace::InFlight(1), 1, 1, 1);
    let text = publish(&mut board, 0, 1).unwrap().replace("\"bench\":\"00000007", "\"bench\":\"00000008");
    assert_eq!(board.received(0, text.as_bytes(), 2), Ok(None));
    assert_eq!((board.tally.strange, board.tally.delivered), (1, 0));
}
