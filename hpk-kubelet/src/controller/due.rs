//! What is due when: one time for each key, however often it is set.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

/// Keys with one value each, by which they are ordered.
#[derive(Debug)]
pub(super) struct Due<K, T> {
    by_key: HashMap<K, T>,
    ordered: BTreeSet<(T, K)>,
}

impl<K, T> Default for Due<K, T> {
    fn default() -> Self {
        Self { by_key: HashMap::new(), ordered: BTreeSet::new() }
    }
}

impl<K: Clone + Eq + Hash + Ord, T: Copy + Ord> Due<K, T> {
    /// The key's time is this one, and no other; None: it has none.
    pub(super) fn set(&mut self, key: &K, at: Option<T>) {
        let before = self.by_key.get(key).copied();
        if before == at {
            return;
        }
        if let Some((before, key)) = before.map(|before| (before, key.clone())) {
            self.ordered.remove(&(before, key));
        }
        match at {
            Some(at) => {
                self.by_key.insert(key.clone(), at);
                self.ordered.insert((at, key.clone()));
            }
            None => {
                self.by_key.remove(key);
            }
        }
    }

    /// The first time of all.
    pub(super) fn first(&self) -> Option<T> {
        self.ordered.first().map(|(at, _)| *at)
    }

    /// Takes out a key whose time has come.
    pub(super) fn pop(&mut self, now: T) -> Option<K> {
        self.first().filter(|at| *at <= now)?;
        let (_, key) = self.ordered.pop_first()?;
        self.by_key.remove(&key);
        Some(key)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &K> {
        self.by_key.keys()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        /// A key is due once, at the time that it was given last.
        #[test]
        fn each_key_is_due_once(steps in proptest::collection::vec((0_u8..6, proptest::option::of(0_u32..50)), 0..80)) {
            let mut due = Due::default();
            let mut wanted: BTreeMap<u8, u32> = BTreeMap::new();
            for (key, at) in steps {
                due.set(&key, at);
                match at {
                    Some(at) => drop(wanted.insert(key, at)),
                    None => drop(wanted.remove(&key)),
                }
                prop_assert_eq!(due.first(), wanted.values().min().copied());
                prop_assert_eq!(due.ordered.len(), wanted.len());
            }
            let mut had = BTreeMap::new();
            for now in 0..50 {
                while let Some(key) = due.pop(now) {
                    prop_assert!(had.insert(key, now).is_none());
                }
            }
            prop_assert_eq!(had, wanted);
        }
    }
}
