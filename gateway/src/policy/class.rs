//! Room classes: the name of a room decides its history and presence. The configuration builds [`Classes`]; joins and
//! publishes look names up. Classes know names only, not which rooms exist.

use fanfare_broker::Retention;
use std::{sync::Arc, time::Duration};

/// The properties of a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Class {
    /// How much history is kept; `None`: none, so messages have no cursor and are delivered at most once.
    pub history: Option<Retention>,
    /// Whether members can see each other.
    pub presence: bool,
}

impl Class {
    /// The class of rooms that no rule matches: 100 messages for 5 minutes, presence on.
    pub(crate) const BUILT_IN: Self =
        Self { history: Some(Retention { messages: 100, ttl: Duration::from_secs(300) }), presence: true };
}

/// The rules that give each room name its class: the first one that matches wins. Cheap to clone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Classes {
    rules: Arc<[(Glob, Class)]>,
}

impl Classes {
    pub(crate) fn new(rules: Vec<(Glob, Class)>) -> Self {
        Self { rules: rules.into() }
    }

    /// The class of a room: that of the first rule that matches, else [`Class::BUILT_IN`].
    pub(crate) fn of(&self, room: &str) -> Class {
        self.rules.iter().find(|(glob, _)| glob.matches(room)).map_or(Class::BUILT_IN, |(_, class)| *class)
    }
}

/// A pattern of names: `*` matches any number of characters, every other character matches itself.
///
/// Matching takes time linear in name and pattern: the text between two wildcards is searched for once, leftmost. With `*` as
/// the only wildcard the leftmost match is as good as any other, so there is no backtracking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Glob(Box<str>);

impl Glob {
    pub(crate) fn new(pattern: &str) -> Self {
        Self(pattern.into())
    }

    pub(crate) fn matches(&self, name: &str) -> bool {
        let Some((start, after)) = self.0.split_once('*') else { return *self.0 == *name };
        let Some(rest) = name.strip_prefix(start) else { return false };
        let (between, end) = after.rsplit_once('*').unwrap_or(("", after));
        let Some(mut rest) = rest.strip_suffix(end) else { return false };
        for part in between.split('*') {
            match rest.find(part) {
                Some(at) => rest = &rest[at + part.len()..],
                None => return false,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn naive(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern.split_first(), name.split_first()) {
            (None, None) => true,
            (Some((b'*', rest)), None) => naive(rest, name),
            (Some((b'*', rest)), Some((_, tail))) => naive(rest, name) || naive(pattern, tail),
            (Some((p, rest)), Some((n, tail))) => p == n && naive(rest, tail),
            _ => false,
        }
    }

    #[test]
    fn the_whole_name_has_to_match() {
        for (pattern, name, expected) in [
            ("chat:1", "chat:1", true),
            ("chat:1", "chat:12", false),
            ("chat:*", "chat:", true),
            ("chat:*", "chat:1:2", true),
            ("chat:*", "xchat:1", false),
            ("*", "", true),
            ("*:typing", "chat:1:typing", true),
            ("*:typing", "chat:typing:1", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c", false),
            ("ab*ba", "aba", false),
            ("a**c", "ac", true),
            ("", "", true),
            ("", "a", false),
            ("a.c", "abc", false),
        ] {
            assert_eq!(Glob::new(pattern).matches(name), expected, "{pattern} against {name}");
        }
    }

    #[test]
    fn a_pattern_full_of_wildcards_costs_no_more_than_its_length() {
        let pattern = "a*".repeat(5_000) + "b";
        assert!(!Glob::new(&pattern).matches(&"a".repeat(20_000)));
    }

    #[test]
    fn the_first_matching_rule_wins_and_other_rooms_have_the_built_in_class() {
        let off = Class { history: None, presence: false };
        let short = Class { history: Some(Retention { messages: 1, ttl: Duration::from_secs(1) }), presence: true };
        let classes = Classes::new(vec![(Glob::new("chat:typing:*"), off), (Glob::new("chat:*"), short)]);
        assert_eq!(classes.of("chat:typing:1"), off);
        assert_eq!(classes.of("chat:1"), short);
        assert_eq!(classes.of("news"), Class::BUILT_IN);
        assert_eq!(Classes::default().of("news"), Class::BUILT_IN);
    }

    proptest! {
        #[test]
        fn it_agrees_with_the_naive_matcher(pattern in "[ab*]{0,8}", name in "[ab]{0,10}") {
            prop_assert_eq!(Glob::new(&pattern).matches(&name), naive(pattern.as_bytes(), name.as_bytes()));
        }
    }
}
