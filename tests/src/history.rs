//! The history checker: what every member saw, against what was acknowledged to publishers. Called at the end of every
//! test under load; it is pure, and it never forgives: what it cannot explain by a gap that was told is silently lost.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

/// A place in a room.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Position {
    /// Which life of the room.
    pub epoch: String,
    /// The count within it, from 1; 0 is before the first.
    pub offset: u64,
}

/// One acknowledged publication.
#[derive(Clone, Debug)]
pub struct Published {
    /// Where.
    pub room: String,
    /// The publisher's own number, unique in the run and carried in `data`.
    pub id: u64,
    /// The cursor of the acknowledgement.
    pub at: Position,
}

/// What a member saw in one room.
#[derive(Clone, Debug)]
pub enum Seen {
    /// A `joined`: delivery goes on after `at`; `gap` when it said that something is missing.
    Joined {
        /// The place from which it goes on.
        at: Position,
        /// Whether a gap was told.
        gap: bool,
    },
    /// A `message`.
    Message {
        /// Its cursor.
        at: Position,
        /// The publisher's number in it.
        id: u64,
    },
    /// A `gap`: what lies before `to` and was not seen is gone.
    Gap {
        /// Delivery goes on after it.
        to: Position,
    },
}

/// A member's log: its rooms, each with what it saw in order. It stayed, or came back, until the end of the run.
#[derive(Clone, Debug, Default)]
pub struct MemberLog {
    /// For messages about faults.
    pub name: String,
    /// Room by room.
    pub rooms: BTreeMap<String, Vec<Seen>>,
}

/// What the checker found; its `Display` is the one line a run prints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// How many logs were read.
    pub members: usize,
    /// In how many rooms something was published.
    pub rooms: usize,
    /// Acknowledged publications.
    pub published: usize,
    /// Messages in the logs.
    pub delivered: usize,
    /// Gaps that members were told.
    pub gaps: usize,
    /// Acknowledged, due to a member, and not in its log.
    pub lost: usize,
    /// Of these, those that no gap explains.
    pub silently_lost: usize,
    /// Messages that a member saw a second time.
    pub repeated: usize,
    /// Publications that a member saw in two epochs: their publisher had no answer and tried again, and the Redis that
    /// knew the key of the first try was gone. The member was told a gap between the two.
    pub republished: usize,
    /// Messages below the member's position, in a new epoch without a gap, or under a cursor that others saw differently.
    pub out_of_order: usize,
    /// The first few faults in words.
    pub faults: Vec<String>,
}

/// How many faults are described; the counts are complete.
const FAULTS_MAX: usize = 12;

impl Position {
    /// Reads `epoch.offset`.
    #[must_use]
    pub fn parse(cursor: &str) -> Option<Self> {
        let (epoch, offset) = cursor.split_once('.')?;
        Some(Self { epoch: epoch.to_owned(), offset: offset.parse().ok()? })
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch, self.offset)
    }
}

impl Verdict {
    /// Adds what another check found.
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
        self.faults.extend(other.faults);
    }

    /// Whether nothing was lost, told or not, repeated or out of order.
    #[must_use]
    pub fn has_no_loss(&self) -> bool {
        self.lost == 0 && self.reports_every_loss()
    }

    /// Whether everything that is missing was told, and nothing was repeated or out of order.
    #[must_use]
    pub fn reports_every_loss(&self) -> bool {
        self.silently_lost == 0 && self.repeated == 0 && self.out_of_order == 0
    }

    fn fault(&mut self, fault: impl FnOnce() -> String) {
        if self.faults.len() < FAULTS_MAX {
            self.faults.push(fault());
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

/// Checks the logs of `members` against the acknowledged publications, which stand in the order of their
/// acknowledgement as far as epochs go: an epoch is younger than another if it was first acknowledged later.
#[must_use]
pub fn check(published: &[Published], members: &[MemberLog]) -> Verdict {
    let mut by_room: BTreeMap<&str, Vec<&Published>> = BTreeMap::new();
    for publication in published {
        by_room.entry(&publication.room).or_default().push(publication);
    }
    let mut verdict =
        Verdict { members: members.len(), rooms: by_room.len(), published: published.len(), ..Verdict::default() };
    // Whose number stands at a place: all members and the acknowledgement must agree.
    let mut order: HashMap<(&str, &Position), u64> = HashMap::new();
    for publication in published {
        let place = (publication.room.as_str(), &publication.at);
        if order.insert(place, publication.id).is_some_and(|other| other != publication.id) {
            verdict.out_of_order += 1;
            verdict.fault(|| format!("{} {}: acknowledged to two publications", publication.room, publication.at));
        }
    }
    for member in members {
        for (room, seen) in &member.rooms {
            let mut walk = Walk::default();
            for event in seen {
                if let Seen::Message { at, id } = event
                    && *order.entry((room, at)).or_insert(*id) != *id
                {
                    verdict.out_of_order += 1;
                    verdict.fault(|| format!("{} {room} {at}: another publication than elsewhere", member.name));
                }
                walk.step(event, &mut verdict, || format!("{} {room}", member.name));
            }
            let due = by_room.get(room.as_str()).map_or(&[][..], Vec::as_slice);
            walk.missing(due, &mut verdict, || format!("{} {room}", member.name));
        }
    }
    verdict
}

/// One member's way through one room.
#[derive(Default)]
struct Walk {
    start: Option<Position>,
    at: Option<Position>,
    /// The publications it has seen, each with its last epoch.
    ids: HashMap<u64, String>,
    /// What was told to be missing: after the first place, up to the second.
    told: Vec<(Position, Position)>,
}

impl Walk {
    fn step(&mut self, event: &Seen, verdict: &mut Verdict, who: impl Fn() -> String) {
        match event {
            Seen::Joined { at, gap } => {
                if self.at.is_none() {
                    self.start = Some(at.clone());
                } else if *gap {
                    verdict.gaps += 1;
                    self.skip_to(at);
                }
                self.at = Some(at.clone());
            }
            Seen::Gap { to } => {
                verdict.gaps += 1;
                self.skip_to(to);
                self.at = Some(to.clone());
            }
            Seen::Message { at, id } => {
                verdict.delivered += 1;
                let in_order = self.at.as_ref().is_some_and(|now| now.epoch == at.epoch && now.offset < at.offset);
                let before = self.ids.insert(*id, at.epoch.clone());
                if before.as_ref().is_some_and(|epoch| *epoch == at.epoch) {
                    verdict.repeated += 1;
                    verdict.fault(|| format!("{}: {id} again, at {at}", who()));
                } else if !in_order {
                    verdict.out_of_order += 1;
                    verdict.fault(|| format!("{}: {at} after {:?}", who(), self.at));
                }
                verdict.republished += usize::from(before.is_some_and(|epoch| epoch != at.epoch));
                self.at = Some(at.clone());
            }
        }
    }

    /// A told gap: from where the member stands to `to`.
    fn skip_to(&mut self, to: &Position) {
        let Some(now) = &self.at else { return };
        match self.told.last_mut() {
            // One gap right after the other is one gap.
            Some((_, end)) if end == now => end.clone_from(to),
            _ => self.told.push((now.clone(), to.clone())),
        }
    }

    /// Whether a gap that was told covers this place: who is away for long may be told of one from an epoch to the next
    /// but one.
    fn is_told(&self, at: &Position, age: impl Fn(&str) -> Option<usize>) -> bool {
        self.told.iter().any(|(from, to)| {
            let (after, before) = (from.offset < at.offset, at.offset <= to.offset);
            match (from.epoch == at.epoch, to.epoch == at.epoch) {
                (true, true) => after && before,
                (true, false) => after,
                (false, true) => before,
                (false, false) => match (age(&from.epoch), age(&at.epoch), age(&to.epoch)) {
                    (Some(from), Some(at), Some(to)) => from < at && at < to,
                    // It joined before anything was acknowledged: every known epoch is younger.
                    (None, Some(at), Some(to)) => {
                        self.start.as_ref().is_some_and(|start| start.epoch == from.epoch) && at < to
                    }
                    _ => false,
                },
            }
        })
    }

    /// Counts what was due to this member and is not in its log.
    fn missing(&self, due: &[&Published], verdict: &mut Verdict, who: impl Fn() -> String) {
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
            let Position { epoch, offset } = &publication.at;
            let before = if *epoch == start.epoch { *offset <= start.offset } else { age(epoch) < first };
            if before || self.ids.contains_key(&publication.id) {
                continue;
            }
            verdict.lost += 1;
            if !self.is_told(&publication.at, age) {
                verdict.silently_lost += 1;
                verdict.fault(|| format!("{}: {} ({}) never came", who(), publication.id, publication.at));
            }
        }
    }
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
