//! A hold on a process: a descriptor that never comes to mean another process.
//!
//! It is a pidfd where the kernel has all that is done with one: clone3(2), and setns(2) by a pidfd (Linux 5.8). Elsewhere it
//! is the process' folder of /proc. The folder belongs to one process as a pidfd does: when that has been reaped, nothing can
//! be opened in it, whoever has the number then. What a folder cannot do:
//! * it takes no signals. They go to the number that the folder tells, by kill(2). A number is free only once its process
//!   was reaped; for a child that is its parent's to do, so that a parent which signals and reaps in one task is never
//!   wrong. For the process of somebody else there is a moment between the look and the signal in which the number
//!   could be given away; the kernel gives numbers in turn, so all others would have to be used up in that moment;
//! * it cannot be waited for: [`wait_end`] looks again and again.

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sched::CloneFlags;
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

/// What [`has_pidfds`] found: 0 before it looked. No lock, because children read it between clone and exec.
static PIDFDS: AtomicU8 = AtomicU8::new(0);
const YES: u8 = 1;
const NO: u8 = 2;

/// Whether a hold is a pidfd here. Tried once: what is missing answers ENOSYS, or EPERM in sandboxes that do not know it.
#[must_use]
pub(crate) fn has_pidfds() -> bool {
    match PIDFDS.load(Ordering::Relaxed) {
        0 => {
            let found = try_pidfds();
            PIDFDS.store(if found { YES } else { NO }, Ordering::Relaxed);
            found
        }
        found => found == YES,
    }
}

/// Only system calls: also for a child between clone and exec.
fn try_pidfds() -> bool {
    // SAFETY: arguments of no size: a kernel that knows the call can only refuse them.
    let result = unsafe { libc::syscall(libc::SYS_clone3, std::ptr::null::<u8>(), 0) };
    if result >= 0 || Errno::last() != Errno::EINVAL {
        return false;
    }
    // SAFETY: plain system calls. Entering the own namespace changes nothing; without rights it fails with EPERM.
    unsafe {
        let own = libc::syscall(libc::SYS_pidfd_open, libc::getpid(), 0);
        let Ok(own) = RawFd::try_from(own) else { return false };
        if own < 0 {
            return false;
        }
        // A kernel that takes no pidfd here says EINVAL.
        let joins = libc::setns(own, libc::CLONE_NEWUTS) == 0 || Errno::last() == Errno::EPERM;
        libc::close(own);
        joins
    }
}

/// A hold on a process by its number.
///
/// # Errors
/// ESRCH when there is none.
pub fn open(pid: Pid) -> Result<OwnedFd, Errno> {
    if !has_pidfds() {
        return folder(pid);
    }
    // SAFETY: plain system call.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) })?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(RawFd::try_from(fd).map_err(|_| Errno::EOVERFLOW)?) })
}

pub(crate) fn folder(pid: Pid) -> Result<OwnedFd, Errno> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    nix::fcntl::open(format!("/proc/{pid}").as_str(), flags, Mode::empty()).map_err(|errno| match errno {
        Errno::ENOENT => Errno::ESRCH,
        errno => errno,
    })
}

/// Whether this hold is a folder of /proc.
fn is_folder(hold: BorrowedFd<'_>) -> bool {
    nix::sys::stat::fstat(hold).is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFDIR)
}

/// Sends signal `number` (1–64, real-time ones too) to exactly this process.
///
/// # Errors
/// ESRCH when it has been reaped; EINVAL for a number that is no signal.
pub fn send(hold: BorrowedFd<'_>, number: i32) -> Result<(), Errno> {
    if !has_pidfds() {
        let pid = pid_of(hold).ok_or(Errno::ESRCH)?;
        // SAFETY: plain system call.
        return Errno::result(unsafe { libc::kill(pid.as_raw(), number) }).map(drop);
    }
    // SAFETY: no siginfo is passed; the kernel checks the rest.
    let result = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, hold.as_raw_fd(), number, std::ptr::null::<libc::siginfo_t>(), 0)
    };
    Errno::result(result).map(drop)
}

/// The process' number in the caller's PID namespace; None when it is gone or elsewhere.
#[must_use]
pub fn pid_of(hold: BorrowedFd<'_>) -> Option<Pid> {
    let number = if has_pidfds() {
        let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", hold.as_raw_fd())).ok()?;
        text.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok()?
    } else {
        stat(hold)?.split_once(' ')?.0.parse().ok()?
    };
    (number > 0).then(|| Pid::from_raw(number))
}

/// proc_pid_stat(5) of a folder's process; None when it has been reaped.
fn stat(folder: BorrowedFd<'_>) -> Option<String> {
    let file = openat(folder, "stat", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
    let mut bytes = Vec::new();
    // The command's name may hold anything.
    File::from(file).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// How often [`wait_end`] looks where it cannot be woken.
const LOOK: Duration = Duration::from_millis(50);
const LOOK_SELDOM: Duration = Duration::from_secs(1);

/// Waits for the end of a process, for this long; None: for ever. Whether it has ended. It need not be the caller's child.
#[must_use]
pub fn wait_end(hold: BorrowedFd<'_>, patience: Option<Duration>) -> bool {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let deadline = patience.map(|patience| Instant::now() + patience);
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if is_folder(hold) {
            if has_ended(hold) {
                return true;
            }
            if left.is_some_and(|left| left.is_zero()) {
                return false;
            }
            let seldom = if deadline.is_some() { LOOK } else { LOOK_SELDOM };
            std::thread::sleep(left.map_or(seldom, |left| left.min(seldom)));
            continue;
        }
        let timeout = left.map_or(PollTimeout::NONE, |left| PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
        match poll(&mut [PollFd::new(hold, PollFlags::POLLIN)], timeout) {
            Ok(0) if deadline.is_some_and(|deadline| Instant::now() >= deadline) => return false,
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return true,
            Err(_) => return false,
        }
    }
}

fn has_ended(folder: BorrowedFd<'_>) -> bool {
    let state = stat(folder).and_then(|stat| Some(stat.rsplit_once(") ")?.1.starts_with(['Z', 'X'])));
    state.unwrap_or(true)
}

/// Moves the calling thread into namespaces of the process, as setns(2) does by a pidfd.
///
/// # Errors
/// ESRCH when it has ended; as setns(2).
pub(crate) fn join(hold: BorrowedFd<'_>, flags: CloneFlags) -> Result<(), Errno> {
    if has_pidfds() {
        return nix::sched::setns(hold, flags);
    }
    // All are opened before the first is entered, from where other rights are had.
    let mut opened = Vec::with_capacity(NAMESPACES.len());
    for (flag, file) in NAMESPACES {
        if flags.bits() & flag != 0 {
            let namespace = openat(hold, file, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty());
            opened.push((flag, namespace.map_err(|errno| if errno == Errno::ENOENT { Errno::ESRCH } else { errno })?));
        }
    }
    for (flag, namespace) in opened {
        nix::sched::setns(namespace.as_fd(), CloneFlags::from_bits_retain(flag))?;
    }
    Ok(())
}

/// Files of namespaces, that of users first: it gives the rights to enter the others.
pub(crate) const NAMESPACES: [(libc::c_int, &std::ffi::CStr); 4] = [
    (libc::CLONE_NEWUSER, c"ns/user"),
    (libc::CLONE_NEWIPC, c"ns/ipc"),
    (libc::CLONE_NEWPID, c"ns/pid"),
    (libc::CLONE_NEWNS, c"ns/mnt"),
];
