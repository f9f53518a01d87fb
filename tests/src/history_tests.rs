//! The history checker against histories written by hand: it finds each kind of violation and reports nothing else.

use super::{Cursor, MemberLog, Published, Seen, Verdict, check};

fn at(cursor: &str) -> Cursor {
    Cursor::parse(cursor).unwrap()
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
fn a_member_that_saw_everything_in_order_has_lost_nothing() {
    let log = vec![joined("e.0"), message(10, "e.1"), message(11, "e.2"), message(12, "e.3")];
    let verdict = verdict(DUE, &[log]);
    assert!(verdict.has_no_loss(), "{verdict} {:?}", verdict.findings);
    assert_eq!(verdict.delivered, 3);
}

#[test]
fn publications_before_the_join_are_not_due() {
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
fn a_message_in_a_gap_is_lost_but_not_silently() {
    let gap = Seen::Gap { to: at("e.2") };
    let verdict = verdict(DUE, &[vec![joined("e.0"), message(10, "e.1"), gap, message(12, "e.3")]]);
    assert_eq!((verdict.lost, verdict.silently_lost, verdict.gaps), (1, 0, 1));
    assert!(verdict.reports_every_loss() && !verdict.has_no_loss());
}

#[test]
fn a_gap_explains_only_the_messages_that_it_covers() {
    let gap = Seen::Gap { to: at("e.1") };
    let verdict = verdict(DUE, &[vec![joined("e.0"), gap, message(12, "e.3")]]);
    assert_eq!((verdict.lost, verdict.silently_lost), (2, 1));
}

#[test]
fn a_resume_with_a_hole_is_a_silent_loss_and_one_without_is_not() {
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
fn a_lower_offset_after_a_higher_one_is_out_of_order() {
    let log = vec![joined("e.0"), message(11, "e.2"), message(10, "e.1"), message(12, "e.3")];
    let verdict = verdict(DUE, &[log]);
    assert_eq!((verdict.out_of_order, verdict.lost), (1, 0));
}

#[test]
fn two_members_that_disagree_about_a_cursor_are_found() {
    let one = vec![joined("e.0"), message(10, "e.1"), message(11, "e.2"), message(12, "e.3")];
    let other = vec![joined("e.0"), message(11, "e.1"), message(10, "e.2"), message(12, "e.3")];
    assert_eq!(verdict(DUE, &[one, other]).out_of_order, 2);
}

#[test]
fn a_new_epoch_without_a_gap_is_out_of_order() {
    let due = &[(1, "e.1"), (2, "f.1")];
    let gap = Seen::Gap { to: at("f.0") };
    assert!(verdict(due, &[vec![joined("e.0"), message(1, "e.1"), gap, message(2, "f.1")]]).has_no_loss());
    assert_eq!(verdict(due, &[vec![joined("e.0"), message(1, "e.1"), message(2, "f.1")]]).out_of_order, 1);
}

#[test]
fn a_gap_over_a_whole_epoch_explains_it_and_no_other() {
    let due = &[(1, "e.1"), (2, "f.1"), (3, "f.2"), (4, "g.1"), (5, "h.1")];
    let gap = |to| Seen::Gap { to: at(to) };
    let over = vec![joined("e.0"), message(1, "e.1"), gap("g.0"), message(4, "g.1"), gap("h.0"), message(5, "h.1")];
    let covered = verdict(due, &[over]);
    assert_eq!((covered.lost, covered.silently_lost), (2, 0), "{:?}", covered.findings);
    // Nothing was acknowledged in epoch x, so it lies in time between the epochs around it.
    let by_another =
        vec![joined("e.0"), message(1, "e.1"), gap("x.0"), gap("g.0"), message(4, "g.1"), message(5, "h.1")];
    let by_another = verdict(due, &[by_another]);
    assert_eq!((by_another.lost, by_another.silently_lost, by_another.out_of_order), (2, 0, 1));
    let in_time = vec![joined("e.0"), message(1, "e.1"), gap("f.0"), message(2, "f.1"), gap("g.0"), gap("h.0")];
    let in_time = verdict(due, &[in_time]);
    assert_eq!((in_time.lost, in_time.silently_lost), (3, 1), "h.1 is after every gap");
    let from_nothing = vec![joined("x.0"), gap("g.0"), message(4, "g.1"), gap("h.0"), message(5, "h.1")];
    let from_nothing = verdict(due, &[from_nothing]);
    assert_eq!((from_nothing.lost, from_nothing.silently_lost), (3, 0), "{:?}", from_nothing.findings);
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
fn a_publication_seen_in_two_epochs_is_no_repeat_if_a_gap_lies_between_them() {
    let due = [(10, "e.1"), (11, "f.1")];
    let covered =
        vec![joined("e.0"), message(10, "e.1"), message(11, "e.2"), Seen::Gap { to: at("f.0") }, message(11, "f.1")];
    let covered = verdict(&due, &[covered]);
    assert!(covered.has_no_loss() && covered.republished == 1, "{covered} {:?}", covered.findings);
    let uncovered = vec![joined("e.0"), message(10, "e.1"), message(11, "e.2"), message(11, "f.1")];
    assert_eq!(verdict(&due, &[uncovered]).out_of_order, 1);
}
