//! What one pipeline carries, as calls: publishes of one room that wait together go as one, so that Redis runs one script
//! and each node reads one push for all of them. Called by `publisher.rs`; sends nothing and waits for nothing.

use crate::redis::{
    commands::{self, Maker},
    presence::roster::Attend,
    write::publisher::{Answer, Command, What},
};
use crate::{BrokerError, Offset, Publish, Published, Retention, Room};
use redis::{Cmd, Value};
use std::collections::HashMap;
use tokio::sync::oneshot;

/// Messages in one call: a script that runs longer than half a millisecond would be felt by everybody else.
const MESSAGES_MAX: usize = 64;
/// Bytes of payload in one call, unless its first message alone is larger.
const BYTES_MAX: usize = 64 * 1024;

/// One command for Redis, and who waits for its answer.
pub(crate) enum Call {
    /// Messages of one room, in the order in which they were published.
    Publish(Messages),
    Attend(Attend),
    Other {
        cmd: Cmd,
        answer: oneshot::Sender<Result<Value, BrokerError>>,
    },
}

/// At least one message; all of one room and retention, and more than one only without idempotency keys.
#[derive(Default)]
pub(crate) struct Messages {
    list: Vec<(Publish, u64)>,
    answers: Vec<Answer>,
    bytes: usize,
}

/// Which call still takes messages of a room.
type Open = HashMap<Room, usize>;

/// Calls that keep the order of commands within each room.
pub(crate) fn calls(commands: Vec<Command>) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::with_capacity(commands.len());
    let mut open = Open::new();
    for command in commands {
        match command.what {
            What::Publish { publish, number, answer } => add(&mut calls, &mut open, (publish, number), answer),
            What::Attend(attend) => {
                // Who comes and then speaks is announced before it is heard.
                open.remove(attend.room());
                calls.push(Call::Attend(attend));
            }
            What::Other { cmd, answer } => calls.push(Call::Other { cmd, answer }),
        }
    }
    calls
}

fn add(calls: &mut Vec<Call>, open: &mut Open, message: (Publish, u64), answer: Answer) {
    let keyed = message.0.key.is_some();
    if !keyed
        && let Some(at) = open.get(&message.0.room)
        && let Some(Call::Publish(messages)) = calls.get_mut(*at)
        && messages.has_room_for(&message.0)
    {
        return messages.push(message, answer);
    }
    if keyed {
        open.remove(&message.0.room);
    } else {
        open.insert(message.0.room.clone(), calls.len());
    }
    let mut messages = Messages::default();
    messages.push(message, answer);
    calls.push(Call::Publish(messages));
}

impl Messages {
    fn has_room_for(&self, publish: &Publish) -> bool {
        self.list.len() < MESSAGES_MAX
            && self.bytes + publish.payload.len() <= BYTES_MAX
            && self.retention() == publish.retention
    }

    fn push(&mut self, (publish, number): (Publish, u64), answer: Answer) {
        self.bytes += publish.payload.len();
        self.list.push((publish, number));
        self.answers.push(answer);
    }

    fn retention(&self) -> Option<Retention> {
        self.list.first().and_then(|(publish, _)| publish.retention)
    }

    /// Each one's place follows from that of the first.
    fn settle(self, value: Result<Value, BrokerError>) {
        let first = value.and_then(|value| {
            commands::published(&value)
                .ok_or_else(|| BrokerError::Protocol("an answer to a publish that is none".into()))
        });
        for (place, answer) in (0..).zip(self.answers) {
            answer.give(first.clone().map(|first| Published {
                cursor: first.cursor.map(|mut cursor| {
                    cursor.offset = Offset(cursor.offset.0 + place);
                    cursor
                }),
                ..first
            }));
        }
    }
}

impl Call {
    pub(crate) fn command(&self, maker: &Maker) -> Cmd {
        match self {
            Self::Publish(messages) => maker.publish(&messages.list),
            Self::Attend(attend) => attend.command(maker),
            Self::Other { cmd, .. } => cmd.clone(),
        }
    }

    /// Tells everybody who waits what Redis answered.
    pub(crate) fn settle(self, value: Result<Value, BrokerError>) {
        match self {
            Self::Publish(messages) => messages.settle(value),
            Self::Attend(attend) => attend.settle(value.map(drop)),
            Self::Other { answer, .. } => drop(answer.send(value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::IdempotencyKey;
    use proptest::prelude::*;
    use std::time::{Duration, Instant};

    fn publish(room: u8, keyed: bool, bytes: usize, number: u64) -> Command {
        let publish = Publish {
            room: Room::parse(&format!("r{room}")).unwrap(),
            payload: vec![b'x'; bytes].into(),
            author: None,
            ts_ms: 0,
            key: keyed.then(|| IdempotencyKey::parse(&number.to_string()).unwrap()),
            retention: Some(Retention { messages: 10, ttl: Duration::from_secs(60) }),
        };
        Command { what: What::Publish { publish, number, answer: Answer::nobody() }, since: Instant::now() }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        /// Every message is in one call, in the order of its room; keys stand alone; no call is too large.
        #[test]
        fn rooms_keep_their_order(list in proptest::collection::vec((0u8..3, proptest::bool::weighted(0.2), 0usize..30_000), 0..120)) {
            let commands = (0..).zip(&list).map(|(n, (room, keyed, bytes))| publish(*room, *keyed, *bytes, n)).collect();
            let mut seen: HashMap<Room, Vec<u64>> = HashMap::new();
            for call in calls(commands) {
                let Call::Publish(messages) = call else { panic!("only publishes went in") };
                prop_assert!(messages.list.len() <= MESSAGES_MAX);
                prop_assert!(messages.list.len() == 1 || messages.bytes <= BYTES_MAX);
                prop_assert!(messages.list.len() == 1 || messages.list.iter().all(|(p, _)| p.key.is_none()));
                for (publish, number) in &messages.list {
                    seen.entry(publish.room.clone()).or_default().push(*number);
                }
            }
            prop_assert_eq!(seen.values().map(Vec::len).sum::<usize>(), list.len());
            for (room, numbers) in seen {
                prop_assert!(numbers.is_sorted(), "{:?}: {:?}", room, numbers);
            }
        }
    }

    #[test]
    fn what_waits_together_goes_together() {
        let commands = [(1, false), (2, false), (1, false), (1, true), (1, false)];
        let commands = (0..).zip(commands).map(|(n, (room, keyed))| publish(room, keyed, 10, n)).collect();
        let numbers = |call: &Call| match call {
            Call::Publish(messages) => messages.list.iter().map(|(_, number)| *number).collect::<Vec<_>>(),
            _ => vec![],
        };
        assert_eq!(calls(commands).iter().map(numbers).collect::<Vec<_>>(), [vec![0, 2], vec![1], vec![3], vec![4]]);
    }
}
