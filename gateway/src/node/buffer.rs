//! HTTP publishes that wait for the backplane instead of failing at once: `?buffer=5s`. Called by `api::publish`. A message
//! waits in its own request: it is acknowledged only once the broker has it, and forgotten when its client hangs up.
//! Messages of one room go out one at a time, in the order in which they came to this node. Retries carry an idempotency
//! key, so a message that is sent several times is one publication.

use super::metrics::Metrics;
use fanfare_broker::{Broker, BrokerError, IdempotencyKey, Publish, PublishResult, Reply, Room};
use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Mutex as Turn, oneshot},
    time::{sleep, timeout},
};

/// Messages that may wait on this node.
const MESSAGES_MAX: usize = 10_000;
/// Their payload bytes.
const BYTES_MAX: usize = 16 << 20;
/// Between two attempts for one message. An attempt is cheap: a broker without a connection refuses at once.
const RETRY: Duration = Duration::from_millis(50);
/// Locks that the rooms share, by hash: two rooms wait for each other with a chance of one in 64.
const TURNS: usize = 64;

/// The publishes that wait for the backplane, bounded in messages and bytes.
pub(crate) struct Buffer {
    held: Mutex<BufferUsage>,
    /// Fair locks: given out in the order in which they were asked for.
    turns: [Turn<()>; TURNS],
    metrics: Arc<Metrics>,
}

#[derive(Debug, Clone, Copy, Default)]
struct BufferUsage {
    messages: usize,
    bytes: usize,
}

/// Counts one message as waiting.
struct Permit<'a> {
    buffer: &'a Buffer,
    bytes: usize,
}

impl Buffer {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        Self { held: Mutex::default(), turns: std::array::from_fn(|_| Turn::new(())), metrics }
    }

    /// Publishes as soon as the backplane takes it.
    /// [`BrokerError::Overloaded`] at once if the buffer is full, the last attempt's error after `wait`.
    pub(crate) async fn publish(&self, broker: &dyn Broker, publish: Publish, wait: Duration) -> PublishResult {
        let _permit = self.hold(publish.payload.len())?;
        let key = publish.key.clone().or_else(fresh_key).ok_or(BrokerError::Unavailable)?;
        let publish = Publish { key: Some(key), ..publish };
        let mut last = BrokerError::Unavailable;
        let taken = async {
            let _turn = self.turn(&publish.room).lock().await;
            loop {
                match publish_once(broker, publish.clone()).await {
                    Err(why) if why.is_temporary() => {
                        last = why;
                        sleep(RETRY).await;
                    }
                    result => return result,
                }
            }
        };
        timeout(wait, taken).await.unwrap_or(Err(last))
    }

    fn turn(&self, room: &Room) -> &Turn<()> {
        let mut hasher = DefaultHasher::new();
        room.hash(&mut hasher);
        &self.turns[hasher.finish() as usize % TURNS]
    }

    fn hold(&self, bytes: usize) -> Result<Permit<'_>, BrokerError> {
        let mut held = self.held();
        if held.messages >= MESSAGES_MAX || held.bytes + bytes > BYTES_MAX {
            self.metrics.buffer_refused.inc();
            return Err(BrokerError::Overloaded);
        }
        held.messages += 1;
        held.bytes += bytes;
        self.show(*held);
        Ok(Permit { buffer: self, bytes })
    }

    fn held(&self) -> MutexGuard<'_, BufferUsage> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn show(&self, held: BufferUsage) {
        self.metrics.buffered_messages.set(held.messages as i64);
        self.metrics.buffered_bytes.set(held.bytes as i64);
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let mut held = self.buffer.held();
        held.messages -= 1;
        held.bytes -= self.bytes;
        self.buffer.show(*held);
    }
}

/// Publishes and waits for the broker's reply, which comes within a second.
pub(crate) async fn publish_once(broker: &dyn Broker, publish: Publish) -> PublishResult {
    let (sender, reply) = oneshot::channel();
    broker.publish(publish, Reply::Waiter(sender));
    reply.await.unwrap_or(Err(BrokerError::Unavailable))
}

/// A key for a request without one, so that its attempts are one publication too.
fn fresh_key() -> Option<IdempotencyKey> {
    let (high, low) = (getrandom::u64().ok()?, getrandom::u64().ok()?);
    IdempotencyKey::parse(&format!("{high:016x}{low:016x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_buffer_is_bounded_in_messages_and_bytes_and_is_empty_again() {
        let metrics = Metrics::new("a");
        let buffer = Buffer::new(Arc::clone(&metrics));
        let small: Vec<_> = (0..MESSAGES_MAX).map(|_| buffer.hold(1).unwrap()).collect();
        assert!(buffer.hold(1).is_err());
        assert_eq!(metrics.buffered_messages.get(), MESSAGES_MAX as i64);
        drop(small);
        let large: Vec<_> = (0..4).map(|_| buffer.hold(BYTES_MAX / 4).unwrap()).collect();
        assert!(buffer.hold(1).is_err());
        drop(large);
        assert_eq!((metrics.buffered_messages.get(), metrics.buffered_bytes.get()), (0, 0));
        assert_eq!(metrics.buffer_refused.get(), 2);
    }
}
