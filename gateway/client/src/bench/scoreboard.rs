//! The score of a load run, and its rules: what is published next, who has received what, and what that says about loss and
//! order. Members and publishers call it with bytes and times; the run reads it. It does no input or output and has no clock.
//!
//! All messages of a room come from one publisher session, in one sequence from 1, so that what each member has received
//! can be judged exactly.

use super::{
    counters::Counters,
    frame,
    options::{BenchOptions, LoadModel},
    sequence::{Arrival, Sequence},
    stamp::Stamp,
};
use std::{collections::VecDeque, io::Write as _, ops::Range};

/// How many publishes of one session may wait for their replies at a fixed rate. Beyond it the session falls behind, which
/// shows in the latency of what it publishes later.
const UNANSWERED_MAX: usize = 65_536;

/// All state of a run.
#[derive(Debug)]
pub(super) struct Scoreboard {
    /// The run whose messages count; `None` counts those of any run, because this one publishes nothing.
    run: Option<u32>,
    pub(super) counters: Counters,
    rooms: Vec<BenchRoom>,
    members: Vec<BenchMember>,
    publishers: Vec<BenchPublisher>,
    pace: LoadModel,
    payload_bytes: usize,
    /// When there is publishing, in nanoseconds.
    window: Range<u64>,
    /// Where in a frame the last stamp was found.
    stamp_index: usize,
    /// The text of the message that is being composed.
    text: Vec<u8>,
}

#[derive(Debug, Default)]
struct BenchRoom {
    name: String,
    members: u32,
    published: u64,
    /// Messages that were refused, so that no member can have them.
    refused: Vec<u64>,
    /// In a closed loop: for each message in flight, in order, how many members do not have it. `in_flight[0]` is message
    /// `landed + 1`.
    in_flight: VecDeque<u32>,
    landed: u64,
}

#[derive(Debug)]
struct BenchMember {
    room: usize,
    sequence: Sequence,
    /// The run whose sequence that is.
    run: Option<u32>,
    is_open: bool,
}

#[derive(Debug, Default)]
struct BenchPublisher {
    /// The number of its next message in the whole run. Message `n` goes to room `n % rooms`, and a session has the rooms
    /// that leave its own index when divided by the number of sessions.
    next: u64,
    in_flight: usize,
    in_flight_max: usize,
    /// Publishes in the order of their request ids; `requests[0]` has the id `answered`.
    requests: VecDeque<SentPublish>,
    answered: u64,
}

#[derive(Debug)]
struct SentPublish {
    at_ns: u64,
    room: usize,
    sequence: u64,
    is_open: bool,
}

/// A frame without a stamp, which is no message of a load run.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoStamp;

impl Scoreboard {
    pub(super) fn new(options: &BenchOptions, run: u32) -> Self {
        let room = |index| BenchRoom { name: options.room(index), ..BenchRoom::default() };
        let publisher = |index: usize| BenchPublisher {
            next: index as u64,
            in_flight_max: match options.pace() {
                LoadModel::Rate(_) => usize::MAX,
                LoadModel::InFlight(all) => all / options.publishers + usize::from(index < all % options.publishers),
            },
            ..BenchPublisher::default()
        };
        Self {
            run: (options.publishers > 0).then_some(run),
            counters: Counters::default(),
            rooms: (0..options.rooms).map(room).collect(),
            members: Vec::with_capacity(options.members),
            publishers: (0..options.publishers).map(publisher).collect(),
            pace: options.pace(),
            payload_bytes: options.payload_bytes,
            window: 0..0,
            stamp_index: 0,
            text: Vec::new(),
        }
    }

    /// Adds a member that will join a room; gives its index.
    pub(super) fn add_member(&mut self, room: usize) -> usize {
        self.members.push(BenchMember { room, sequence: Sequence::default(), run: self.run, is_open: false });
        self.members.len() - 1
    }

    pub(super) fn joined(&mut self, member: usize) {
        let Some(member) = self.members.get_mut(member).filter(|member| !member.is_open) else { return };
        member.is_open = true;
        self.rooms[member.room].members += 1;
        self.counters.joined += 1;
    }

    /// The member's connection has ended, which is a fault.
    pub(super) fn disconnected(&mut self, member: usize, why: String) {
        let member = &mut self.members[member];
        if std::mem::take(&mut member.is_open) {
            self.rooms[member.room].members -= 1;
            self.counters.disconnected += 1;
            self.counters.complain(why);
        }
    }

    /// Sets when there is publishing; the run sets an earlier end to stop.
    pub(super) fn set_window(&mut self, begin_ns: u64, end_ns: u64) {
        self.window = begin_ns..end_ns;
    }

    /// When the publisher's next message is scheduled at a fixed rate; `None` outside the window, or while the publisher
    /// waits for replies.
    pub(super) fn due_ns(&self, publisher: usize) -> Option<u64> {
        let publisher = &self.publishers[publisher];
        let at_ns =
            scheduled_ns(self.pace, self.window.start, publisher.next).filter(|at_ns| *at_ns < self.window.end)?;
        (publisher.requests.len() < UNANSWERED_MAX).then_some(at_ns)
    }

    /// Appends the frame of the publisher's next message to `out`, if one is due.
    pub(super) fn publish(&mut self, publisher: usize, now_ns: u64, out: &mut Vec<u8>) -> bool {
        let (rooms, sessions) = (self.rooms.len() as u64, self.publishers.len() as u64);
        let own = &mut self.publishers[publisher];
        if !self.window.contains(&now_ns) || own.requests.len() >= UNANSWERED_MAX {
            return false;
        }
        let at_ns = scheduled_ns(self.pace, self.window.start, own.next).unwrap_or(now_ns);
        if at_ns > now_ns || own.in_flight >= own.in_flight_max {
            return false;
        }
        let index = (own.next % rooms) as usize;
        // The next of its rooms in this round or, when the round has no more of them, its first room in the next round.
        let step = own.next % rooms + sessions;
        own.next = if step < rooms { own.next + sessions } else { (own.next / rooms + 1) * rooms + publisher as u64 };
        let room = &mut self.rooms[index];
        room.published += 1;
        self.counters.lateness.record(now_ns - at_ns);
        if matches!(self.pace, LoadModel::InFlight(_)) {
            own.in_flight += 1;
            room.in_flight.push_back(room.members.max(1));
        }
        let id = own.answered + own.requests.len() as u64;
        own.requests.push_back(SentPublish { at_ns, room: index, sequence: room.published, is_open: true });
        self.counters.published += 1;
        self.text.clear();
        // Writing to memory cannot fail.
        let _ = write!(self.text, r#"{{"type":"publish","id":{id},"room":"{}","data":"#, room.name);
        let stamp = Stamp { run: self.run.unwrap_or_default(), sequence: room.published, at_ns };
        stamp.write(self.payload_bytes, &mut self.text);
        self.text.push(b'}');
        frame::text(&self.text, out);
        true
    }

    /// A member has received a text frame. Gives the publisher that may publish again because of it. Of a frame that is
    /// not a message of a load run the caller looks what it is.
    pub(super) fn received(&mut self, member: usize, text: &[u8], now_ns: u64) -> Result<Option<usize>, NoStamp> {
        let stamp = Stamp::find(text, &mut self.stamp_index).ok_or(NoStamp)?;
        let is_listening = self.publishers.is_empty();
        let member = &mut self.members[member];
        if member.run != Some(stamp.run) {
            if !is_listening {
                self.counters.strange += 1;
                return Ok(None);
            }
            self.counters.lost_before += member.begin(stamp);
        }
        match member.sequence.arrived(stamp.sequence) {
            Arrival::InOrder => {}
            Arrival::Late => self.counters.out_of_order += 1,
            Arrival::Repeated => {
                self.counters.repeated += 1;
                return Ok(None);
            }
        }
        self.counters.delivered += 1;
        self.counters.latency.record(now_ns.saturating_sub(stamp.at_ns));
        let room = member.room;
        Ok(if is_listening { None } else { self.arrived(room, stamp.sequence, 1) })
    }

    /// A publish was acknowledged. Gives the publisher that may publish again because of it.
    pub(super) fn acknowledged(&mut self, publisher: usize, id: u64, now_ns: u64) -> Option<usize> {
        let request = self.publishers[publisher].close_request(id)?;
        self.counters.acknowledged += 1;
        self.counters.acknowledgement.record(now_ns.saturating_sub(request.at_ns));
        let members = self.rooms[request.room].members;
        self.counters.expected += u64::from(members);
        if members == 0 { self.arrived(request.room, request.sequence, 1) } else { None }
    }

    /// A publish was refused. Gives the publisher that may publish again because of it.
    pub(super) fn refused(&mut self, publisher: usize, id: u64, why: String) -> Option<usize> {
        let request = self.publishers[publisher].close_request(id)?;
        self.counters.refused += 1;
        self.counters.complain(why);
        self.rooms[request.room].refused.push(request.sequence);
        self.arrived(request.room, request.sequence, u32::MAX)
    }

    /// A message need not be waited for by `arrivals` more members of its room. Gives the publisher that may publish again
    /// because the message is no longer in flight.
    fn arrived(&mut self, room: usize, sequence: u64, arrivals: u32) -> Option<usize> {
        let publisher = room % self.publishers.len();
        let room = &mut self.rooms[room];
        let index = sequence.checked_sub(room.landed + 1)? as usize;
        let waiting = room.in_flight.get_mut(index).filter(|waiting| **waiting > 0)?;
        *waiting = waiting.saturating_sub(arrivals);
        let has_landed = *waiting == 0;
        while room.in_flight.front() == Some(&0) {
            room.in_flight.pop_front();
            room.landed += 1;
        }
        self.publishers[publisher].in_flight -= usize::from(has_landed);
        has_landed.then_some(publisher)
    }

    pub(super) fn unanswered(&self) -> u64 {
        self.open_requests().count() as u64
    }

    fn open_requests(&self) -> impl Iterator<Item = &SentPublish> {
        self.publishers.iter().flat_map(|publisher| &publisher.requests).filter(|request| request.is_open)
    }

    /// How many deliveries of acknowledged messages the connected members lack. A run that publishes nothing knows only of
    /// those between the first and the last message that a member has of one run.
    pub(super) fn lost(&self) -> u64 {
        // Per room: messages that were refused or have no reply. A member that lacks them has lost nothing.
        let mut excused: Vec<Vec<u64>> = self.rooms.iter().map(|room| room.refused.clone()).collect();
        for request in self.open_requests() {
            excused[request.room].push(request.sequence);
        }
        excused.iter_mut().for_each(|room| room.sort_unstable());
        let lacks = |member: &BenchMember| -> u64 {
            let excused = &excused[member.room];
            let below = |number: u64| excused.partition_point(|sequence| *sequence < number) as u64;
            let holes = member.sequence.missing(self.rooms[member.room].published);
            holes.map(|hole| hole.end() + 1 - hole.start() - (below(hole.end() + 1) - below(*hole.start()))).sum()
        };
        self.counters.lost_before + self.members.iter().filter(|member| member.is_open).map(lacks).sum::<u64>()
    }
}

/// When the message `number` of a run, counted from 0, is scheduled; `None` in a closed loop.
fn scheduled_ns(pace: LoadModel, begin_ns: u64, number: u64) -> Option<u64> {
    match pace {
        LoadModel::Rate(rate) => Some(begin_ns.saturating_add((number as f64 * 1e9 / rate) as u64)),
        LoadModel::InFlight(_) => None,
    }
}

impl BenchMember {
    /// Counts the messages of another run from now on: of the first run that the member hears, from the message it hears
    /// first; of later runs, from their beginning. Gives the number of messages missing of the run before.
    fn begin(&mut self, stamp: Stamp) -> u64 {
        let before = std::mem::take(&mut self.sequence);
        let missing = before.missing(before.last).map(|hole| hole.end() + 1 - hole.start()).sum();
        if self.run.replace(stamp.run).is_none() {
            self.sequence.last = stamp.sequence.saturating_sub(1);
        }
        missing
    }
}

impl BenchPublisher {
    /// Takes the reply to a request; `None` when no reply to this id is waited for.
    fn close_request(&mut self, id: u64) -> Option<SentPublish> {
        let index = usize::try_from(id.checked_sub(self.answered)?).ok()?;
        let request = self.requests.get_mut(index).filter(|request| request.is_open)?;
        let closed = SentPublish { is_open: false, ..*request };
        request.is_open = false;
        while self.requests.front().is_some_and(|request| !request.is_open) {
            self.requests.pop_front();
            self.answered += 1;
        }
        Some(closed)
    }
}

#[cfg(test)]
#[path = "scoreboard_tests.rs"]
mod tests;
