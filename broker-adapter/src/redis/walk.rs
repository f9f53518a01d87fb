//! `Walk`: goes through a large table in portions. A table of a million entries takes 100 ms, and shards wait for its lock
//! meanwhile. Pure: no lock, no clock.

use indexmap::IndexMap;

/// Goes through a table from its end to its beginning. It sees each entry at least once that was there when it began and
/// still is: if one is removed, its index goes to a later one, which it has seen, and new ones come at the end.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    /// The entries before this index have not been seen.
    unseen: usize,
}

impl Walk {
    pub(crate) fn over<K, V>(table: &IndexMap<K, V>) -> Self {
        Self { unseen: table.len() }
    }

    /// The next entry; `None`: all have been seen.
    pub(crate) fn next<'a, K, V>(&mut self, table: &'a mut IndexMap<K, V>) -> Option<(&'a K, &'a mut V)> {
        self.unseen = self.unseen.min(table.len()).checked_sub(1)?;
        table.get_index_mut(self.unseen)
    }

    /// How many entries have not been seen; after [`Walk::next`] the index of the one that it has returned.
    pub(crate) fn unseen(&self) -> usize {
        self.unseen
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    proptest! {
        #[test]
        fn a_walk_sees_every_entry_that_stays(changes in proptest::collection::vec((any::<bool>(), 0usize..20), 0..60)) {
            let mut table: IndexMap<usize, ()> = (0..20).map(|key| (key, ())).collect();
            let mut owed: HashSet<usize> = (0..20).collect();
            let (mut walk, mut new) = (Walk::over(&table), 20);
            for (is_step, at) in changes {
                if is_step {
                    walk.next(&mut table).map(|(key, ())| owed.remove(key));
                } else if let Some((key, ())) = table.swap_remove_index(at) {
                    owed.remove(&key);
                } else {
                    table.insert(new, ());
                    new += 1;
                }
            }
            while let Some((key, ())) = walk.next(&mut table) {
                owed.remove(key);
            }
            prop_assert!(owed.is_empty(), "{owed:?}");
        }
    }
}
