//! `SingleFlight`: what many callers want to read at the same time is read once. A caller never shares a read that
//! began before it asked: it may know of a message which that read does not contain. So the first of many callers makes
//! the first read, and all the others share a second one. Holds one entry per read under way.

use crate::{BrokerError, BrokerFuture, redis::Tasks};
use futures_util::{FutureExt, future::Shared};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    hash::Hash,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Reads under way, by what they read.
pub(super) struct SingleFlight<K, V> {
    latest: Mutex<HashMap<K, SharedRead<V>>>,
    tasks: Tasks,
}

/// The latest read of one key. It waits for the one before it, or is under way.
struct SharedRead<V> {
    has_begun: Arc<AtomicBool>,
    result: Shared<BrokerFuture<'static, V>>,
}

impl<K, V> SingleFlight<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub(super) fn new(tasks: Tasks) -> Arc<Self> {
        Arc::new(Self { latest: Mutex::new(HashMap::new()), tasks })
    }

    /// The result of a read of `key` that begins after this call: of one that waits to begin, or else of `read`. A read
    /// goes on to its end even if no caller waits for it any more.
    pub(super) fn share(
        self: &Arc<Self>,
        key: K,
        read: impl Future<Output = Result<V, BrokerError>> + Send + 'static,
    ) -> Shared<BrokerFuture<'static, V>> {
        let mut latest = self.latest.lock();
        let before = match latest.get(&key) {
            Some(waiting) if !waiting.has_begun.load(Ordering::Acquire) => return waiting.result.clone(),
            running => running.map(|running| running.result.clone()),
        };
        let has_begun = Arc::new(AtomicBool::new(false));
        let (reads, begin, of) = (Arc::clone(self), Arc::clone(&has_begun), key.clone());
        let result = async move {
            if let Some(before) = before {
                let _ = before.await; // of either result: this read has its own
            }
            begin.store(true, Ordering::Release);
            let value = read.await;
            // The entry stays if a later read has replaced it.
            let mut latest = reads.latest.lock();
            if latest.get(&of).is_some_and(|read| Arc::ptr_eq(&read.has_begun, &begin)) {
                latest.remove(&of);
            }
            value
        };
        let result = self.tasks.ask(result).shared();
        latest.insert(key, SharedRead { has_begun, result: result.clone() });
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::BrokerThread;
    use std::sync::atomic::AtomicU64;
    use tokio::sync::Semaphore;

    /// Reads the same key; the result is the number of the read.
    fn read(
        single: &Arc<SingleFlight<u8, u64>>,
        reads: &Arc<AtomicU64>,
        go: &Arc<Semaphore>,
    ) -> impl Future<Output = Result<u64, BrokerError>> {
        let (reads, go) = (Arc::clone(reads), Arc::clone(go));
        single.share(7, async move {
            let number = reads.fetch_add(1, Ordering::Relaxed) + 1;
            drop(go.acquire().await);
            Ok(number)
        })
    }

    #[tokio::test]
    async fn the_first_of_many_callers_reads_and_the_others_share_the_second_read() {
        let thread = BrokerThread::start().unwrap();
        let single = SingleFlight::new(thread.tasks(|_| {}));
        let (reads, go) = (Arc::default(), Arc::new(Semaphore::new(0)));
        let first = read(&single, &reads, &go);
        while reads.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        let others: Vec<_> = (0..1000).map(|_| read(&single, &reads, &go)).collect();
        go.add_permits(1);
        assert_eq!(first.await, Ok(1));
        for other in others {
            assert_eq!(other.await, Ok(2), "no caller shares a read that began before it asked");
        }
        assert!(single.latest.lock().is_empty(), "no entry is left");
    }

    #[tokio::test]
    async fn a_read_without_waiting_callers_ends_and_is_forgotten() {
        let thread = BrokerThread::start().unwrap();
        let single = SingleFlight::new(thread.tasks(|_| {}));
        let (reads, go) = (Arc::default(), Arc::new(Semaphore::new(1)));
        drop(read(&single, &reads, &go));
        assert!(read(&single, &reads, &go).await.unwrap() <= 2);
        while !single.latest.lock().is_empty() {
            tokio::task::yield_now().await;
        }
    }
}
