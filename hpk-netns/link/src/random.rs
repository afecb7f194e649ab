//! Numbers that nobody need be unable to guess: to spread dials, clients and ports. Keys have another source.

use std::hash::{BuildHasher, Hasher, RandomState};

/// A random number. The standard library seeds its hashes by the kernel's random bytes.
#[must_use]
pub fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::random;

    #[test]
    fn numbers_differ() {
        let numbers: std::collections::HashSet<u64> = (0..100).map(|_| random()).collect();
        assert_eq!(numbers.len(), 100);
    }
}
