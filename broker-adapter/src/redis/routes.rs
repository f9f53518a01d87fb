//! `Routes`: which master of one address has which partition. With one server, or with sentinels, one master has all
//! partitions forever. In a cluster the routes follow the slots: when another server takes over for a master that is
//! gone, the same `Master` moves there; when a slot moves, its rooms are handed to the new master with their followers.
//! Asks no server anything.

use crate::{
    Room,
    redis::{
        Assignment, HOME, Master, MovedRooms, NodeContext, PARTITIONS, Partition, Target, address::is_same_server,
    },
};
use parking_lot::RwLock;
use redis::ConnectionInfo;
use std::sync::Arc;
use tokio::sync::watch;

/// The masters of one address, by partition.
#[derive(Default)]
pub(crate) struct Routes {
    table: RwLock<Table>,
}

#[derive(Default)]
struct Table {
    entries: Vec<RouteEntry>,
    /// The index in `entries` of each partition's master.
    by_partition: Vec<usize>,
}

#[derive(Clone)]
struct RouteEntry {
    master: Arc<Master>,
    /// Moves the master to another server; `None` for a master that the routes do not move.
    server: Option<watch::Sender<ConnectionInfo>>,
}

impl RouteEntry {
    /// An entry for a server that takes over from no other.
    fn start(context: &Arc<NodeContext>, assignment: &Assignment) -> Self {
        let (sender, server) = watch::channel(assignment.master.clone());
        let of = format!(" of {}", assignment.master.addr());
        let master = Master::start(context, &Target::new(server), &of, assignment.partitions.clone());
        Self { master, server: Some(sender) }
    }

    fn is_at(&self, server: &ConnectionInfo) -> bool {
        self.server.as_ref().is_some_and(|current| is_same_server(&current.borrow(), server))
    }
}

impl Routes {
    /// One master for all partitions.
    pub(crate) fn of_one(master: Arc<Master>) -> Self {
        let entries = vec![RouteEntry { master, server: None }];
        Self { table: RwLock::new(Table { entries, by_partition: vec![0; PARTITIONS] }) }
    }

    /// Calls `act` with a room's master. The room does not move to another master before `act` returns.
    pub(crate) fn with<T>(&self, room: &Room, act: impl FnOnce(&Master, Partition) -> T) -> T {
        let partition = Partition::of(room);
        act(self.table.read().master(partition), partition)
    }

    /// The master that has a room now.
    pub(crate) fn master(&self, room: &Room) -> Arc<Master> {
        Arc::clone(self.table.read().master(Partition::of(room)))
    }

    /// The master that stores the list of nodes and their heartbeats.
    pub(crate) fn home(&self) -> Arc<Master> {
        Arc::clone(self.table.read().master(HOME))
    }

    pub(crate) fn masters(&self) -> Vec<Arc<Master>> {
        self.table.read().entries.iter().map(|entry| Arc::clone(&entry.master)).collect()
    }

    /// Every master with its partitions.
    pub(crate) fn masters_with_partitions(&self) -> Vec<(Arc<Master>, Vec<Partition>)> {
        let table = self.table.read();
        let of = |(at, entry): (usize, &RouteEntry)| (Arc::clone(&entry.master), table.partitions(at));
        table.entries.iter().enumerate().map(of).collect()
    }

    /// Makes the routes follow the assignments of a cluster.
    pub(crate) fn update(&self, context: &Arc<NodeContext>, assignments: Vec<Assignment>) {
        // Locked to the end: a room is followed either before it moves or at its new master.
        let mut table = self.table.write();
        if table.is_already(&assignments) {
            return;
        }
        // 1. Servers that are masters as before keep their entries.
        let mut old: Vec<Option<RouteEntry>> = table.entries.iter().cloned().map(Some).collect();
        let mut kept = Vec::with_capacity(assignments.len());
        for assignment in &assignments {
            let is_kept = |entry: &&mut Option<RouteEntry>| entry.as_ref().is_some_and(|e| e.is_at(&assignment.master));
            kept.push(old.iter_mut().find(is_kept).and_then(Option::take));
        }
        // 2. A server that was no master takes over the entry of a master that is gone, or gets a new entry.
        let mut next = Table { entries: Vec::new(), by_partition: table.by_partition.clone() };
        next.by_partition.resize(PARTITIONS, 0);
        for (assignment, kept) in assignments.into_iter().zip(kept) {
            let entry = kept.or_else(|| table.take_over(&mut old, &assignment));
            let entry = entry.unwrap_or_else(|| RouteEntry::start(context, &assignment));
            for partition in &assignment.partitions {
                next.by_partition[usize::from(partition.0)] = next.entries.len();
            }
            entry.master.set_partitions(&assignment.partitions);
            next.entries.push(entry);
        }
        // 3. Rooms whose master is another one now go there, with their followers.
        table.hand_over(&next);
        *table = next;
        // 4. The masters that remain have no rooms any more.
        for entry in old.into_iter().flatten() {
            tracing::info!(master = %entry.master.name, "the master has no rooms any more");
            entry.master.close();
        }
    }
}

impl Table {
    fn master(&self, partition: Partition) -> &Arc<Master> {
        &self.entries[self.by_partition[usize::from(partition.0)]].master
    }

    fn partitions(&self, entry: usize) -> Vec<Partition> {
        Partition::all().filter(|partition| self.by_partition[usize::from(partition.0)] == entry).collect()
    }

    fn is_already(&self, assignments: &[Assignment]) -> bool {
        let is_same = |assignment: &Assignment| {
            let at = self.entries.iter().position(|entry| entry.is_at(&assignment.master));
            at.is_some_and(|at| assignment.partitions.iter().all(|p| self.by_partition[usize::from(p.0)] == at))
        };
        self.entries.len() == assignments.len() && assignments.iter().all(is_same)
    }

    /// Moves to the assignment's server the one of the `old` masters that had most of its partitions; `None` if no old
    /// master had any of them.
    fn take_over(&self, old: &mut [Option<RouteEntry>], assignment: &Assignment) -> Option<RouteEntry> {
        let common = |entry: usize| {
            let is_common = |p: &&Partition| self.by_partition[usize::from(p.0)] == entry;
            assignment.partitions.iter().filter(is_common).count()
        };
        let candidates = (0..old.len()).filter(|at| old[*at].is_some() && common(*at) > 0);
        let gone = candidates.max_by_key(|at| common(*at))?;
        let entry = old[gone].take()?;
        tracing::info!(was = %entry.master.name, master = %assignment.master.addr(), "another master has taken over");
        if let Some(server) = &entry.server {
            server.send_replace(assignment.master.clone());
        }
        Some(entry)
    }

    /// Hands the rooms of every partition whose master changes to the new master.
    fn hand_over(&self, next: &Self) {
        if self.entries.is_empty() {
            return;
        }
        let moves = |partition: Partition| !Arc::ptr_eq(self.master(partition), next.master(partition));
        let moved: Vec<Partition> = Partition::all().filter(|partition| moves(*partition)).collect();
        for (at, entry) in self.entries.iter().enumerate() {
            // Each table is gone through once, for all partitions that move.
            if moved.iter().any(|partition| self.by_partition[usize::from(partition.0)] == at) {
                let released = entry.master.connections.iter().map(|from| from.release(moves));
                for (partition, rooms) in released.flat_map(MovedRooms::by_partition) {
                    next.master(partition).connection(partition).adopt(rooms);
                }
            }
        }
    }
}
