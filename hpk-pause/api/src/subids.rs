//! Subordinate ids: which of the ranges in /etc/subuid and /etc/subgid a user's namespaces get. One rule for all: the owners
//! of an image's files, as they were unpacked, are the owners that pods see.

/// A user's ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubIds {
    /// First subordinate user id and how many.
    pub uids: (u32, u32),
    /// First subordinate group id and how many.
    pub gids: (u32, u32),
}

impl SubIds {
    /// From the texts of both files, of a user by name or number; None when either has no range.
    #[must_use]
    pub fn choose(subuid: &str, subgid: &str, uid: u32, name: Option<&str>) -> Option<Self> {
        Some(Self { uids: largest(subuid, uid, name)?, gids: largest(subgid, uid, name)? })
    }
}

/// The largest of a user's ranges, the first of several that are as large. Lines are `name:first:count` or
/// `uid:first:count`; what is not such a line counts for nothing.
#[must_use]
pub fn largest(text: &str, uid: u32, name: Option<&str>) -> Option<(u32, u32)> {
    let uid = uid.to_string();
    let ranges = text.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let who = fields.next()?;
        if who != uid && Some(who) != name {
            return None;
        }
        let (first, count): (u32, u32) = (fields.next()?.trim().parse().ok()?, fields.next()?.trim().parse().ok()?);
        first.checked_add(count)?;
        (count > 0).then_some((first, count))
    });
    ranges.reduce(|best, next| if next.1 > best.1 { next } else { best })
}

/// A user's name in the text of /etc/passwd.
#[must_use]
pub fn name_of(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_range_counts() {
        let text = "root:1:5\nalice:100000:65536\n1000:200000:70000\nbob:300000:99999\nalice:bad:1\nalice:1:0\n";
        assert_eq!(largest(text, 1000, Some("alice")), Some((200_000, 70_000)));
        assert_eq!(largest(text, 1001, Some("bob")), Some((300_000, 99_999)));
        assert_eq!(largest(text, 1000, None), Some((200_000, 70_000)));
        assert_eq!(largest(text, 1002, Some("carol")), None);
        assert_eq!(largest("a:1:9\na:20:9\na:4294967295:50\n", 1, Some("a")), Some((1, 9)));
        // Each file is judged by itself; both must have one.
        let two = "alice:100000:1000\nalice:500000:65536\n";
        let ids = SubIds { uids: (500_000, 65_536), gids: (7, 9) };
        assert_eq!(SubIds::choose(two, "alice:7:9\n", 1000, Some("alice")), Some(ids));
        assert_eq!(SubIds::choose(two, "", 1000, Some("alice")), None);
    }

    #[test]
    fn names_come_from_passwd() {
        let passwd = "root:x:0:0::/root:/bin/sh\nbroken\nalice:x:1000:1000::/home/alice:/bin/sh\n";
        assert_eq!(name_of(passwd, 1000).as_deref(), Some("alice"));
        assert_eq!(name_of(passwd, 1001), None);
    }
}
