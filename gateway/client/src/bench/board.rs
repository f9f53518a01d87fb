//! The score of a load run, and its rules: what is published next, who has received what, and what that says about loss and
//! order. Members and publishers call it with bytes and times; the run reads it. It does no input or output and has no clock.
//!
//! A room's messages come from one publisher session, in one sequence from 1, so that every member's place is judged exactly.

use super::{
    frame,
    options::{Bench, Pace},
    sequence::{Arrival, Sequence},
    stamp::Stamp,
    tally::Tally,
};
use std::{collections::VecDeque, io::Write as _};

/// Publishes of one session that may wait for their acknowledgement at a fixed rate; beyond it the session falls behind, and
/// the latency of what it publishes later says so.
const UNANSWERED_MAX: usize = 65_536;

/// All of a run's state.
#[derive(Debug)]
pub(super) struct Board {
    /// Whose messages count; those of any run when this one publishes nothing itself.
    run: Option<u32>,
    pub(super) tally: Tally,
    rooms: Vec<Room>,
    members: Vec<Member>,
    publishers: Vec<Publisher>,
    pace: Pace,
    payload_bytes: usize,
    /// Publishing happens from the first to the second, in nanoseconds.
    window: (u64, u64),
    stamp_place: usize,
    text: Vec<u8>,
}

#[derive(Debug)]
struct Room {
    name: String,
    members: u32,
    published: u64,
    /// What was refused: nobody misses it.
    refused: Vec<u64>,
    /// In a closed loop: for each message on its way, in order, the members that do not have it; `flights[0]` is number
    /// `flown + 1`.
    flights: VecDeque<u32>,
    flown: u64,
}

#[derive(Debug)]
struct Member {
    room: usize,
    sequence: Sequence,
    /// Whose sequence that is.
    run: Option<u32>,
    is_open: bool,
}

#[derive(Debug)]
struct Publisher {
    /// The messages of the whole run are numbered; room `number % rooms` gets it, and this session has the rooms that
    /// leave its own index when divided by the number of sessions.
    next: u64,
    in_flight: usize,
    in_flight_max: usize,
    /// Publishes without an answer; `asks[0]` has the request id `answered`.
    asks: VecDeque<Ask>,
    answered: u64,
}

#[derive(Debug)]
struct Ask {
    at_ns: u64,
    room: usize,
    sequence: u64,
    is_open: bool,
}

impl Board {
    pub(super) fn new(order: &Bench, run: u32) -> Self {
        let room = |index| Room {
            name: order.room(index),
            members: 0,
            published: 0,
            refused: Vec::new(),
            flights: VecDeque::new(),
            flown: 0,
        };
        let publisher = |index: usize| Publisher {
            next: index as u64,
            in_flight: 0,
            in_flight_max: match order.pace {
                Pace::Rate(_) => usize::MAX,
                Pace::InFlight(all) => all / order.publishers + usize::from(index < all % order.publishers),
            },
            asks: VecDeque::new(),
            answered: 0,
        };
        Self {
            run: (order.publishers > 0).then_some(run),
            tally: Tally::default(),
            rooms: (0..order.rooms).map(room).collect(),
            members: Vec::with_capacity(order.members),
            publishers: (0..order.publishers).map(publisher).collect(),
            pace: order.pace,
            payload_bytes: order.payload_bytes,
            window: (u64::MAX, 0),
            stamp_place: 0,
            text: Vec::new(),
        }
    }

    /// A member that is to join a room; gives its index.
    pub(super) fn enter(&mut self, room: usize) -> usize {
        self.members.push(Member { room, sequence: Sequence::default(), run: self.run, is_open: false });
        self.members.len() - 1
    }

    /// The room has taken it in.
    pub(super) fn joined(&mut self, member: usize) {
        let Some(member) = self.members.get_mut(member).filter(|member| !member.is_open) else { return };
        member.is_open = true;
        self.rooms[member.room].members += 1;
        self.tally.joined += 1;
    }

    /// Its connection has ended, which no member of a good run sees.
    pub(super) fn left(&mut self, member: usize, why: String) {
        let member = &mut self.members[member];
        if std::mem::take(&mut member.is_open) {
            self.rooms[member.room].members -= 1;
            self.tally.disconnected += 1;
            self.tally.complain(why);
        }
    }

    /// There is publishing from the one time to the other; ending it early is saying so again.
    pub(super) fn begin(&mut self, begin_ns: u64, end_ns: u64) {
        self.window = (begin_ns, end_ns);
    }

    /// When the publisher's next message is to go out, at a fixed rate, while there is publishing and it is not held up by
    /// missing answers.
    pub(super) fn due_ns(&self, publisher: usize) -> Option<u64> {
        let (begin_ns, end_ns) = self.window;
        let mine = &self.publishers[publisher];
        let at_ns = due(self.pace, begin_ns, mine.next).filter(|at_ns| *at_ns < end_ns)?;
        (mine.asks.len() < UNANSWERED_MAX).then_some(at_ns)
    }

    /// Appends the frame of the publisher's next message to `out`, if it is time for one.
    pub(super) fn publish(&mut self, publisher: usize, now_ns: u64, out: &mut Vec<u8>) -> bool {
        let (begin_ns, end_ns) = self.window;
        let (rooms, sessions) = (self.rooms.len() as u64, self.publishers.len() as u64);
        let mine = &mut self.publishers[publisher];
        if now_ns < begin_ns || now_ns >= end_ns || mine.asks.len() >= UNANSWERED_MAX {
            return false;
        }
        let at_ns = due(self.pace, begin_ns, mine.next).unwrap_or(now_ns);
        if at_ns > now_ns || at_ns >= end_ns || mine.in_flight >= mine.in_flight_max {
            return false;
        }
        let index = (mine.next % rooms) as usize;
        // The next of its rooms, in this round or, when the round has no more, the first one in the next.
        let step = mine.next % rooms + sessions;
        mine.next =
            if step < rooms { mine.next + sessions } else { (mine.next / rooms + 1) * rooms + publisher as u64 };
        let room = &mut self.rooms[index];
        room.published += 1;
        self.tally.lateness.record(now_ns - at_ns);
        if matches!(self.pace, Pace::InFlight(_)) {
            mine.in_flight += 1;
            room.flights.push_back(room.members.max(1));
        }
        let id = mine.answered + mine.asks.len() as u64;
        mine.asks.push_back(Ask { at_ns, room: index, sequence: room.published, is_open: true });
        self.tally.published += 1;
        self.text.clear();
        // Writing to memory cannot fail.
        let _ = write!(self.text, r#"{{"type":"publish","id":{id},"room":"{}","data":"#, room.name);
        let stamp = Stamp { run: self.run.unwrap_or_default(), sequence: room.published, at_ns };
        stamp.write(self.payload_bytes, &mut self.text);
        self.text.push(b'}');
        frame::text(&self.text, out);
        true
    }

    /// A member has a text frame. Says which publisher may go on because of it.
    ///
    /// # Errors
    /// A frame without a stamp: the caller looks what else it is.
    pub(super) fn received(&mut self, member: usize, text: &[u8], now_ns: u64) -> Result<Option<usize>, ()> {
        let stamp = Stamp::find(text, &mut self.stamp_place).ok_or(())?;
        let is_listener = self.publishers.is_empty();
        let member = &mut self.members[member];
        if member.run != Some(stamp.run) {
            if !is_listener {
                self.tally.strange += 1;
                return Ok(None);
            }
            self.tally.lost_before += member.begin(stamp);
        }
        match member.sequence.arrived(stamp.sequence) {
            Arrival::InOrder => {}
            Arrival::Late => self.tally.out_of_order += 1,
            Arrival::Repeated => {
                self.tally.repeated += 1;
                return Ok(None);
            }
        }
        self.tally.delivered += 1;
        self.tally.latency.record(now_ns.saturating_sub(stamp.at_ns));
        let room = member.room;
        Ok(if is_listener { None } else { self.landed(room, stamp.sequence, 1) })
    }

    /// A publish was acknowledged. Says which publisher may go on because of it.
    pub(super) fn acknowledged(&mut self, publisher: usize, id: u64, now_ns: u64) -> Option<usize> {
        let ask = self.publishers[publisher].answer(id)?;
        self.tally.acknowledged += 1;
        self.tally.acknowledgement.record(now_ns.saturating_sub(ask.at_ns));
        let members = self.rooms[ask.room].members;
        self.tally.expected += u64::from(members);
        if members == 0 { self.landed(ask.room, ask.sequence, 1) } else { None }
    }

    /// A publish was refused. Says which publisher may go on because of it.
    pub(super) fn refused(&mut self, publisher: usize, id: u64, why: String) -> Option<usize> {
        let ask = self.publishers[publisher].answer(id)?;
        self.tally.refused += 1;
        self.tally.complain(why);
        self.rooms[ask.room].refused.push(ask.sequence);
        self.landed(ask.room, ask.sequence, u32::MAX)
    }

    /// `arrivals` more members of the room need not be waited for.
    fn landed(&mut self, room: usize, sequence: u64, arrivals: u32) -> Option<usize> {
        let publisher = room % self.publishers.len();
        let room = &mut self.rooms[room];
        let flight = room.flights.get_mut(sequence.checked_sub(room.flown + 1)? as usize).filter(|left| **left > 0)?;
        *flight = flight.saturating_sub(arrivals);
        let is_down = *flight == 0;
        while room.flights.front() == Some(&0) {
            room.flights.pop_front();
            room.flown += 1;
        }
        self.publishers[publisher].in_flight -= usize::from(is_down);
        is_down.then_some(publisher)
    }

    /// Publishes without an answer.
    pub(super) fn unanswered(&self) -> u64 {
        self.publishers.iter().flat_map(|publisher| &publisher.asks).filter(|ask| ask.is_open).count() as u64
    }

    /// Deliveries of acknowledged messages that a connected member lacks. A run that publishes nothing itself knows only
    /// of those between the first and the last one that a member has of one run.
    pub(super) fn lost(&self) -> u64 {
        let mut excused: Vec<Vec<u64>> = self.rooms.iter().map(|room| room.refused.clone()).collect();
        for ask in self.publishers.iter().flat_map(|publisher| &publisher.asks).filter(|ask| ask.is_open) {
            excused[ask.room].push(ask.sequence);
        }
        excused.iter_mut().for_each(|room| room.sort_unstable());
        let lacks = |member: &Member| -> u64 {
            let excused = &excused[member.room];
            let below = |number: u64| excused.partition_point(|sequence| *sequence < number) as u64;
            let holes = member.sequence.missing(self.rooms[member.room].published);
            holes.map(|hole| hole.end() + 1 - hole.start() - (below(hole.end() + 1) - below(*hole.start()))).sum()
        };
        self.tally.lost_before + self.members.iter().filter(|member| member.is_open).map(lacks).sum::<u64>()
    }
}

/// The time by the clock of a run's message, from 0.
fn due(pace: Pace, begin_ns: u64, message: u64) -> Option<u64> {
    match pace {
        Pace::Rate(rate) => Some(begin_ns.saturating_add((message as f64 * 1e9 / rate) as u64)),
        Pace::InFlight(_) => None,
    }
}

impl Member {
    /// Counts another run's messages from now on: the first one it hears from where it came in, later ones from their
    /// beginning. Says what is missing of the one before.
    fn begin(&mut self, stamp: Stamp) -> u64 {
        let before = std::mem::take(&mut self.sequence);
        let missing = before.missing(before.last()).map(|hole| hole.end() + 1 - hole.start()).sum();
        if self.run.replace(stamp.run).is_none() {
            self.sequence.begin_at(stamp.sequence);
        }
        missing
    }
}

impl Publisher {
    /// Takes the answer to a request; `None` when it is not waited for.
    fn answer(&mut self, id: u64) -> Option<Ask> {
        let ask = self.asks.get_mut(usize::try_from(id.checked_sub(self.answered)?).ok()?).filter(|ask| ask.is_open)?;
        let answered = Ask { is_open: false, ..*ask };
        ask.is_open = false;
        while self.asks.front().is_some_and(|ask| !ask.is_open) {
            self.asks.pop_front();
            self.answered += 1;
        }
        Some(answered)
    }
}

#[cfg(test)]
#[path = "board_tests.rs"]
mod tests;
