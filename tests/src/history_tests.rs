//! The checker against histories written by hand: each fault it is there for is found, and nothing else is.

use super::{MemberLog, Position, Published, Seen, Verdict, check};

fn at(cursor: &str) -> Position {
    Position::parse(cursor).unwrap()
}

fn published(list: &[(u64, &str)]) -> Vec<Published> {
    list.iter().map(|(id, cursor)| Published { room: "r".to_owned(), id: *id, at: at(cursor) }).collect()
}

fn joined(cursor: &str) -> Seen {
    Seen::Joined { at: at(cursor), gap: false }
}

fn message(id: u64, cursor: &str) -> Seen {
    Seen::Message { at: at(cursor), id }
}

fn verdict(due: &[(u64, &str)], logs: &[Vec<Seen>]) -> Verdict {
    let member = |log: &Vec<Seen>| MemberLog { name: "m".to_owned(), rooms: [("r".to_owned(), log.clone())].into() };
    check(&published(due), &logs.iter().map(member).collect::<Vec<_>>())
}

const DUE: &[(u64, &str)] = &[(10, "e.1"), (11, "e.2"), (12, "e.3")];

#[test]
fn a_member_that_saw_all_in_order_is_clean() {
    let log = vec![joined("e.0"), message(10, "e.1"), message(11, "e.2"), message(12, "e.3")];
    let verdict = verdict(DUE, &[log]);
    assert!(verdict.has_no_loss(), "{verdict} {:?}", verdict.faults);
    assert_eq!(verdict.delivered, 3);
}

#[test]
fn what_was_published_before_the_join_is_not_due() {
    assert!(verdict(DUE, &[vec![joined("e.2"), message(12, "e.3")]]).has_no_loss());
}

#[test]
fn a_hole_without_a_gap_is_silently_lost() {
    let verdict = verdict(DUE, &[vec![joined("e.0"), message(10, "e.1"), message(12, "e.3")]]);
    assert_eq!((verdict.lost, verdict.silently_lost), (1, 1));
    assert!(!verdict.reports_every_loss());
}

#[test]
fn a_hole_at_the_end_is_silently_lost() {
    let verdict = verdict(DUE, &[vec![joined("e.0"), message(10, "e.1")]]);
    assert_eq!((verdict.lost, verdict.silently_lost), (2, 2));
}

#[test]
fn a_told_gap_is_lost_but_honest() {
    let gap = Seen::Gap { to: at("e.2") };
    let verdict = verdict(DUE, &[vec![joined("e.0"), message(10, "e.1"), gap, message(12, "e.3")]]);
    assert_eq!((verdict.lost, verdict.silently_lost, verdict.gaps), (1, 0, 1));
    assert!(verdict.reports_every_loss() && !verdict.has_no_loss());
}

#[test]
fn a_gap_excuses_only_what_it_covers() {
    let gap = Seen::Gap { to: at("e.1") };
    let verdict = verdict(DUE, &[vec![joined("e.0"), gap, message(12, "e.3")]]);
    assert_eq!((verdict.lost, verdict.silently_lost), (2, 1));
}

#[test]
fn a_resume_without_a_hole_is_clean_and_one_with_a_hole_is_not() {
    let clean = vec![joined("e.0"), message(10, "e.1"), joined("e.1"), message(11, "e.2"), message(12, "e.3")];
    let hole = vec![joined("e.0"), message(10, "e.1"), joined("e.2"), message(12, "e.3")];
    assert!(verdict(DUE, &[clean]).has_no_loss());
    assert_eq!(verdict(DUE, &[hole]).silently_lost, 1);
}

#[test]
fn a_second_delivery_is_a_repeat_even_under_another_cursor() {
    let log = vec![joined("e.0"), message(10, "e.1"), message(11, "e.2"), message(11, "e.2"), message(12, "e.3")];
    assert_eq!(verdict(DUE, &[log]).repeated, 1);
    let log = vec![joined("e.0"), message(10, "e.1"), message(11, "e.2"), message(12, "e.3"), message(10, "e.4")];
    assert_eq!(verdict(DUE, &[log]).repeated, 1);
}

#[test]
fn a_step_back_is_out_of_order() {
    let log = vec![joined("e.0"), message(11, "e.2"), message(10, "e.1"), message(12, "e.3")];
    let verdict = verdict(DUE, &[log]);
    assert_eq!((verdict.out_of_order, verdict.lost), (1, 0));
}

#[test]
fn two_members_that_disagree_about_a_place_are_found() {
    let one = vec![joined("e.0"), message(10, "e.1"), message(11, "e.2"), message(12, "e.3")];
    let other = vec![joined("e.0"), message(11, "e.1"), message(10, "e.2"), message(12, "e.3")];
    assert_eq!(verdict(DUE, &[one, other]).out_of_order, 2);
}

#[test]
fn a_new_epoch_must_be_told() {
    let due = &[(1, "e.1"), (2, "f.1")];
    let gap = Seen::Gap { to: at("f.0") };
    assert!(verdict(due, &[vec![joined("e.0"), message(1, "e.1"), gap, message(2, "f.1")]]).has_no_loss());
    assert_eq!(verdict(due, &[vec![joined("e.0"), message(1, "e.1"), message(2, "f.1")]]).out_of_order, 1);
}

#[test]
fn a_gap_over_a_whole_epoch_excuses_it_and_no_other() {
    let due = &[(1, "e.1"), (2, "f.1"), (3, "f.2"), (4, "g.1"), (5, "h.1")];
    let gap = |to| Seen::Gap { to: at(to) };
    let over = vec![joined("e.0"), message(1, "e.1"), gap("g.0"), message(4, "g.1"), gap("h.0"), message(5, "h.1")];
    let told = verdict(due, &[over]);
    assert_eq!((told.lost, told.silently_lost), (2, 0), "{:?}", told.faults);
    // Nothing was acknowledged in x: its place in time is between its neighbours.
    let by_another =
        vec![joined("e.0"), message(1, "e.1"), gap("x.0"), gap("g.0"), message(4, "g.1"), message(5, "h.1")];
    let by_another = verdict(due, &[by_another]);
    assert_eq!((by_another.lost, by_another.silently_lost, by_another.out_of_order), (2, 0, 1));
    let in_time = vec![joined("e.0"), message(1, "e.1"), gap("f.0"), message(2, "f.1"), gap("g.0"), gap("h.0")];
    let in_time = verdict(due, &[in_time]);
    assert_eq!((in_time.lost, in_time.silently_lost), (3, 1), "h.1 is after every gap");
    let from_nothing = vec![joined("x.0"), gap("g.0"), message(4, "g.1"), gap("h.0"), message(5, "h.1")];
    let from_nothing = verdict(due, &[from_nothing]);
    assert_eq!((from_nothing.lost, from_nothing.silently_lost), (3, 0), "{:?}", from_nothing.faults);
}

#[test]
fn an_epoch_that_ended_before_the_join_is_not_due() {
    let due = &[(1, "e.1"), (2, "f.1")];
    assert!(verdict(due, &[vec![joined("f.0"), message(2, "f.1")]]).has_no_loss());
}

#[test]
fn a_younger_epoch_is_due_even_if_the_first_had_no_publication() {
    assert_eq!(verdict(&[(2, "f.1")], &[vec![joined("e.0")]]).silently_lost, 1);
}

#[test]
fn a_retry_that_a_new_redis_could_not_know_is_no_repeat_if_the_gap_was_told() {
    let due = [(10, "e.1"), (11, "f.1")];
    let told =
        vec![joined("e.0"), message(10, "e.1"), message(11, "e.2"), Seen::Gap { to: at("f.0") }, message(11, "f.1")];
    let told = verdict(&due, &[told]);
    assert!(told.has_no_loss() && told.republished == 1, "{told} {:?}", told.faults);
    let untold = vec![joined("e.0"), message(10, "e.1"), message(11, "e.2"), message(11, "f.1")];
    assert_eq!(verdict(&due, &[untold]).out_of_order, 1);
}
