//! A user namespace below the supervisor's own, for a pod's containers.
//!
//! ```text
//! outside ── the pod's user namespace: Apptainer, the supervisor ── below: the containers, which own the pod's network
//! ```
//! Both have the same ids, unless the pod's containers keep the user's own number ([`crate::launch::Native::keeping`]). A container with SYS_PTRACE or SYS_ADMIN has these rights over what belongs to its own namespace:
//! the pod's containers and its network. The supervisor's memory and root, and mounts that were made above (the
//! image store, read-only), are out of its reach. One namespace is for all containers of a pod, so that one of
//! them may still trace the others.

use crate::error::LaunchError;
use crate::ids::Ids;
use crate::launch::compile_process;
use crate::launch::pipes::pipe;
use crate::program::{OpKind, Program, Step};
use crate::spawn::{self, Namespaces};
use nix::errno::Errno;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;

/// The namespaces that a pod's containers are born in.
#[derive(Debug)]
pub(crate) struct Below {
    pub(crate) user: OwnedFd,
    /// The supervisor's mounts as they are seen there, with everything locked that the supervisor chose.
    pub(crate) mount: OwnedFd,
}

impl Below {
    /// The owner of the network namespace where that is below already ([`crate::userns::Surroundings::network_below`]), a
    /// new one otherwise.
    /// `own`: the numbers there of who is 0 here; None: 0, too. A namespace that is there already was made so.
    pub(crate) fn make(ids: &Ids, own: Option<(u32, u32)>, ignored_signals: u64) -> Result<Self, LaunchError> {
        let failed = |what| move |errno: Errno| LaunchError::Resources { what, errno };
        let owner = networks_owner().map_err(failed("find the owner of the network"))?;
        let (go_read, go_write) = pipe()?;
        let mut program = Program::default();
        compile_process(&mut program, ignored_signals);
        let step = Step::Namespaces;
        let namespaces = match &owner {
            Some(user) => {
                let kind = OpKind::Setns { fd: user.as_raw_fd(), flags: libc::CLONE_NEWUSER };
                program.push(step, "the network's user namespace", kind);
                program.push(step, "mount namespace", OpKind::Unshare { flags: libc::CLONE_NEWNS });
                Namespaces::default()
            }
            None => Namespaces { user: true, mount: true, ..Namespaces::default() },
        };
        let wait = OpKind::WaitGo { fd: go_read.as_raw_fd(), other: go_write.as_raw_fd() };
        program.push(step, "wait for id maps", wait);
        // A copy below takes part in nothing; containers are to see each other's mounts there again.
        for point in shared().map_err(failed("read /proc/self/mountinfo"))? {
            let flags = libc::MS_REC | libc::MS_SHARED;
            let label = point.to_string_lossy().into_owned();
            let kind = OpKind::Mount { source: None, target: point, fstype: None, flags, data: None };
            program.push_optional(Step::Propagation, label, kind);
        }
        program.push(step, "own namespaces", OpKind::TellNamespaces);
        program.push(Step::Exec, "", OpKind::Exit);
        let helper = spawn::start(program, namespaces, None, vec![go_read])?;
        let pid = helper.pid();
        if owner.is_none() {
            let (uids, gids) = own.map_or_else(|| ids.same(), |own| ids.with_own(own).0);
            for (name, map) in [("uid_map", uids), ("gid_map", gids)] {
                let written = std::fs::write(format!("/proc/{pid}/{name}"), map);
                written.map_err(|e| failed("give the containers' user namespace its ids")(errno_of(&e)))?;
            }
        }
        nix::unistd::write(&go_write, b"g").map_err(failed("make the containers' user namespace"))?;
        let told = helper.namespaces();
        // Whoever reaps all children may have been faster.
        let _ = nix::sys::wait::waitpid(pid, None);
        let (user, mount) = told?;
        Ok(Self { user, mount })
    }
}

impl Below {
    /// Whether a process is in this user namespace. One that has ended is found out by joining it.
    pub(crate) fn has(&self, pidfd: BorrowedFd<'_>) -> bool {
        let own = nix::sys::stat::fstat(&self.user).map(|stat| stat.st_ino).ok();
        users_of(pidfd).is_none_or(|theirs| Some(theirs) == own)
    }
}

/// Whether the calling process is in a user namespace of its own making: root of the node has all ids.
#[must_use]
pub fn in_user_namespace() -> bool {
    Ids::of_self().is_ok_and(|ids| ids.uids.count() < u64::from(u32::MAX))
}

/// Whether this process is in another user namespace than the caller, so that who joins it must enter that too.
pub(crate) fn is_other(pidfd: BorrowedFd<'_>) -> bool {
    // One that has ended is found out by joining it.
    users_of(pidfd).is_some_and(|theirs| inode("/proc/self/ns/user").is_some_and(|own| own != theirs))
}

/// The number of a process' user namespace.
fn users_of(pidfd: BorrowedFd<'_>) -> Option<u64> {
    inode(&format!("/proc/{}/ns/user", crate::procfs::pid_of(pidfd)?))
}

fn inode(path: &str) -> Option<u64> {
    std::fs::metadata(path).ok().map(|meta| meta.ino())
}

/// Ports below 1024 and ICMP echo need no right.
const OPEN_TO_ALL: [(&str, &str); 2] = [("ip_unprivileged_port_start", "0"), ("ping_group_range", "0 65536")];

/// The user namespace that owns the caller's network, where it is below the caller's own.
fn networks_owner() -> Result<Option<OwnedFd>, Errno> {
    /// `_IO(0xb7, 0x1)` of linux/nsfs.h.
    const NS_GET_USERNS: libc::c_ulong = 0xb701;
    let network = File::open("/proc/self/ns/net").map_err(|e| errno_of(&e))?;
    // SAFETY: takes no argument and returns a new descriptor.
    let fd = unsafe { libc::ioctl(network.as_raw_fd(), NS_GET_USERNS as _) };
    let owner = match Errno::result(fd) {
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(fd) => unsafe { OwnedFd::from_raw_fd(RawFd::from(fd)) },
        // It belongs to somebody above.
        Err(Errno::EPERM) => return Ok(None),
        Err(errno) => return Err(errno),
    };
    let owner = File::from(owner);
    let own = std::fs::metadata("/proc/self/ns/user").map_err(|e| errno_of(&e))?.ino();
    if owner.metadata().map_err(|e| errno_of(&e))?.ino() != own {
        return Ok(Some(owner.into()));
    }
    // It is the caller's, so those below have no rights over it: what containers expect of any network is for all.
    for (name, value) in OPEN_TO_ALL {
        let _ = std::fs::write(format!("/proc/sys/net/ipv4/{name}"), value);
    }
    Ok(None)
}

/// Mount points of the caller that take part in propagation.
fn shared() -> Result<Vec<CString>, Errno> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").map_err(|e| errno_of(&e))?;
    Ok(text.lines().filter_map(shared_point).filter_map(|point| CString::new(point).ok()).collect())
}

/// The mount point of a line of mountinfo that says `shared:`. The kernel writes blanks and backslashes in octal.
fn shared_point(line: &str) -> Option<Vec<u8>> {
    let mut fields = line.split(' ');
    let point = fields.nth(4)?;
    fields.skip(1).take_while(|field| *field != "-").find(|field| field.starts_with("shared:"))?;
    let mut bytes = point.bytes();
    let mut plain = Vec::with_capacity(point.len());
    while let Some(byte) = bytes.next() {
        let octal = (byte == b'\\').then(|| bytes.as_slice_of(3)).flatten();
        plain.push(octal.unwrap_or(byte));
    }
    Some(plain)
}

/// The next digits of an escape, taken from the rest of a text.
trait Octal {
    fn as_slice_of(&mut self, digits: usize) -> Option<u8>;
}

impl Octal for std::str::Bytes<'_> {
    fn as_slice_of(&mut self, digits: usize) -> Option<u8> {
        let value = self.by_ref().take(digits).try_fold(0u32, |value, digit| {
            (b'0'..=b'7').contains(&digit).then(|| value * 8 + u32::from(digit - b'0'))
        })?;
        u8::try_from(value).ok()
    }
}

fn errno_of(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_mount_points_are_read_as_they_are() {
        let line = r"36 35 98:0 /mnt1 /a\040b\134c rw,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue";
        assert_eq!(shared_point(line).as_deref(), Some(&br"/a b\c"[..]));
        assert_eq!(shared_point("36 35 98:0 / /mnt rw master:1 - ext3 /dev/shared:1 shared:2"), None);
        assert_eq!(shared_point("36 35"), None);
    }
}
