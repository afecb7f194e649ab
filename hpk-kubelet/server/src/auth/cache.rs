//! A small map whose entries die by age, bounded in size.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

pub(crate) struct Cache<K, V> {
    entries: Mutex<HashMap<K, (V, Instant)>>,
    limit: usize,
}

impl<K: Hash + Eq + Clone, V: Clone> Cache<K, V> {
    pub(crate) fn new(limit: usize) -> Self {
        Self { entries: Mutex::default(), limit }
    }

    pub(crate) fn get(&self, key: &K) -> Option<V> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.get(key).filter(|(_, dies)| *dies > Instant::now()).map(|(value, _)| value.clone())
    }

    pub(crate) fn put(&self, key: K, value: V, keep: Duration) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= self.limit {
            let now = Instant::now();
            entries.retain(|_, (_, dies)| *dies > now);
            // Full of living entries: one caller with many tokens must not cost memory. Start afresh.
            if entries.len() >= self.limit {
                entries.clear();
            }
        }
        entries.insert(key, (value, Instant::now() + keep));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_die_and_the_size_is_bounded() {
        let cache = Cache::new(4);
        cache.put("old", 1, Duration::ZERO);
        assert_eq!(cache.get(&"old"), None);
        cache.put("new", 2, Duration::from_secs(60));
        assert_eq!(cache.get(&"new"), Some(2));
        let many = Cache::new(4);
        for i in 0..100 {
            many.put(i, i, Duration::from_secs(60));
        }
        assert_eq!(many.get(&99), Some(99));
        assert!(many.entries.lock().unwrap().len() <= 4);
    }
}
