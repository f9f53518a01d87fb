//! The history checker: it compares what every member saw with what was acknowledged to publishers. Called at the end of
//! every test under load; pure. A missing message counts as silently lost unless the member was told of a gap that covers
//! it.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

/// A cursor of one room, in its two parts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cursor {
    /// The room's epoch.
    pub epoch: String,
    /// The number of the message in the epoch, from 1; 0 is before the first message.
    pub offset: u64,
}

/// One acknowledged publication.
#[derive(Clone, Debug)]
pub struct Published {
    /// Its room.
    pub room: String,
    /// The number that the publisher gave it, unique in the run and contained in `data`.
    pub id: u64,
    /// The cursor of the acknowledgement.
    pub at: Cursor,
}

/// One thing that a member saw in a room.
#[derive(Clone, Debug)]
pub enum Seen {
    /// A `joined`.
    Joined {
        /// The cursor after which messages follow.
        at: Cursor,
        /// Whether it reported a gap.
        gap: bool,
    },
    /// A `message`.
    Message {
        /// Its cursor.
        at: Cursor,
        /// The number in its `data`.
        id: u64,
    },
    /// A `gap`: messages up to `to` that the member has not seen are gone.
    Gap {
        /// The cursor after which messages follow.
        to: Cursor,
    },
}

/// What a member saw, over all its connections up to the end of the run.
#[derive(Clone, Debug, Default)]
pub struct MemberLog {
    /// The member's name in findings.
    pub name: String,
    /// What it saw in each of its rooms, in order.
    pub rooms: BTreeMap<String, Vec<Seen>>,
}

/// The result of a check; its `Display` is the line that a run prints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// How many logs were checked.
    pub members: usize,
    /// How many rooms had a publication.
    pub rooms: usize,
    /// How many publications were acknowledged.
    pub published: usize,
    /// How many messages the logs contain.
    pub delivered: usize,
    /// How many gaps members were told of.
    pub gaps: usize,
    /// Publications that were acknowledged, due to a member, and absent from its log.
    pub lost: usize,
    /// Those of `lost` that no gap covers.
    pub silently_lost: usize,
    /// Messages that a member saw a second time in one epoch.
    pub repeated: usize,
    /// Publications that a member saw in two epochs, with a gap between them. This happens when a publisher retries
    /// because it had no reply, and the Redis that knew the idempotency key of the first attempt is gone.
    pub republished: usize,
    /// Messages at or below the member's cursor, messages of a new epoch without a gap before them, and messages with a
    /// cursor under which others saw another publication.
    pub out_of_order: usize,
    /// The first few violations in words.
    pub findings: Vec<String>,
}

/// How many violations are described; all are counted.
const FINDINGS_MAX: usize = 12;

impl Cursor {
    /// Reads `epoch.offset`.
    #[must_use]
    pub fn parse(cursor: &str) -> Option<Self> {
        let (epoch, offset) = cursor.split_once('.')?;
        Some(Self { epoch: epoch.to_owned(), offset: offset.parse().ok()? })
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.offset)
    }
}

impl Verdict {
    /// Adds the result of another check.
    pub fn add(&mut self, other: Self) {
        self.members += other.members;
        self.rooms += other.rooms;
        self.published += other.published;
        self.delivered += other.delivered;
        self.gaps += other.gaps;
        self.lost += other.lost;
        self.silently_lost += other.silently_lost;
        self.repeated += other.repeated;
        self.republished += other.republished;
        self.out_of_order += other.out_of_order;
        self.findings.extend(other.findings);
    }

    /// Whether no message was lost, repeated or out of order.
    #[must_use]
    pub fn has_no_loss(&self) -> bool {
        self.lost == 0 && self.reports_every_loss()
    }

    /// Whether gaps cover every lost message, and no message was repeated or out of order.
    #[must_use]
    pub fn reports_every_loss(&self) -> bool {
        self.silently_lost == 0 && self.repeated == 0 && self.out_of_order == 0
    }

    fn describe(&mut self, finding: impl FnOnce() -> String) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding());
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "history: members={} rooms={} published={} delivered={} gaps={} lost={} silently_lost={} repeated={} \
             out_of_order={}",
            self.members,
            self.rooms,
            self.published,
            self.delivered,
            self.gaps,
            self.lost,
            self.silently_lost,
            self.repeated,
            self.out_of_order
        )
    }
}

/// Checks the logs of `members` against the acknowledged publications. The order of the publications tells the order of
/// the epochs: an epoch is younger than another if it was first acknowledged later.
#[must_use]
pub fn check(published: &[Published], members: &[MemberLog]) -> Verdict {
    let mut by_room: BTreeMap<&str, Vec<&Published>> = BTreeMap::new();
    for publication in published {
        by_room.entry(&publication.room).or_default().push(publication);
    }
    let mut verdict =
        Verdict { members: members.len(), rooms: by_room.len(), published: published.len(), ..Verdict::default() };
    // The publication under each cursor, about which all members and the acknowledgement must agree.
    let mut order: HashMap<(&str, &Cursor), u64> = HashMap::new();
    for publication in published {
        let cursor = (publication.room.as_str(), &publication.at);
        if order.insert(cursor, publication.id).is_some_and(|other| other != publication.id) {
            verdict.out_of_order += 1;
            verdict.describe(|| {
                format!("{} {}: two publications were acknowledged with this cursor", publication.room, publication.at)
            });
        }
    }
    for member in members {
        for (room, seen) in &member.rooms {
            let mut check = RoomCheck::default();
            for event in seen {
                if let Seen::Message { at, id } = event
                    && *order.entry((room, at)).or_insert(*id) != *id
                {
                    verdict.out_of_order += 1;
                    verdict.describe(|| {
                        format!("{} {room} {at}: others saw another publication under this cursor", member.name)
                    });
                }
                check.step(event, &mut verdict, || format!("{} {room}", member.name));
            }
            let due = by_room.get(room.as_str()).map_or(&[][..], Vec::as_slice);
            check.count_lost(due, &mut verdict, || format!("{} {room}", member.name));
        }
    }
    verdict
}

/// The check of what one member saw in one room.
#[derive(Default)]
struct RoomCheck {
    /// The cursor of the first `joined`.
    start: Option<Cursor>,
    /// The cursor after the last thing that was seen.
    at: Option<Cursor>,
    /// The publications that were seen, each with its last epoch.
    ids: HashMap<u64, String>,
    /// The gaps: each begins after its first cursor and ends with its second.
    gaps: Vec<(Cursor, Cursor)>,
}

impl RoomCheck {
    fn step(&mut self, event: &Seen, verdict: &mut Verdict, name: impl Fn() -> String) {
        match event {
            Seen::Joined { at, gap } => {
                if self.at.is_none() {
                    self.start = Some(at.clone());
                } else if *gap {
                    verdict.gaps += 1;
                    self.add_gap(at);
                }
                self.at = Some(at.clone());
            }
            Seen::Gap { to } => {
                verdict.gaps += 1;
                self.add_gap(to);
                self.at = Some(to.clone());
            }
            Seen::Message { at, id } => {
                verdict.delivered += 1;
                let in_order = self.at.as_ref().is_some_and(|now| now.epoch == at.epoch && now.offset < at.offset);
                let before = self.ids.insert(*id, at.epoch.clone());
                if before.as_ref().is_some_and(|epoch| *epoch == at.epoch) {
                    verdict.repeated += 1;
                    verdict.describe(|| format!("{}: publication {id} a second time, at {at}", name()));
                } else if !in_order {
                    verdict.out_of_order += 1;
                    verdict.describe(|| format!("{}: {at} after {:?}", name(), self.at));
                }
                verdict.republished += usize::from(before.is_some_and(|epoch| epoch != at.epoch));
                self.at = Some(at.clone());
            }
        }
    }

    /// Adds a gap from the member's cursor to `to`.
    fn add_gap(&mut self, to: &Cursor) {
        let Some(now) = &self.at else { return };
        match self.gaps.last_mut() {
            // Two gaps without a message between them are one.
            Some((_, end)) if end == now => end.clone_from(to),
            _ => self.gaps.push((now.clone(), to.clone())),
        }
    }

    /// Whether a gap covers this cursor. The gap of a member that was away for long may span several epochs.
    fn is_in_gap(&self, at: &Cursor, age: impl Fn(&str) -> Option<usize>) -> bool {
        self.gaps.iter().any(|(from, to)| {
            let (after, before) = (from.offset < at.offset, at.offset <= to.offset);
            match (from.epoch == at.epoch, to.epoch == at.epoch) {
                (true, true) => after && before,
                (true, false) => after,
                (false, true) => before,
                (false, false) => match (age(&from.epoch), age(&at.epoch), age(&to.epoch)) {
                    (Some(from), Some(at), Some(to)) => from < at && at < to,
                    // The member joined before anything was acknowledged: every known epoch is younger.
                    (None, Some(at), Some(to)) => {
                        self.start.as_ref().is_some_and(|start| start.epoch == from.epoch) && at < to
                    }
                    _ => false,
                },
            }
        })
    }

    /// Counts the publications that were due to this member and are not in its log.
    fn count_lost(&self, due: &[&Published], verdict: &mut Verdict, name: impl Fn() -> String) {
        let Some(start) = &self.start else { return };
        let mut epochs: Vec<&str> = Vec::new();
        for publication in due {
            if !epochs.contains(&publication.at.epoch.as_str()) {
                epochs.push(&publication.at.epoch);
            }
        }
        let age = |epoch: &str| epochs.iter().position(|known| *known == epoch);
        let first = age(&start.epoch);
        for publication in due {
            let Cursor { epoch, offset } = &publication.at;
            let before = if *epoch == start.epoch { *offset <= start.offset } else { age(epoch) < first };
            if before || self.ids.contains_key(&publication.id) {
                continue;
            }
            verdict.lost += 1;
            if !self.is_in_gap(&publication.at, age) {
                verdict.silently_lost += 1;
                verdict
                    .describe(|| format!("{}: publication {} ({}) never came", name(), publication.id, publication.at));
            }
        }
    }
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
