//! Which store has which room. With one server, or sentinels, that is the same store for all and for ever; in a
//! cluster it follows the slots: a master that takes over is the same store elsewhere, and rooms whose slot moves take
//! their followers along. Never connects by itself and never asks.

use crate::Room;
use crate::redis::{
    keys::{HOME, PARTITIONS, Partition},
    master::{Base, Firsts, Store},
    topology::sentinel::Target,
};
use redis::ConnectionInfo;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use tokio::sync::watch;

/// A master and what it has, as the cluster says.
pub(crate) struct Share {
    pub(crate) master: ConnectionInfo,
    pub(crate) partitions: Vec<Partition>,
}

/// See the module's head.
#[derive(Default)]
pub(crate) struct Routes {
    table: RwLock<Table>,
}

#[derive(Default)]
struct Table {
    seats: Vec<Seat>,
    /// By partition, into `seats`.
    at: Vec<usize>,
}

#[derive(Clone)]
struct Seat {
    store: Arc<Store>,
    /// Tells the store where its master is; `None` where that is none of ours to say.
    tell: Option<Arc<watch::Sender<ConnectionInfo>>>,
}

impl Seat {
    fn is_at(&self, master: &ConnectionInfo) -> bool {
        let at = |tell: &Arc<watch::Sender<ConnectionInfo>>| tell.borrow().addr().to_string();
        self.tell.as_ref().is_some_and(|tell| at(tell) == master.addr().to_string())
    }
}

impl Routes {
    /// One store for all.
    pub(crate) fn of_one(store: Store) -> Self {
        let seats = vec![Seat { store: Arc::new(store), tell: None }];
        Self { table: RwLock::new(Table { seats, at: vec![0; PARTITIONS] }) }
    }

    fn table(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something with a room's store, which is the right one until that is done.
    pub(crate) fn with<T>(&self, room: &Room, act: impl FnOnce(&Store, Partition) -> T) -> T {
        let partition = Partition::of(room);
        let table = self.table();
        act(&table.seats[table.at[usize::from(partition.0)]].store, partition)
    }

    /// A room's store, as of now.
    pub(crate) fn store(&self, room: &Room) -> Arc<Store> {
        self.of(Partition::of(room))
    }

    /// Where nodes say that they live.
    pub(crate) fn home(&self) -> Arc<Store> {
        self.of(HOME)
    }

    fn of(&self, partition: Partition) -> Arc<Store> {
        let table = self.table();
        Arc::clone(&table.seats[table.at[usize::from(partition.0)]].store)
    }

    /// Every store.
    pub(crate) fn stores(&self) -> Vec<Arc<Store>> {
        self.table().seats.iter().map(|seat| Arc::clone(&seat.store)).collect()
    }

    /// Every store with the partitions that it has.
    pub(crate) fn shares(&self) -> Vec<(Arc<Store>, Vec<Partition>)> {
        let table = self.table();
        let share = |(at, seat): (usize, &Seat)| (Arc::clone(&seat.store), table.partitions(at));
        table.seats.iter().enumerate().map(share).collect()
    }

    /// Follows the cluster. Answers with the first attempts of stores that are new.
    pub(crate) fn update(&self, base: &Base, shares: Vec<Share>) -> Vec<(Arc<Store>, Firsts)> {
        // Held to the end: whoever follows a room does it either before its move or after it.
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        if table.is_already(&shares) {
            return Vec::new();
        }
        let mut left: Vec<Option<Seat>> = table.seats.iter().cloned().map(Some).collect();
        let mut taken: Vec<Option<Seat>> = shares.iter().map(|_| None).collect();
        for (share, seat) in shares.iter().zip(&mut taken) {
            let same = left.iter_mut().find(|seat| seat.as_ref().is_some_and(|seat| seat.is_at(&share.master)));
            *seat = same.and_then(Option::take);
        }
        let (mut new, mut next) = (Vec::new(), Table { seats: Vec::new(), at: table.at.clone() });
        next.at.resize(PARTITIONS, 0);
        for (share, seat) in shares.into_iter().zip(taken) {
            // A master that is not known has taken over from the one that is gone and had most of its partitions.
            let seat = seat.or_else(|| {
                let common = |at: usize| share.partitions.iter().filter(|p| table.at[usize::from(p.0)] == at).count();
                let gone = (0..left.len()).filter(|at| left[*at].is_some() && common(*at) > 0).max_by_key(|at| common(*at))?;
                let seat = left[gone].take()?;
                tracing::info!(store = %seat.store.name, master = %share.master.addr(), "another master has taken over");
                if let Some(tell) = &seat.tell {
                    tell.send_replace(share.master.clone());
                }
                Some(seat)
            });
            let seat = seat.unwrap_or_else(|| {
                let (tell, told) = watch::channel(share.master.clone());
                let of = format!(" of {}", share.master.addr());
                let (store, firsts) = Store::start(base, &Target::told(told), &of, share.partitions.clone());
                let store = Arc::new(store);
                new.push((Arc::clone(&store), firsts));
                Seat { store, tell: Some(Arc::new(tell)) }
            });
            for partition in &share.partitions {
                next.at[usize::from(partition.0)] = next.seats.len();
            }
            seat.store.has(&share.partitions);
            next.seats.push(seat);
        }
        table.hand_over(&next);
        *table = next;
        for seat in left.into_iter().flatten() {
            tracing::info!(store = %seat.store.name, "has no rooms any more");
            seat.store.close();
        }
        new
    }
}

impl Table {
    fn partitions(&self, seat: usize) -> Vec<Partition> {
        Partition::all().filter(|partition| self.at[usize::from(partition.0)] == seat).collect()
    }

    fn is_already(&self, shares: &[Share]) -> bool {
        let is = |share: &Share| {
            let at = self.seats.iter().position(|seat| seat.is_at(&share.master));
            at.is_some_and(|at| share.partitions.iter().all(|p| self.at[usize::from(p.0)] == at))
        };
        self.seats.len() == shares.len() && shares.iter().all(is)
    }

    /// Takes the followers of rooms that move to where the rooms go.
    fn hand_over(&self, next: &Self) {
        if self.seats.is_empty() {
            return;
        }
        for partition in Partition::all() {
            let at = usize::from(partition.0);
            let (from, to) = (&self.seats[self.at[at]].store, &next.seats[next.at[at]].store);
            if !Arc::ptr_eq(from, to) {
                to.lane(partition).adopt(from.lane(partition).give_up(partition));
            }
        }
    }
}
