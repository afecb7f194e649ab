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

    /// A map of a namespace below this one, as text and as it is seen there: id 0 of this one, which is the user, has the
    /// number `own`; the others fill the numbers around it.
    fn with_own(&self, own: u32) -> (String, Self) {
        let total = u32::try_from(self.count()).unwrap_or(u32::MAX);
        // Lines of inside, outside, count.
        let below = own.min(total.saturating_sub(1));
        let above = total.saturating_sub(own).saturating_sub(1);
        let lines = [(0, 1, below), (own, 0, 1), (own.saturating_add(1), own.saturating_add(1), above)];
        let lines = lines.into_iter().filter(|(_, _, count)| *count > 0);
        let text = lines.clone().map(|(inside, outside, count)| format!("{inside} {outside} {count}\n")).collect();
        (text, Self { ranges: lines.map(|(inside, _, count)| (inside, count)).collect() })
    }

    /// The number in this namespace of an id of the one that [`Self::with_own`] makes below.
    fn above_own(own: u32, id: u32) -> u32 {
        match id.cmp(&own) {
            std::cmp::Ordering::Less => id.saturating_add(1),
            std::cmp::Ordering::Equal => 0,
            std::cmp::Ordering::Greater => id,
        }
    }

    /// As text, a map of a namespace below this one with the same ids.
    fn same(&self) -> String {
        self.ranges.iter().map(|(first, count)| format!("{first} {first} {count}\n")).collect()
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
    /// Texts of uid_map and gid_map for a namespace below this one in which the user has these ids, and what there is then.
    #[must_use]
    pub fn with_own(&self, (uid, gid): (u32, u32)) -> ((String, String), Self) {
        let (uid_map, uids) = self.uids.with_own(uid);
        let (gid_map, gids) = self.gids.with_own(gid);
        ((uid_map, gid_map), Self { uids, gids, setgroups: self.setgroups })
    }

    /// Which group of this namespace is `group` in one below in which the user has these ids.
    #[must_use]
    pub fn group_above((_, gid): (u32, u32), group: u32) -> u32 {
        IdMap::above_own(gid, group)
    }

    /// Which user of this namespace is `user` in one below in which the user has these ids.
    #[must_use]
    pub fn user_above((uid, _): (u32, u32), user: u32) -> u32 {
        IdMap::above_own(uid, user)
    }

    /// Of a namespace in which 0 is the user and which has so many others.
    #[must_use]
    pub fn of_user(more_uids: u32, more_gids: u32) -> Self {
        let map =
            |more: u32| IdMap { ranges: [(0, 1), (1, more)].into_iter().filter(|&(_, count)| count > 0).collect() };
        Self { uids: map(more_uids), gids: map(more_gids), setgroups: true }
    }

    /// Whether the caller has groups beside its own, which a process loses when it sets other ones.
    #[must_use]
    pub fn has_more_groups() -> bool {
        let own = nix::unistd::getgid();
        nix::unistd::getgroups().is_ok_and(|groups| groups.iter().any(|group| *group != own))
    }

    /// Texts of uid_map and gid_map for a namespace below this one with the same ids.
    #[must_use]
    pub fn same(&self) -> (String, String) {
        (self.uids.same(), self.gids.same())
    }

    /// The ids that uid and gid 0 have outside of the calling process' user namespace: the user's own in a pod.
    #[must_use]
    pub fn outside() -> Option<(u32, u32)> {
        let of = |name: &str| {
            let text = std::fs::read_to_string(Path::new("/proc/self").join(name)).ok()?;
            text.lines().find_map(|line| {
                let mut fields = line.split_ascii_whitespace().map(str::parse::<u32>);
                (fields.next()? == Ok(0)).then(|| fields.next()?.ok()).flatten()
            })
        };
        Some((of("uid_map")?, of("gid_map")?))
    }

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
    fn the_users_own_number_below() {
        let below = |text: &str, own| IdMap::parse(text).with_own(own);
        let (text, map) = below("0 1000 1\n1 100000 65536", 1000);
        assert_eq!(text, "0 1 1000\n1000 0 1\n1001 1001 64536\n");
        assert!(map.contains(0) && map.contains(1000) && map.contains(65536) && !map.contains(65537));
        assert_eq!(map.count(), 65537);
        assert_eq!(below("0 1000 1", 1000).0, "1000 0 1\n");
        assert_eq!(below("0 5 1\n1 100000 10", 70_000).0, "0 1 10\n70000 0 1\n");
        assert_eq!(below("0 0 4294967295", 0).0, "0 0 1\n1 1 4294967294\n");
        for (group, above) in [(0, 1), (999, 1000), (1000, 0), (1001, 1001)] {
            assert_eq!(Ids::group_above((7, 1000), group), above);
        }
    }

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
