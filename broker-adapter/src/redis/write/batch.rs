//! Packs queued commands into calls to Redis. Queued publishes of one room share a call: Redis runs one script, and
//! each subscribed node receives one pub/sub message for all of them. Pure: sends nothing and waits for nothing.

use crate::{
    BrokerError, Cursor, Offset, Published, Room,
    redis::{CommandBuilder, Fence, Messages, QueuedCommand, WriteCommand, commands},
};
use redis::{Cmd, Value};
use std::{collections::HashMap, iter::once};

/// At most this many messages in one call, so that the script takes under 0.5 ms: Redis serves nobody else while it
/// runs.
const MESSAGES_MAX: usize = 64;
/// At most this many bytes of payload in one call. A larger message is alone in its call.
const BYTES_MAX: usize = 64 * 1024;

/// For each room, the call to which further messages may be added: its index in the list of calls.
type OpenCalls = HashMap<Room, usize>;

/// Packs commands into fewer ones. Keeps the order of publishes and presence changes of each room; `Other` commands
/// have no order among those.
pub(crate) fn calls(commands: Vec<QueuedCommand>) -> Vec<WriteCommand> {
    let mut calls: Vec<WriteCommand> = Vec::with_capacity(commands.len());
    let mut open = OpenCalls::new();
    for queued in commands {
        match queued.command {
            WriteCommand::Publish(messages) => add(&mut calls, &mut open, messages),
            WriteCommand::Presence(command) => {
                // A message that follows must not be added to an earlier call, which would publish it before the event.
                open.remove(&command.change.membership.room);
                calls.push(WriteCommand::Presence(command));
            }
            other => calls.push(other),
        }
    }
    calls
}

/// Adds a queued message to its room's open call, or makes it a call. A message with an idempotency key gets a call of
/// its own, and closes the room's open call, so that later messages come after it.
fn add(calls: &mut Vec<WriteCommand>, open: &mut OpenCalls, messages: Messages) {
    let publish = &messages.first.publish;
    if publish.key.is_some() {
        open.remove(&publish.room);
    } else if let Some(at) = open.get(&publish.room)
        && let Some(WriteCommand::Publish(call)) = calls.get_mut(*at)
        && call.len() < MESSAGES_MAX
        && call.bytes + messages.bytes <= BYTES_MAX
        && call.first.publish.retention == publish.retention
    {
        call.bytes += messages.bytes;
        return call.more.push(messages.first);
    } else {
        open.insert(publish.room.clone(), calls.len());
    }
    calls.push(WriteCommand::Publish(messages));
}

/// Refuses the calls among `again`, whose script Redis had forgotten, that `later` has overtaken: another node has loaded
/// the scripts between the two. Sent again, they would come after it.
pub(crate) fn refuse_overtaken(again: &mut Vec<WriteCommand>, later: &WriteCommand) {
    for overtaken in again.extract_if(.., |call| call.has_order_with(later)) {
        overtaken.complete(Err(BrokerError::Unavailable));
    }
}

impl WriteCommand {
    /// Whether the order of the two matters: messages of one room, or one session that enters and leaves a room.
    fn has_order_with(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Publish(one), Self::Publish(other)) => one.first.publish.room == other.first.publish.room,
            (Self::Presence(one), Self::Presence(other)) => one.change.membership == other.change.membership,
            _ => false,
        }
    }

    pub(crate) fn cmd(&self, builder: &CommandBuilder, fence: &Fence) -> Cmd {
        match self {
            Self::Publish(messages) => builder.publish(fence, messages),
            Self::Presence(command) => builder.presence(&command.change),
            Self::Probe(cmd) => cmd.clone(),
            Self::Other { cmd, .. } => cmd.clone(),
        }
    }

    /// Reports the result to all callers whose commands were packed into this one.
    pub(crate) fn complete(self, result: Result<Value, BrokerError>) {
        match self {
            Self::Publish(Messages { first, more, .. }) => {
                let malformed = || BrokerError::Protocol("malformed reply to a publish".into());
                let published = result.and_then(|reply| commands::published(&reply).ok_or_else(malformed));
                // The reply names the cursor of the first message; the others have the offsets after it.
                for (distance, mut pending) in (0..).zip(once(first).chain(more)) {
                    let after = |first: Cursor| Cursor::new(first.epoch, Offset(first.offset.0 + distance));
                    let moved = |first: Published| Published { cursor: first.cursor.map(after), ..first };
                    pending.complete(published.clone().map(moved));
                }
            }
            Self::Presence(mut command) => command.complete(result.map(drop)),
            Self::Probe(_) => {}
            Self::Other { reply, .. } => drop(reply.send(result)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{IdempotencyKey, Publish, Reply, Retention, redis::write::command::PendingPublish};
    use proptest::prelude::*;
    use std::{
        sync::Arc,
        time::{Duration, Instant},
    };

    fn publish(room: u8, keyed: bool, bytes: usize, number: u64) -> QueuedCommand {
        let publish = Publish {
            room: Room::parse(&format!("r{room}")).unwrap(),
            payload: vec![b'x'; bytes].into(),
            author: None,
            ts_ms: 0,
            key: keyed.then(|| IdempotencyKey::parse(&number.to_string()).unwrap()),
            retention: Some(Retention { messages: 10, ttl: Duration::from_secs(60) }),
        };
        let pending = PendingPublish::new(publish, number, Reply::Nobody, Arc::new([]), Arc::default());
        QueuedCommand { command: WriteCommand::Publish(Messages::of(pending)), since: Instant::now() }
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
                let WriteCommand::Publish(messages) = call else { panic!("only publishes went in") };
                prop_assert!(messages.len() <= MESSAGES_MAX);
                prop_assert!(messages.len() == 1 || messages.bytes <= BYTES_MAX);
                prop_assert!(messages.len() == 1 || messages.iter().all(|m| m.publish.key.is_none()));
                for PendingPublish { publish, number, .. } in messages.iter() {
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
    fn a_call_that_a_later_one_of_its_room_has_overtaken_is_refused() {
        let call = |room, number| calls(vec![publish(room, false, 10, number)]).remove(0);
        let mut again = vec![call(1, 0), call(2, 1), call(1, 2)];
        refuse_overtaken(&mut again, &call(3, 3));
        assert_eq!(again.len(), 3);
        refuse_overtaken(&mut again, &call(1, 4));
        let rooms: Vec<_> = again.iter().map(|call| call.has_order_with(&again[0])).collect();
        assert_eq!(rooms, [true], "the call of the other room is left");
    }

    #[test]
    fn messages_of_one_room_that_wait_together_become_one_call() {
        let commands = [(1, false), (2, false), (1, false), (1, true), (1, false)];
        let commands = (0..).zip(commands).map(|(n, (room, keyed))| publish(room, keyed, 10, n)).collect();
        let numbers = |call: &WriteCommand| match call {
            WriteCommand::Publish(messages) => messages.iter().map(|message| message.number).collect::<Vec<_>>(),
            _ => vec![],
        };
        assert_eq!(calls(commands).iter().map(numbers).collect::<Vec<_>>(), [vec![0, 2], vec![1], vec![3], vec![4]]);
    }
}
