//! The child's side of a launch: runs a [`Program`] between clone and exec.
//!
//! It never allocates, locks, panics or unwinds: the process is a copy of one that may have held any lock in another
//! thread. Identity changes use raw system calls, because libc's wrappers signal all threads of a list
//! that is no longer true here.

mod below;
pub(crate) mod beneath;
mod mounts;
mod paths;
mod rights;
mod staged;
mod terminal;

use crate::process::has_pidfds;
use crate::program::{Op, OpKind, Program};
use libc::{c_int, c_long, c_void};
use mounts::{
    attach, mask, mount, new_fs, open_sub_tree, open_tree, pivot, read_only_path, remount_read_only, set_attr, skeleton,
};
use paths::make_dirs;
use rights::{ask, seccomp, set_caps};
use std::ffi::CStr;
use terminal::terminal;

/// First word of a message on the report socket.
pub(crate) const TAG_ERROR: u32 = 1;
/// A terminal's master travels with this message.
pub(crate) const TAG_TERMINAL: u32 = 2;
/// A nested container goes on with the socket that travels with this message, from the process on which a hold comes second.
pub(crate) const TAG_INNER: u32 = 3;
/// The child goes on as the process on which a hold travels with this message.
pub(crate) const TAG_BORN: u32 = 4;
/// The child's user and mount namespaces travel with this message.
pub(crate) const TAG_NAMESPACES: u32 = 5;
/// A filter's descriptor travels with this message.
pub(crate) const TAG_LISTENER: u32 = 6;
/// Size of a message: tag, operation's index, errno, reserved.
pub(crate) const MESSAGE: usize = 16;

type Outcome = Result<(), c_int>;

/// Runs the program and never returns.
pub(crate) fn run(program: &mut Program, report: c_int) -> ! {
    let Program { ops, slots, .. } = program;
    for (index, op) in ops.iter().enumerate() {
        if let Err(errno) = perform(op, slots, report)
            && !op.optional
        {
            send_error(report, index, errno);
            exit(255);
        }
    }
    exit(0)
}

fn exit(code: c_int) -> ! {
    // SAFETY: _exit is async-signal-safe and does not return.
    unsafe { libc::_exit(code) }
}

fn errno() -> c_int {
    // SAFETY: the location is valid for the calling thread for its whole life.
    unsafe { *libc::__errno_location() }
}

fn check(result: c_int) -> Result<c_int, c_int> {
    if result < 0 { Err(errno()) } else { Ok(result) }
}

fn check_long(result: c_long) -> Result<c_int, c_int> {
    if result < 0 { Err(errno()) } else { c_int::try_from(result).map_err(|_| libc::EOVERFLOW) }
}

fn send_error(report: c_int, index: usize, errno: c_int) {
    let mut message = [0u8; MESSAGE];
    let index = u32::try_from(index).unwrap_or(u32::MAX);
    message[0..4].copy_from_slice(&TAG_ERROR.to_ne_bytes());
    message[4..8].copy_from_slice(&index.to_ne_bytes());
    message[8..12].copy_from_slice(&errno.to_ne_bytes());
    // SAFETY: the buffer lives across the call; a failed send cannot be reported anywhere else.
    unsafe { libc::send(report, message.as_ptr().cast(), message.len(), libc::MSG_NOSIGNAL) };
}

fn slot(slots: &[c_int], index: usize) -> Result<c_int, c_int> {
    match slots.get(index) {
        Some(&fd) if fd >= 0 => Ok(fd),
        // Its source was optional and missing.
        _ => Err(libc::ENOENT),
    }
}

#[allow(clippy::too_many_lines)]
fn perform(op: &Op, slots: &mut [c_int], report: c_int) -> Outcome {
    // SAFETY for every call in this function: pointers come from CStrings, slices or locals that outlive the call, and
    // the kernel checks all values. None of the libc functions used here allocates or takes a lock.
    match &op.kind {
        // Where handlers were not cleared at birth, all dispositions are set.
        OpKind::ResetSignals { ignored } => reset_signals(if has_pidfds() { *ignored } else { u64::MAX }),
        OpKind::Setsid => {
            // SAFETY: plain system call.
            check(unsafe { libc::setsid() })?;
            Ok(())
        }
        OpKind::Umask(mask) => {
            // SAFETY: plain system call.
            unsafe { libc::umask(*mask) };
            Ok(())
        }
        OpKind::WriteFile { path, data } => {
            let fd = open(path, libc::O_WRONLY | libc::O_CLOEXEC, 0)?;
            // SAFETY: the slice is valid for its length.
            let written = unsafe { libc::write(fd, data.as_ptr().cast(), data.len()) };
            let result = if written < 0 { Err(errno()) } else { Ok(()) };
            close(fd);
            result
        }
        OpKind::Touch { path, mode } => {
            let fd = open(path, libc::O_WRONLY | libc::O_CREAT | libc::O_CLOEXEC, *mode)?;
            close(fd);
            Ok(())
        }
        OpKind::MkdirAll { path, mode } => make_dirs(path.as_bytes(), *mode, 0),
        OpKind::Symlink { target, path } => {
            // SAFETY: both are C strings.
            match check(unsafe { libc::symlink(target.as_ptr(), path.as_ptr()) }) {
                Ok(_) | Err(libc::EEXIST) => Ok(()),
                Err(e) => Err(e),
            }
        }
        OpKind::Mount { source, target, fstype, flags, data } => {
            mount(source.as_deref(), target, fstype.as_deref(), *flags, data.as_deref())
        }
        OpKind::OpenTree { slot, path, recursive } => {
            let fd = open_tree(libc::AT_FDCWD, path, *recursive, 0)?;
            store(slots, slot.0, fd)
        }
        OpKind::OpenSubTree { slot, volume, prefixes, last_components, copy } => {
            let fd = open_sub_tree(volume, prefixes, last_components, *copy)?;
            store(slots, slot.0, fd)
        }
        OpKind::HoldTree { slot, path } => {
            let fd = open(path, libc::O_PATH | libc::O_CLOEXEC, 0)?;
            store(slots, slot.0, fd)
        }
        OpKind::Stage { path } => staged::stage(path),
        OpKind::StageTree { slot, recursive } => staged::stage_tree(slots, slot.0, *recursive),
        OpKind::StageFs { slot, fstype, flags } => staged::stage_fs(slots, slot.0, fstype, *flags),
        OpKind::StagePropagation { slot, flags } => staged::stage_propagation(slot.0, *flags),
        OpKind::AttachStaged { slot, target, missing, read_only } => {
            staged::attach(slots, slot.0, target, *missing, *read_only)
        }
        OpKind::Enter { path, old } => staged::enter(slots, old.0, path),
        OpKind::Leave { path, old } => staged::leave(slots, old.0, path),
        OpKind::NewFs { slot, fstype, attributes } => {
            let fd = new_fs(fstype, *attributes)?;
            store(slots, slot.0, fd)
        }
        OpKind::Skeleton { root, image, folders, targets } => skeleton(root, image, folders, targets, slots),
        OpKind::SetAttr { slot: index, read_only, recursive, propagation } => {
            match set_attr(slot(slots, index.0)?, *read_only, *recursive, *propagation) {
                // Before 5.12: done by a remount once attached.
                Err(libc::ENOSYS) => Ok(()),
                other => other,
            }
        }
        OpKind::Attach { slot: index, target, missing, fallback_read_only } => {
            let fd = slot(slots, index.0)?;
            attach(fd, target, *missing)?;
            if *fallback_read_only {
                remount_read_only(target)?;
            }
            Ok(())
        }
        OpKind::RemountReadOnly { path } => remount_read_only(path),
        OpKind::Mask { path, folder } => mask(path, *folder),
        OpKind::ReadOnlyPath { path } => read_only_path(path),
        OpKind::Pivot { path } => pivot(path),
        OpKind::Chdir { path } => {
            // SAFETY: a C string.
            check(unsafe { libc::chdir(path.as_ptr()) })?;
            Ok(())
        }
        OpKind::Setns { fd, flags } => {
            // SAFETY: plain system call.
            match check(unsafe { libc::setns(*fd, *flags) }) {
                // It may be the folder of a process, which is EBADF as it is opened here.
                Err(libc::EINVAL | libc::EBADF) if !has_pidfds() => below::join(*fd, *flags),
                other => other.map(drop),
            }
        }
        OpKind::Unshare { flags } => {
            // SAFETY: plain system call.
            check(unsafe { libc::unshare(*flags) })?;
            Ok(())
        }
        OpKind::Born { user, mount, flags } => below::born(*user, *mount, *flags, report),
        OpKind::TellNamespaces => below::tell_namespaces(report),
        OpKind::NetworkBelow { uid_map, gid_map } => below::network(uid_map, gid_map),
        OpKind::OpenStdio { path, target } => {
            let fd = open(path, libc::O_RDWR | libc::O_CLOEXEC, 0)?;
            // SAFETY: plain system calls.
            check(unsafe { libc::dup2(fd, *target) })?;
            close(fd);
            Ok(())
        }
        OpKind::Dup { from, to, owner } => {
            if let Some((uid, gid)) = owner {
                // So that the container's user may open /dev/stdout; not possible with every map, and then no harm.
                // SAFETY: plain system call.
                unsafe { libc::fchown(*from, *uid, *gid) };
            }
            // SAFETY: plain system call.
            check(unsafe { libc::dup2(*from, *to) })?;
            Ok(())
        }
        OpKind::Terminal { owner, console, rows, cols } => terminal(*owner, *console, *rows, *cols, report),
        OpKind::CloseRest => close_rest(report),
        OpKind::Rlimit { resource, soft, hard } => {
            let limit = libc::rlimit64 { rlim_cur: *soft, rlim_max: *hard };
            // SAFETY: the struct lives across the call; no old limit is asked for.
            check_long(unsafe {
                libc::syscall(libc::SYS_prlimit64, 0, *resource, &raw const limit, std::ptr::null_mut::<c_void>())
            })?;
            Ok(())
        }
        OpKind::DropBounding(caps) => {
            for cap in caps {
                // SAFETY: plain system call.
                match check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, *cap, 0, 0, 0) }) {
                    // Not known to this kernel.
                    Ok(_) | Err(libc::EINVAL) => {}
                    Err(e) => return Err(e),
                }
            }
            Ok(())
        }
        OpKind::SetGroups(groups) => {
            // SAFETY: the slice is valid for its length.
            check_long(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })?;
            Ok(())
        }
        OpKind::SetGid(gid) => {
            // SAFETY: plain system call.
            check_long(unsafe { libc::syscall(libc::SYS_setresgid, *gid, *gid, *gid) })?;
            Ok(())
        }
        OpKind::SetUid(uid) => {
            // SAFETY: plain system call.
            check_long(unsafe { libc::syscall(libc::SYS_setresuid, *uid, *uid, *uid) })?;
            Ok(())
        }
        OpKind::SetCaps { permitted } => set_caps(*permitted),
        OpKind::NoNewPrivs => {
            // SAFETY: plain system call.
            check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
            Ok(())
        }
        OpKind::Seccomp(filter) => seccomp(filter),
        OpKind::Ask(filter) => ask(filter, report),
        OpKind::Exec { candidates, argv, envp } => {
            let mut worst = libc::ENOENT;
            for path in candidates {
                // SAFETY: both arrays are NULL-terminated and live until exec.
                unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
                match errno() {
                    libc::ENOENT | libc::ENOTDIR => {}
                    libc::EACCES => worst = libc::EACCES,
                    other => return Err(other),
                }
            }
            Err(worst)
        }
        OpKind::ExecHeld { slot: index, argv, envp } => {
            let fd = slot(slots, index.0)?;
            // SAFETY: both arrays are NULL-terminated and live until exec.
            check_long(unsafe {
                libc::syscall(libc::SYS_execveat, fd, c"".as_ptr(), argv.as_ptr(), envp.as_ptr(), libc::AT_EMPTY_PATH)
            })?;
            Ok(())
        }
        OpKind::Inherit { fd } => {
            // SAFETY: plain system call.
            check(unsafe { libc::fcntl(*fd, libc::F_SETFD, 0) })?;
            Ok(())
        }
        OpKind::Unmount { path } => {
            // SAFETY: a C string.
            check(unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) })?;
            Ok(())
        }
        OpKind::Unlink { path } => {
            // SAFETY: a C string.
            check(unsafe { libc::unlink(path.as_ptr()) })?;
            Ok(())
        }
        OpKind::Hold { slot, path } => {
            let fd = open(path, libc::O_RDONLY | libc::O_CLOEXEC, 0)?;
            store(slots, slot.0, fd)
        }
        OpKind::HandOver { slots: first, fds, report: to } => {
            for (number, &fd) in (*first..).zip(slots.iter()) {
                if fd >= 0 {
                    duplicate(fd, number)?;
                }
            }
            for &(from, to) in fds {
                duplicate(from, to)?;
            }
            duplicate(report, *to)
        }
        OpKind::WaitGo { fd, other } => wait_go(*fd, *other),
        OpKind::Exit => exit(0),
    }
}

/// The copy has no close-on-exec flag.
fn duplicate(from: c_int, to: c_int) -> Outcome {
    // SAFETY: plain system call.
    check(unsafe { libc::dup2(from, to) })?;
    Ok(())
}

fn store(slots: &mut [c_int], index: usize, fd: c_int) -> Outcome {
    match slots.get_mut(index) {
        Some(place) => {
            *place = fd;
            Ok(())
        }
        None => Err(libc::EINVAL),
    }
}

fn open(path: &CStr, flags: c_int, mode: u32) -> Result<c_int, c_int> {
    // SAFETY: a C string.
    check(unsafe { libc::open(path.as_ptr(), flags, mode) })
}

fn close(fd: c_int) {
    // SAFETY: closes a descriptor that this module opened.
    unsafe { libc::close(fd) };
}

fn wait_go(fd: c_int, other: c_int) -> Outcome {
    close(other);
    let mut byte = 0u8;
    loop {
        // SAFETY: one byte of room.
        match unsafe { libc::read(fd, (&raw mut byte).cast(), 1) } {
            1 => return Ok(()),
            0 => exit(255),
            _ if errno() == libc::EINTR => {}
            _ => return Err(errno()),
        }
    }
}

fn reset_signals(ignored: u64) -> Outcome {
    // The kernel's sigaction, all-zero: the default disposition and an empty mask. Not libc's call: for SIGABRT glibc 2.41 and
    // later take a lock in it, which another thread of the parent holds while it spawns a program.
    let default = [0_u64; 4];
    for signal in (1..=64).filter(|signal| ignored & (1 << (signal - 1)) != 0) {
        if signal != libc::SIGKILL && signal != libc::SIGSTOP {
            // SAFETY: the struct lives across the call, the mask in it has 8 bytes.
            unsafe {
                libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), std::ptr::null_mut::<c_void>(), 8_usize)
            };
        }
    }
    // SAFETY: all-zero is the empty set.
    let none: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set lives across the call.
    check(unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) })?;
    Ok(())
}

fn close_rest(report: c_int) -> Outcome {
    // The report socket is one of them: exec closes it and so tells success.
    // SAFETY: plain system call.
    if check_long(unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) }).is_err() {
        // Before 5.11. Everything that this program opens has the flag already; what was inherited may not.
        for fd in 3..1024 {
            if fd != report {
                // SAFETY: plain system call.
                unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
            }
        }
    }
    Ok(())
}
