//! Packs the commands of one pipeline into calls. Publishes into one room that wait together become one call, so that
//! Redis runs one script and each node reads one push for all of them. Sends nothing and waits for nothing.

use crate::{
    BrokerError, Offset, Publish, Published, Retention, Room,
    redis::{
        commands::{self, CommandBuilder, NumberedPublish},
        fence::Fence,
        write::command::{Command, PendingPublish, PresenceCommand, QueuedCommand},
    },
};
use redis::{Cmd, Value};
use std::collections::HashMap;
use tokio::sync::oneshot;

/// Messages in one call: a script that runs longer than half a millisecond would delay all other clients of Redis.
const MESSAGES_MAX: usize = 64;
/// Bytes of payload in one call, unless its first message alone is larger.
const BYTES_MAX: usize = 64 * 1024;

/// One command for Redis, and what is done with the reply.
pub(crate) enum Call {
    /// Messages of one room, in the order in which they were published.
    Publish(Messages),
    Presence(PresenceCommand),
    Other {
        cmd: Cmd,
        reply: oneshot::Sender<Result<Value, BrokerError>>,
    },
}

/// At least one message. All are of one room and one retention; more than one only without idempotency keys.
#[derive(Default)]
pub(crate) struct Messages {
    list: Vec<NumberedPublish>,
    pending: Vec<PendingPublish>,
    bytes: usize,
}

/// The index of the call that still takes messages, for each room.
type OpenCalls = HashMap<Room, usize>;

/// Packs commands into calls that keep the order of commands within each room.
pub(crate) fn calls(commands: Vec<QueuedCommand>) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::with_capacity(commands.len());
    let mut open = OpenCalls::new();
    for queued in commands {
        match queued.command {
            Command::Publish { message, pending } => add(&mut calls, &mut open, message, pending),
            Command::Presence(command) => {
                // A message that follows must not join an earlier call: members would get it before the event.
                open.remove(&command.change.room);
                calls.push(Call::Presence(command));
            }
            Command::Other { cmd, reply } => calls.push(Call::Other { cmd, reply }),
        }
    }
    calls
}

/// Adds a message to its room's open call, or to a new one. A message with an idempotency key gets a call of its own,
/// and closes the room's open call, so that later messages come after it.
fn add(calls: &mut Vec<Call>, open: &mut OpenCalls, message: NumberedPublish, pending: PendingPublish) {
    let room = &message.publish.room;
    if message.publish.key.is_some() {
        open.remove(room);
    } else if let Some(at) = open.get(room)
        && let Some(Call::Publish(messages)) = calls.get_mut(*at)
        && messages.has_room_for(&message.publish)
    {
        return messages.push(message, pending);
    } else {
        open.insert(room.clone(), calls.len());
    }
    let mut messages = Messages::default();
    messages.push(message, pending);
    calls.push(Call::Publish(messages));
}

impl Messages {
    fn has_room_for(&self, publish: &Publish) -> bool {
        self.list.len() < MESSAGES_MAX
            && self.bytes + publish.payload.len() <= BYTES_MAX
            && self.retention() == publish.retention
    }

    fn push(&mut self, message: NumberedPublish, pending: PendingPublish) {
        self.bytes += message.publish.payload.len();
        self.list.push(message);
        self.pending.push(pending);
    }

    fn retention(&self) -> Option<Retention> {
        self.list.first().and_then(|message| message.publish.retention)
    }

    /// The reply names the cursor of the first message; the others have the offsets after it.
    fn complete(self, result: Result<Value, BrokerError>) {
        let first = result.and_then(|reply| {
            let malformed = || BrokerError::Protocol("malformed reply to a publish".into());
            commands::published(&reply).ok_or_else(malformed)
        });
        for (distance, pending) in (0..).zip(self.pending) {
            pending.complete(first.clone().map(|first| Published {
                cursor: first.cursor.map(|mut cursor| {
                    cursor.offset = Offset(cursor.offset.0 + distance);
                    cursor
                }),
                ..first
            }));
        }
    }
}

impl Call {
    pub(crate) fn command(&self, builder: &CommandBuilder, fence: &Fence) -> Cmd {
        match self {
            Self::Publish(messages) => builder.publish(fence, &messages.list),
            Self::Presence(command) => builder.presence(&command.change),
            Self::Other { cmd, .. } => cmd.clone(),
        }
    }

    /// Reports the result to all callers whose commands are in the call.
    pub(crate) fn complete(self, result: Result<Value, BrokerError>) {
        match self {
            Self::Publish(messages) => messages.complete(result),
            Self::Presence(command) => command.complete(result.map(drop)),
            Self::Other { reply, .. } => drop(reply.send(result)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::IdempotencyKey;
    use proptest::prelude::*;
    use std::time::{Duration, Instant};

    fn publish(room: u8, keyed: bool, bytes: usize, number: u64) -> QueuedCommand {
        let publish = Publish {
            room: Room::parse(&format!("r{room}")).unwrap(),
            payload: vec![b'x'; bytes].into(),
            author: None,
            ts_ms: 0,
            key: keyed.then(|| IdempotencyKey::parse(&number.to_string()).unwrap()),
            retention: Some(Retention { messages: 10, ttl: Duration::from_secs(60) }),
        };
        let message = NumberedPublish { publish, number };
        let command = Command::Publish { message, pending: PendingPublish::without_reply() };
        QueuedCommand { command, since: Instant::now() }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        /// Every message is in one call, in the order of its room; keyed messages are alone; no call is too large.
        #[test]
        fn every_room_keeps_the_order_of_its_messages(
            list in proptest::collection::vec((0u8..3, proptest::bool::weighted(0.2), 0usize..30_000), 0..120),
        ) {
            let command = |(n, (room, keyed, bytes)): (_, &(_, _, _))| publish(*room, *keyed, *bytes, n);
            let commands = (0..).zip(&list).map(command).collect();
            let mut seen: HashMap<Room, Vec<u64>> = HashMap::new();
            for call in calls(commands) {
                let Call::Publish(messages) = call else { panic!("only publishes went in") };
                prop_assert!(messages.list.len() <= MESSAGES_MAX);
                prop_assert!(messages.list.len() == 1 || messages.bytes <= BYTES_MAX);
                prop_assert!(messages.list.len() == 1 || messages.list.iter().all(|m| m.publish.key.is_none()));
                for NumberedPublish { publish, number } in &messages.list {
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
    fn messages_of_one_room_that_wait_together_become_one_call() {
        let commands = [(1, false), (2, false), (1, false), (1, true), (1, false)];
        let commands = (0..).zip(commands).map(|(n, (room, keyed))| publish(room, keyed, 10, n)).collect();
        let numbers = |call: &Call| match call {
            Call::Publish(messages) => messages.list.iter().map(|message| message.number).collect::<Vec<_>>(),
            _ => vec![],
        };
        assert_eq!(calls(commands).iter().map(numbers).collect::<Vec<_>>(), [vec![0, 2], vec![1], vec![3], vec![4]]);
    }
}
