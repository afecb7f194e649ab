//! What is below a folder, and never outside of it, for kernels without openat2(2) (5.6): step by step, with no allocation.
//!
//! As the kernel's RESOLVE_BENEATH, links are followed that stay below; one that is absolute or leads out gives EXDEV. As its
//! RESOLVE_IN_ROOT, such links begin at the folder. A folder on the way is held while the next step is taken, so that another in its place is not met. As with every walk by
//! steps (upstream's kubelet has one too), who may rename a folder out of the volume while it is walked through
//! takes what is below it along: only what was their own to rename.

use super::paths::PathBuffer;
use super::{check, close, errno};
use libc::c_int;

/// Deepest path, in folders: one descriptor each.
const DEPTH: usize = 64;
/// Links that are followed in one path, as the kernel has it.
const MOST_LINKS: u32 = 40;

/// The folders from the root to where the walk is.
struct Way {
    root: c_int,
    below: [c_int; DEPTH],
    depth: usize,
}

impl Way {
    fn here(&self) -> c_int {
        self.depth.checked_sub(1).and_then(|at| self.below.get(at)).copied().unwrap_or(self.root)
    }

    fn down(&mut self, fd: c_int) -> Result<(), c_int> {
        match self.below.get_mut(self.depth) {
            Some(place) => *place = fd,
            None => {
                close(fd);
                return Err(libc::ENAMETOOLONG);
            }
        }
        self.depth += 1;
        Ok(())
    }

    fn up(&mut self) -> Result<(), c_int> {
        self.depth = self.depth.checked_sub(1).ok_or(libc::EXDEV)?;
        if let Some(fd) = self.below.get(self.depth) {
            close(*fd);
        }
        Ok(())
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        while self.up().is_ok() {}
    }
}

/// What is outside of the folder.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outside {
    Refused,
    /// Nothing: the folder is the root of all paths.
    Nothing,
}

/// A descriptor (`O_PATH`) of what `path` means below `root`.
pub(crate) fn open_path(root: c_int, path: &[u8], outside: Outside) -> Result<c_int, c_int> {
    let mut way = Way { root, below: [-1; DEPTH], depth: 0 };
    if path.first() == Some(&b'/') && outside == Outside::Refused {
        return Err(libc::EXDEV);
    }
    let mut rest = PathBuffer::new(path)?;
    let mut links = 0;
    loop {
        let text = rest.as_slice();
        let begin = text.iter().position(|&b| b != b'/').unwrap_or(text.len());
        let text = text.get(begin..).unwrap_or(&[]);
        if text.is_empty() {
            // SAFETY: plain system call.
            return check(unsafe { libc::fcntl(way.here(), libc::F_DUPFD_CLOEXEC, 3) });
        }
        let end = text.iter().position(|&b| b == b'/').unwrap_or(text.len());
        let (part, after) = text.split_at(end);
        if part == b".." {
            match way.up() {
                Err(_) if outside == Outside::Nothing => {}
                other => other?,
            }
        } else if part != b"." {
            let part = PathBuffer::new(part)?;
            let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
            // SAFETY: a NUL-terminated buffer.
            let fd = check(unsafe { libc::openat(way.here(), part.ptr(), flags) })?;
            match kind(fd) {
                Ok(libc::S_IFLNK) => {
                    links += 1;
                    let led = if links > MOST_LINKS { Err(libc::ELOOP) } else { link(fd) };
                    close(fd);
                    let mut led = led?;
                    if led.as_slice().first() == Some(&b'/') {
                        if outside == Outside::Refused {
                            return Err(libc::EXDEV);
                        }
                        while way.up().is_ok() {}
                    }
                    led.append(after)?;
                    rest = led;
                    continue;
                }
                Ok(libc::S_IFDIR) => way.down(fd)?,
                Ok(_) if after.is_empty() => return Ok(fd),
                Ok(_) => {
                    close(fd);
                    return Err(libc::ENOTDIR);
                }
                Err(errno) => {
                    close(fd);
                    return Err(errno);
                }
            }
        }
        rest = PathBuffer::new(after)?;
    }
}

fn kind(fd: c_int) -> Result<libc::mode_t, c_int> {
    // SAFETY: all-zero is a valid stat.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the struct lives across the call.
    check(unsafe { libc::fstat(fd, &raw mut stat) })?;
    Ok(stat.st_mode & libc::S_IFMT)
}

/// What a link that is held says.
fn link(fd: c_int) -> Result<PathBuffer, c_int> {
    let mut text = [0u8; 4096];
    // SAFETY: an empty path and a buffer that is valid for the length that is passed.
    let len = unsafe { libc::readlinkat(fd, c"".as_ptr(), text.as_mut_ptr().cast(), text.len()) };
    let Ok(len) = usize::try_from(len) else { return Err(errno()) };
    PathBuffer::new(text.get(..len).unwrap_or(&[]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
    use std::fs::File;
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    use std::os::unix::fs::symlink;

    /// The same answers as the kernel's, which decides by device and inode.
    #[test]
    fn the_walk_and_the_kernel_agree() {
        let dir = tempfile::tempdir().expect("a folder");
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("a/b")).expect("folders");
        std::fs::write(root.join("a/b/file"), "").expect("a file");
        std::fs::write(dir.path().join("outside"), "").expect("a file");
        for (link, to) in [
            ("inside", "a/b"),
            ("a/up", "../a/b/file"),
            ("a/b/out", "../../../outside"),
            ("absolute", "/a/b"),
            ("loop", "loop"),
            ("chain", "inside/../up"),
            ("a/b/through", "../../inside/out"),
            ("dangling", "none"),
            ("slash", "a/b/"),
        ] {
            symlink(to, root.join(link)).expect("a link");
        }
        let folder = File::open(&root).expect("a folder");
        let identity = |fd: OwnedFd| {
            let stat = nix::sys::stat::fstat(&fd).expect("a file");
            (stat.st_dev, stat.st_ino)
        };
        for (outside, resolve) in
            [(Outside::Refused, ResolveFlag::RESOLVE_BENEATH), (Outside::Nothing, ResolveFlag::RESOLVE_IN_ROOT)]
        {
            for path in [
                "a",
                "a/b/file",
                "./a//b/",
                "a/..",
                "a/../..",
                "..",
                "a/b/file/x",
                "a/b/file/",
                "none",
                "none/x",
                "inside",
                "inside/file",
                "a/up",
                "a/b/out",
                "absolute",
                "absolute/file",
                "loop",
                "chain",
                "a/b/through",
                "dangling",
                "slash/file",
                "/a",
                ".",
            ] {
                let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(resolve);
                let kernels = openat2(&folder, path, how).map(identity).map_err(|errno| errno as i32);
                // SAFETY: made for us just now.
                let own = open_path(folder.as_raw_fd(), path.as_bytes(), outside)
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
                assert_eq!(own.map(identity), kernels, "{path}");
            }
        }
    }
}
