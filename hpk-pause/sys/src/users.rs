//! Users and groups of an image: the names in USER or runAsUserName, home folders and supplementary groups.
//!
//! Reads the image's own /etc/passwd and /etc/group, following no link out of the image. Blocking: not for the event loop.

use crate::child::beneath::{Outside, open_path};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use thiserror::Error;

/// Largest passwd or group file that is read, bytes.
const MAX_FILE: u64 = 4 << 20;

/// Who a container runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Further groups that /etc/group lists the user in.
    pub groups: Vec<u32>,
    /// Home folder, if the image knows the user.
    pub home: Option<String>,
}

/// A USER that cannot be resolved.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum UserError {
    /// As containerd words it.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoUser(String),
    /// As containerd words it.
    #[error("unable to find group {0}: no matching entries in group file")]
    NoGroup(String),
}

/// Resolves `user`, `uid`, `user:group`, `uid:gid` … as image configurations write it; empty: root. A numeric
/// user that the image does not know has group 0.
///
/// # Errors
/// For a name that the image does not know.
pub fn resolve(rootfs: &Path, user: &str) -> Result<User, UserError> {
    let passwd = read(rootfs, "etc/passwd");
    let group = read(rootfs, "etc/group");
    resolve_in(&passwd, &group, user)
}

fn read(rootfs: &Path, path: &str) -> String {
    let mut text = String::new();
    let Ok(root) = File::open(rootfs) else { return text };
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let opened = match openat2(root.as_fd(), path, how) {
        Err(Errno::ENOSYS | Errno::EPERM) => walk(&root, path),
        other => other,
    };
    if let Ok(fd) = opened {
        let mut bytes = Vec::new();
        // A file that is cut short or unreadable is as one without the entry.
        let _ = File::from(fd).take(MAX_FILE).read_to_end(&mut bytes);
        text = String::from_utf8_lossy(&bytes).into_owned();
    }
    text
}

/// For kernels before 5.6.
fn walk(root: &File, path: &str) -> Result<OwnedFd, Errno> {
    let found = open_path(root.as_raw_fd(), path.as_bytes(), Outside::Nothing).map_err(Errno::from_raw)?;
    // SAFETY: made for us just now.
    let found = unsafe { OwnedFd::from_raw_fd(found) };
    let flags = OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    nix::fcntl::open(format!("/proc/self/fd/{}", found.as_raw_fd()).as_str(), flags, Mode::empty())
}

/// A line of passwd.
struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn entries(passwd: &str) -> impl Iterator<Item = Entry<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let (name, _, uid) = (fields.next()?, fields.next()?, fields.next()?.parse().ok()?);
        // Lines may end early; what is missing is 0 or empty, as in engines.
        let gid = fields.next().map_or(Some(0), |gid| gid.parse().ok())?;
        Some(Entry { name, uid, gid, home: fields.nth(1).unwrap_or_default() })
    })
}

/// Name, id and members of each line of group.
fn groups(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.trim().split(':');
        let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?.parse().ok()?);
        Some((name, gid, fields.next().unwrap_or_default()))
    })
}

fn resolve_in(passwd: &str, group: &str, user: &str) -> Result<User, UserError> {
    let (name, group_name) = match user.split_once(':') {
        Some((name, group)) => (name, Some(group).filter(|group| !group.is_empty())),
        None => (user, None),
    };
    let name = if name.is_empty() { "0" } else { name };
    let number = name.parse::<u32>().ok();
    let entry = entries(passwd)
        .find(|entry| entry.name == name)
        .or_else(|| entries(passwd).find(|entry| Some(entry.uid) == number));
    let mut found = match (&entry, number) {
        (Some(entry), _) => {
            let member = |members: &str| members.split(',').any(|member| member == entry.name);
            User {
                uid: entry.uid,
                gid: entry.gid,
                groups: groups(group)
                    .filter(|&(_, gid, members)| gid != entry.gid && member(members))
                    .map(|(_, gid, _)| gid)
                    .collect(),
                home: Some(entry.home.to_owned()).filter(|home| !home.is_empty()),
            }
        }
        (None, Some(uid)) => User { uid, ..User::default() },
        (None, None) => return Err(UserError::NoUser(name.to_owned())),
    };
    if let Some(wanted) = group_name {
        found.gid = match groups(group).find(|&(name, _, _)| name == wanted) {
            Some((_, gid, _)) => gid,
            None => wanted.parse().map_err(|_| UserError::NoGroup(wanted.to_owned()))?,
        };
        // An explicit group replaces all others, as engines have it.
        found.groups.clear();
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:33::/var/www:\nbroken\n1000:x:7:8::/odd:\n";
    const GROUP: &str = "root:x:0:\nwww:x:33:web\nmedia:x:44:root,web\nbad:x:y:web\n";

    #[test]
    fn users_as_images_write_them() {
        let user = |user| resolve_in(PASSWD, GROUP, user);
        let web = User { uid: 33, gid: 33, groups: vec![44], home: Some("/var/www".to_owned()) };
        assert_eq!(user("web"), Ok(web.clone()));
        assert_eq!(user("33"), Ok(web.clone()));
        assert_eq!(user("web:media"), Ok(User { gid: 44, groups: vec![], ..web.clone() }));
        assert_eq!(user("web:1234"), Ok(User { gid: 1234, groups: vec![], ..web }));
        assert_eq!(user("").map(|u| (u.uid, u.gid, u.groups)), Ok((0, 0, vec![44])));
        assert_eq!(user("4711"), Ok(User { uid: 4711, ..User::default() }));
        // A name that is a number wins over the number, as in engines.
        assert_eq!(user("1000").map(|u| u.uid), Ok(7));
        assert_eq!(user("nobody"), Err(UserError::NoUser("nobody".to_owned())));
        assert_eq!(user("web:nogroup"), Err(UserError::NoGroup("nogroup".to_owned())));
    }

    #[test]
    fn short_lines_name_users_and_groups() {
        let passwd = "# made by hand\n\napp:x:1234:1234\nlone:x:5\nbad:x\nworse:x:5:x\n  far:x:6:7:gecos  \n";
        let group = "extra:x:4321\nmore:x:44:app\n";
        let user = |user| resolve_in(passwd, group, user);
        let app = User { uid: 1234, gid: 1234, groups: vec![44], home: None };
        assert_eq!(user("app"), Ok(app.clone()));
        assert_eq!(user("app:extra"), Ok(User { gid: 4321, groups: vec![], ..app }));
        assert_eq!(user("lone"), Ok(User { uid: 5, ..User::default() }));
        assert_eq!(user("far"), Ok(User { uid: 6, gid: 7, ..User::default() }));
        for unknown in ["bad", "worse", "# made by hand"] {
            assert_eq!(user(unknown), Err(UserError::NoUser(unknown.to_owned())));
        }
    }

    #[test]
    fn links_do_not_lead_out_of_the_image() -> Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        std::fs::create_dir(dir.path().join("etc"))?;
        std::fs::write(dir.path().join("secret"), "inside:x:5:5::/:\n")?;
        std::os::unix::fs::symlink("/secret", dir.path().join("etc/passwd"))?;
        assert_eq!(resolve(dir.path(), "inside").map(|u| u.uid), Ok(5));
        std::fs::remove_file(dir.path().join("etc/passwd"))?;
        std::os::unix::fs::symlink("../../../../../../etc/passwd", dir.path().join("etc/passwd"))?;
        assert_eq!(resolve(dir.path(), "daemon"), Err(UserError::NoUser("daemon".to_owned())));
        Ok(())
    }
}
