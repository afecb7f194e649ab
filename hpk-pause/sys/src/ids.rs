//! Which user and group ids exist in this user namespace.
//!
//! Reads `/proc/self/{uid_map,gid_map,setgroups}` once at the start. It never changes a map: that is `userns`.

use std::io;
use std::path::Path;

/// Ranges of ids, as seen inside the namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMap {
    /// First id and number of ids.
    ranges: Vec<(u32, u32)>,
}

impl IdMap {
    /// Parses the text of a map file: lines `inside outside count`. Lines that are none are skipped.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let ranges = text
            .lines()
            .filter_map(|line| {
                let mut fields = line.split_ascii_whitespace().map(str::parse::<u32>);
                match (fields.next(), fields.next(), fields.next()) {
                    (Some(Ok(inside)), Some(Ok(_)), Some(Ok(count))) => Some((inside, count)),
                    _ => None,
                }
            })
            .collect();
        Self { ranges }
    }

    /// Whether files and processes can have this id.
    #[must_use]
    pub fn contains(&self, id: u32) -> bool {
        self.ranges.iter().any(|&(first, count)| id >= first && id - first < count)
    }

    /// For people: `0 to 65536`.
    #[must_use]
    pub fn words(&self) -> String {
        let mut ends: Vec<(u32, u32)> = Vec::new();
        for &(first, count) in &self.ranges {
            let last = first.saturating_add(count.saturating_sub(1));
            match ends.last_mut() {
                Some((_, before)) if before.checked_add(1) == Some(first) => *before = last,
                _ => ends.push((first, last)),
            }
        }
        let words = ends.into_iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a} to {b}") });
        words.collect::<Vec<_>>().join(", ")
    }

    /// Number of ids.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.ranges.iter().map(|&(_, count)| u64::from(count)).sum()
    }
}

/// The maps of the namespace that the caller is in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    /// User ids.
    pub uids: IdMap,
    /// Group ids.
    pub gids: IdMap,
    /// Whether setgroups(2) is allowed; not with a map of one id that an ordinary user wrote.
    pub setgroups: bool,
}

impl Ids {
    /// Of the calling process.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn of_self() -> io::Result<Self> {
        let proc = Path::new("/proc/self");
        let setgroups = match std::fs::read_to_string(proc.join("setgroups")) {
            Ok(text) => text.trim() != "deny",
            Err(e) if e.kind() == io::ErrorKind::NotFound => true,
            Err(e) => return Err(e),
        };
        Ok(Self {
            uids: IdMap::parse(&std::fs::read_to_string(proc.join("uid_map"))?),
            gids: IdMap::parse(&std::fs::read_to_string(proc.join("gid_map"))?),
            setgroups,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_of_one_id_and_a_range() {
        let map = IdMap::parse("         0       1000          1\n         1     100000      65536\n");
        assert!(map.contains(0) && map.contains(1) && map.contains(65536));
        assert!(!map.contains(65537));
        assert_eq!(map.count(), 65537);
        assert_eq!(map.words(), "0 to 65536");
        assert_eq!(IdMap::parse("0 1000 1").words(), "0");
        assert_eq!(IdMap::parse("0 1000 1\n5 7 2").words(), "0, 5 to 6");
        let all = IdMap::parse("0 0 4294967295");
        assert!(all.contains(4_294_967_294) && !all.contains(u32::MAX));
        assert_eq!(IdMap::parse("nonsense\n1 2"), IdMap::default());
    }
}
