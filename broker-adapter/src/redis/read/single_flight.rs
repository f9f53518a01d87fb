//! Reads that many want at once are made once. A read is shared by all who ask before it begins, never by somebody who
//! asks later: that one may have been told of something that the read does not contain yet. So of a storm the first one
//! reads, and all the others share the second read. Called by `reads.rs`; holds an entry per read under way.

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use std::{
    collections::HashMap,
    hash::Hash,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

/// Reads under way, by what they read.
pub(crate) struct Flights<K, V> {
    latest: Mutex<HashMap<K, Flight<V>>>,
}

/// The latest read of something: not begun, or under way.
struct Flight<V> {
    begun: Arc<AtomicBool>,
    answer: Shared<BoxFuture<'static, V>>,
}

impl<K, V> Flights<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { latest: Mutex::new(HashMap::new()) })
    }

    fn latest(&self) -> MutexGuard<'_, HashMap<K, Flight<V>>> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer of a read of `key` that begins after this call: one that waits to begin, or `read`. A read goes on
    /// to its end even if nobody waits for it any more.
    pub(crate) fn share(
        self: &Arc<Self>,
        key: K,
        read: impl Future<Output = V> + Send + 'static,
    ) -> Shared<BoxFuture<'static, V>> {
        let mut latest = self.latest();
        let before = match latest.get(&key) {
            Some(flight) if !flight.begun.load(Ordering::Acquire) => return flight.answer.clone(),
            before => before.map(|flight| flight.answer.clone()),
        };
        let begun = Arc::new(AtomicBool::new(false));
        let (flights, mine, of) = (Arc::clone(self), Arc::clone(&begun), key.clone());
        let answer = async move {
            if let Some(before) = before {
                before.await;
            }
            mine.store(true, Ordering::Release);
            let answer = read.await;
            let mut latest = flights.latest();
            if latest.get(&of).is_some_and(|flight| Arc::ptr_eq(&flight.begun, &mine)) {
                latest.remove(&of);
            }
            answer
        };
        let answer = answer.boxed().shared();
        latest.insert(key, Flight { begun, answer: answer.clone() });
        tokio::spawn(answer.clone());
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;
    use tokio::sync::Semaphore;

    /// Asks for the same thing; the answer is the number of the read.
    fn ask(flights: &Arc<Flights<u8, u64>>, reads: &Arc<AtomicU64>, go: &Arc<Semaphore>) -> impl Future<Output = u64> {
        let (reads, go) = (Arc::clone(reads), Arc::clone(go));
        flights.share(7, async move {
            let number = reads.fetch_add(1, Ordering::Relaxed) + 1;
            drop(go.acquire().await);
            number
        })
    }

    #[tokio::test]
    async fn of_a_storm_the_first_reads_and_the_others_share_the_second_read() {
        let (flights, reads, go) = (Flights::new(), Arc::default(), Arc::new(Semaphore::new(0)));
        let first = ask(&flights, &reads, &go);
        while reads.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        let others: Vec<_> = (0..1000).map(|_| ask(&flights, &reads, &go)).collect();
        go.add_permits(1);
        assert_eq!(first.await, 1);
        for other in others {
            assert_eq!(other.await, 2, "none shares a read that began before it asked");
        }
        assert!(flights.latest().is_empty(), "nothing is left of them");
    }

    #[tokio::test]
    async fn a_read_that_nobody_waits_for_any_more_makes_way_for_the_next() {
        let (flights, reads, go) = (Flights::new(), Arc::default(), Arc::new(Semaphore::new(1)));
        drop(ask(&flights, &reads, &go));
        assert!(ask(&flights, &reads, &go).await <= 2);
        while !flights.latest().is_empty() {
            tokio::task::yield_now().await;
        }
    }
}
