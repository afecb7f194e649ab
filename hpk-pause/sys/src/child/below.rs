//! What leads into a user namespace below the caller's: from there nobody reaches the caller.

use super::paths::{PathBuffer, digits};
use super::{MESSAGE, Outcome, TAG_BORN, TAG_NAMESPACES, check, check_long, close, errno, exit, open};
use crate::process::{NAMESPACES, has_pidfds};
use libc::c_int;

/// Enters the user namespace and its view of the mounts, and goes on as a child of the same parent that is born there. The
/// parent gets a hold on that child.
pub(super) fn born(user: c_int, mount: c_int, flags: u64, report: c_int) -> Outcome {
    // SAFETY: plain system calls.
    check(unsafe { libc::setns(user, libc::CLONE_NEWUSER) })?;
    // SAFETY: as above.
    check(unsafe { libc::setns(mount, libc::CLONE_NEWNS) })?;
    if !has_pidfds() {
        if clone_old(flags | libc::CLONE_PARENT as u64, 0)? != 0 {
            exit(0);
        }
        // The child's own folder: this one may not know its number in the parent's view of /proc, which is seen here.
        let folder = open(c"/proc/self", libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC, 0)?;
        let sent = send(report, TAG_BORN, &[folder]);
        close(folder);
        return sent;
    }
    let mut pidfd: c_int = -1;
    // The child has this one's parent and, by the rule of CLONE_PARENT, its signal.
    if clone(flags | libc::CLONE_PARENT as u64 | libc::CLONE_PIDFD as u64, 0, &raw mut pidfd)? == 0 {
        return Ok(());
    }
    match send(report, TAG_BORN, &[pidfd]) {
        Ok(()) => exit(0),
        Err(errno) => Err(errno),
    }
}

/// Enters namespaces of the process of this folder of /proc. All are opened first: the first one gives other rights.
pub(super) fn join(folder: c_int, flags: c_int) -> Outcome {
    let mut opened = [-1; NAMESPACES.len()];
    for (place, (flag, file)) in opened.iter_mut().zip(NAMESPACES) {
        if flags & flag != 0 {
            // SAFETY: a C string.
            *place = match check(unsafe { libc::openat(folder, file.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) }) {
                // No folder of a process (ENOTDIR), or its process has ended.
                Err(libc::ENOENT | libc::ENOTDIR) => return Err(libc::ESRCH),
                other => other?,
            };
        }
    }
    for (fd, (flag, _)) in opened.into_iter().zip(NAMESPACES).filter(|(fd, _)| *fd >= 0) {
        // SAFETY: plain system call.
        check(unsafe { libc::setns(fd, flag) })?;
        close(fd);
    }
    Ok(())
}

/// Sends the caller's own user and mount namespaces to the parent.
pub(super) fn tell_namespaces(report: c_int) -> Outcome {
    let user = open(c"/proc/self/ns/user", libc::O_RDONLY | libc::O_CLOEXEC, 0)?;
    let mount = open(c"/proc/self/ns/mnt", libc::O_RDONLY | libc::O_CLOEXEC, 0)?;
    send(report, TAG_NAMESPACES, &[user, mount])
}

/// Moves into a new network namespace whose owner is a new user namespace below the caller's own, with these ids. Who is
/// below has rights over the network then; the caller, from above, has them too.
pub(super) fn network(uid_map: &[u8], gid_map: &[u8]) -> Outcome {
    let flags = libc::CLONE_NEWUSER as u64 | libc::CLONE_NEWNET as u64;
    let keeper = clone(flags, libc::SIGCHLD as u64, std::ptr::null_mut())?;
    if keeper == 0 {
        // SAFETY: plain system calls. It keeps the namespaces until it is killed, at the latest with its parent.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            loop {
                libc::pause();
            }
        }
    }
    let entered = enter(keeper, uid_map, gid_map);
    // SAFETY: plain system calls; the child is ours and not reaped yet.
    unsafe {
        libc::kill(keeper, libc::SIGKILL);
        while libc::waitpid(keeper, std::ptr::null_mut(), 0) < 0 && errno() == libc::EINTR {}
    }
    entered
}

fn enter(keeper: c_int, uid_map: &[u8], gid_map: &[u8]) -> Outcome {
    for (name, map) in [(&b"uid_map"[..], uid_map), (b"gid_map", gid_map)] {
        let fd = open_of(keeper, name, libc::O_WRONLY)?;
        // SAFETY: the slice is valid for its length.
        let written = unsafe { libc::write(fd, map.as_ptr().cast(), map.len()) };
        let result = if written < 0 { Err(errno()) } else { Ok(()) };
        close(fd);
        result?;
    }
    let fd = open_of(keeper, b"ns/net", libc::O_RDONLY)?;
    // SAFETY: plain system call.
    let result = check(unsafe { libc::setns(fd, libc::CLONE_NEWNET) });
    close(fd);
    result.map(drop)
}

/// A file of /proc of this process.
fn open_of(pid: c_int, name: &[u8], flags: c_int) -> Result<c_int, c_int> {
    let mut buffer = [0u8; 20];
    let mut path = PathBuffer::new(b"/proc/")?;
    path.append(digits(u64::from(pid.unsigned_abs()), &mut buffer))?;
    path.append(b"/")?;
    path.append(name)?;
    open(path.c_str(), flags | libc::O_CLOEXEC, 0)
}

/// A fork with flags: the child goes on with a copy of this stack. 0: it is the child.
fn clone(flags: u64, exit_signal: u64, pidfd: *mut c_int) -> Result<c_int, c_int> {
    if !has_pidfds() {
        return clone_old(flags, exit_signal);
    }
    // SAFETY: all-zero is a valid clone_args.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags;
    args.exit_signal = exit_signal;
    args.pidfd = pidfd as u64;
    // SAFETY: no stack is given; the caller has one thread and uses what is async-signal-safe alone, and so does its copy.
    check_long(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<libc::clone_args>()) })
}

/// By clone(2), whose flags hold the signal.
fn clone_old(flags: u64, exit_signal: u64) -> Result<c_int, c_int> {
    // SAFETY: as for clone3.
    check_long(unsafe { libc::syscall(libc::SYS_clone, flags | exit_signal, 0, 0, 0, 0) })
}

/// Most descriptors of a message.
const MOST: usize = 2;

/// A message with descriptors on the report socket.
pub(super) fn send(report: c_int, tag: u32, fds: &[c_int]) -> Outcome {
    let mut message = [0u8; MESSAGE];
    message[0..4].copy_from_slice(&tag.to_ne_bytes());
    let mut iov = libc::iovec { iov_base: message.as_mut_ptr().cast(), iov_len: MESSAGE };
    if fds.len() > MOST {
        return Err(libc::EINVAL);
    }
    let bytes = u32::try_from(size_of_val(fds)).map_err(|_| libc::EINVAL)?;
    // Aligned as cmsghdr wants it.
    let mut control = [0u64; 4];
    // SAFETY: all-zero is a valid msghdr; the control buffer has room for two descriptors (CMSG_SPACE(8) = 24).
    unsafe {
        let mut header: libc::msghdr = std::mem::zeroed();
        header.msg_iov = &raw mut iov;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = libc::CMSG_SPACE(bytes) as _;
        let cmsg = libc::CMSG_FIRSTHDR(&raw const header);
        if cmsg.is_null() {
            return Err(libc::EINVAL);
        }
        (*cmsg).cmsg_level = libc::SOL_SOCKET;
        (*cmsg).cmsg_type = libc::SCM_RIGHTS;
        (*cmsg).cmsg_len = libc::CMSG_LEN(bytes) as _;
        for (index, fd) in fds.iter().enumerate() {
            libc::CMSG_DATA(cmsg).cast::<c_int>().add(index).write_unaligned(*fd);
        }
        if libc::sendmsg(report, &raw const header, libc::MSG_NOSIGNAL) < 0 {
            return Err(errno());
        }
    }
    Ok(())
}
