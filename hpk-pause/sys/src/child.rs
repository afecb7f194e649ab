//! The child's side of a launch: runs a [`Program`] between clone and exec.
//!
//! It never allocates, locks, panics or unwinds: the process is a copy of one that may have held any lock in another
//! thread. Identity changes use raw system calls, because libc's wrappers signal all threads of a list
//! that is no longer true here.

use crate::program::{Op, OpKind, Program, SockFilter};
use libc::{c_int, c_long, c_void};
use std::ffi::CStr;

/// First word of a message on the report socket.
pub(crate) const TAG_ERROR: u32 = 1;
/// A terminal's master travels with this message.
pub(crate) const TAG_TERMINAL: u32 = 2;
/// Size of a message: tag, operation's index, errno, reserved.
pub(crate) const MESSAGE: usize = 16;
const PATH_MAX: usize = 4096;
/// Links followed for one mount point, as the kernel's own limit for nested links used to be.
const MAX_LINKS: u32 = 8;

type Outcome = Result<(), c_int>;

/// Runs the program and never returns.
pub(crate) fn run(program: &mut Program, report: c_int) -> ! {
    let Program { ops, slots } = program;
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
        OpKind::ResetSignals => reset_signals(),
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
        OpKind::OpenSubTree { slot, volume, prefixes, last_components } => {
            let fd = open_sub_tree(volume, prefixes, last_components)?;
            store(slots, slot.0, fd)
        }
        OpKind::NewFs { slot, fstype, attributes } => {
            let fd = new_fs(fstype, *attributes)?;
            store(slots, slot.0, fd)
        }
        OpKind::Skeleton { root, folders, targets } => skeleton(root, folders, targets, slots),
        OpKind::SetAttr { slot: index, read_only, recursive, propagation } => {
            match set_attr(slot(slots, index.0)?, *read_only, *recursive, *propagation) {
                // Before 5.12: done by a remount once attached.
                Err(libc::ENOSYS) => Ok(()),
                other => other,
            }
        }
        OpKind::Attach { slot: index, target, fallback_read_only } => {
            let fd = slot(slots, index.0)?;
            attach(fd, target)?;
            if *fallback_read_only {
                remount_read_only(target)?;
            }
            Ok(())
        }
        OpKind::RemountReadOnly { path } => remount_read_only(path),
        OpKind::Mask { path } => mask(path),
        OpKind::ReadOnlyPath { path } => read_only_path(path),
        OpKind::Pivot { path } => pivot(path),
        OpKind::Chdir { path } => {
            // SAFETY: a C string.
            check(unsafe { libc::chdir(path.as_ptr()) })?;
            Ok(())
        }
        OpKind::Setns { fd, flags } => {
            // SAFETY: plain system call.
            check(unsafe { libc::setns(*fd, *flags) })?;
            Ok(())
        }
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
        OpKind::WaitGo { fd, other } => wait_go(*fd, *other),
        OpKind::Exit => exit(0),
    }
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

fn reset_signals() -> Outcome {
    // SAFETY: all-zero is the default disposition and an empty mask.
    let default: libc::sigaction = unsafe { std::mem::zeroed() };
    for signal in 1..=64 {
        if signal != libc::SIGKILL && signal != libc::SIGSTOP {
            // SAFETY: the struct lives across the call. libc refuses its own two signals: their disposition is default.
            unsafe { libc::sigaction(signal, &raw const default, std::ptr::null_mut()) };
        }
    }
    // SAFETY: all-zero is the empty set.
    let none: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: the set lives across the call.
    check(unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) })?;
    Ok(())
}

fn mount(source: Option<&CStr>, target: &CStr, fstype: Option<&CStr>, flags: u64, data: Option<&CStr>) -> Outcome {
    let ptr = |s: Option<&CStr>| s.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: C strings or NULL, as mount(2) takes them.
    check(unsafe { libc::mount(ptr(source), target.as_ptr(), ptr(fstype), flags, ptr(data).cast::<c_void>()) })?;
    Ok(())
}

const OPEN_TREE_CLONE: c_int = 1;
const OPEN_TREE_CLOEXEC: c_int = libc::O_CLOEXEC;
const MOVE_MOUNT_F_EMPTY_PATH: c_int = 0x04;
const MOVE_MOUNT_T_SYMLINKS: c_int = 0x10;
const MOUNT_ATTR_RDONLY: u64 = 1;

fn open_tree(dir: c_int, path: &CStr, recursive: bool, extra: c_int) -> Result<c_int, c_int> {
    let recursive = if recursive { libc::AT_RECURSIVE } else { 0 };
    let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | recursive | extra;
    // SAFETY: a C string.
    check_long(unsafe { libc::syscall(libc::SYS_open_tree, dir, path.as_ptr(), flags) })
}

/// fsopen(2), fsconfig(2), fsmount(2) (Linux 5.2).
fn new_fs(fstype: &CStr, attributes: u64) -> Result<c_int, c_int> {
    const FSOPEN_CLOEXEC: c_int = 1;
    const FSMOUNT_CLOEXEC: c_int = 1;
    const FSCONFIG_CMD_CREATE: c_int = 6;
    // SAFETY: a C string.
    let context = check_long(unsafe { libc::syscall(libc::SYS_fsopen, fstype.as_ptr(), FSOPEN_CLOEXEC) })?;
    let nothing = std::ptr::null::<c_void>();
    // SAFETY: this command takes neither key nor value.
    let created =
        check_long(unsafe { libc::syscall(libc::SYS_fsconfig, context, FSCONFIG_CMD_CREATE, nothing, nothing, 0) });
    // SAFETY: plain system call.
    let mounted = created
        .and_then(|_| check_long(unsafe { libc::syscall(libc::SYS_fsmount, context, FSMOUNT_CLOEXEC, attributes) }));
    close(context);
    mounted
}

/// openat2 that never leaves `dir`, by `..`, absolute links or procfs' links.
fn open_beneath(dir: c_int, path: &CStr, flags: c_int) -> Result<c_int, c_int> {
    // SAFETY: all-zero is a valid open_how.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = u64::try_from(flags).unwrap_or(0);
    how.resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_MAGICLINKS;
    loop {
        // SAFETY: the string and the struct live across the call.
        let fd = check_long(unsafe {
            libc::syscall(libc::SYS_openat2, dir, path.as_ptr(), &raw const how, size_of::<libc::open_how>())
        });
        // The kernel gives EAGAIN when a rename somewhere raced with a `..`: it asks to try again.
        if fd != Err(libc::EAGAIN) {
            return fd;
        }
    }
}

fn open_sub_tree(volume: &CStr, prefixes: &[std::ffi::CString], last: &[std::ffi::CString]) -> Result<c_int, c_int> {
    let root = open(volume, libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC, 0)?;
    // SAFETY: all-zero is a valid stat.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the struct lives across the call.
    check(unsafe { libc::fstat(root, &raw mut stat) })?;
    let mut current = root;
    for (prefix, component) in prefixes.iter().zip(last) {
        let next = match open_beneath(root, prefix, libc::O_PATH | libc::O_CLOEXEC) {
            Ok(fd) => fd,
            Err(libc::ENOENT) => {
                // SAFETY: a C string; `current` is a folder beneath the volume.
                match check(unsafe { libc::mkdirat(current, component.as_ptr(), stat.st_mode & 0o7777) }) {
                    Ok(_) | Err(libc::EEXIST) => {}
                    Err(e) => return Err(e),
                }
                open_beneath(root, prefix, libc::O_PATH | libc::O_CLOEXEC)?
            }
            Err(e) => return Err(e),
        };
        if current != root {
            close(current);
        }
        current = next;
    }
    let tree = open_tree(current, c"", true, libc::AT_EMPTY_PATH);
    if current != root {
        close(current);
    }
    close(root);
    tree
}

#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

fn set_attr(fd: c_int, read_only: bool, recursive: bool, propagation: u64) -> Outcome {
    let attr = MountAttr { set: if read_only { MOUNT_ATTR_RDONLY } else { 0 }, clear: 0, propagation, userns: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the struct lives across the call and has the size that is passed.
    check_long(unsafe {
        libc::syscall(libc::SYS_mount_setattr, fd, c"".as_ptr(), flags, &raw const attr, size_of::<MountAttr>())
    })?;
    Ok(())
}

fn attach(fd: c_int, target: &CStr) -> Outcome {
    // Most mount points exist or need only themselves: one call tells.
    let flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_SYMLINKS;
    // SAFETY: C strings.
    let move_mount = || unsafe {
        check_long(libc::syscall(libc::SYS_move_mount, fd, c"".as_ptr(), libc::AT_FDCWD, target.as_ptr(), flags))
    };
    match move_mount() {
        Err(libc::ENOENT) => {
            ensure(target.to_bytes(), is_folder(fd)?, 0)?;
            move_mount()?;
        }
        other => {
            other?;
        }
    }
    close(fd);
    Ok(())
}

/// Makes mount points below a fresh and empty root, where no link can be met.
fn skeleton(
    root: &CStr,
    folders: &[std::ffi::CString],
    targets: &[(crate::program::Slot, std::ffi::CString)],
    slots: &[c_int],
) -> Outcome {
    for folder in folders {
        let mut path = PathBuffer::new(root.to_bytes())?;
        path.append(folder.as_bytes())?;
        make_dirs(path.as_slice(), 0o755, 0)?;
    }
    for (index, target) in targets {
        // A source that was optional and is missing.
        let Ok(fd) = slot(slots, index.0) else { continue };
        let mut path = PathBuffer::new(root.to_bytes())?;
        path.append(target.as_bytes())?;
        // One target can be a file for one mount and a folder above another: the attach tells.
        match ensure(path.as_slice(), is_folder(fd)?, 0) {
            Ok(()) | Err(libc::ENOTDIR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn is_folder(fd: c_int) -> Result<bool, c_int> {
    // SAFETY: all-zero is a valid stat.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the struct lives across the call.
    check(unsafe { libc::fstat(fd, &raw mut stat) })?;
    Ok(stat.st_mode & libc::S_IFMT == libc::S_IFDIR)
}

/// A NUL-terminated path on the stack.
struct PathBuffer {
    bytes: [u8; PATH_MAX],
    len: usize,
}

impl PathBuffer {
    fn new(path: &[u8]) -> Result<Self, c_int> {
        let mut buffer = Self { bytes: [0; PATH_MAX], len: 0 };
        buffer.append(path)?;
        Ok(buffer)
    }

    fn append(&mut self, more: &[u8]) -> Outcome {
        let end = self.len + more.len();
        match self.bytes.get_mut(self.len..end) {
            Some(place) if end < PATH_MAX => place.copy_from_slice(more),
            _ => return Err(libc::ENAMETOOLONG),
        }
        self.len = end;
        Ok(())
    }

    fn ptr(&self) -> *const libc::c_char {
        self.bytes.as_ptr().cast()
    }

    fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }
}

/// Makes a mount point, and the folders above it. A link that leads nowhere is followed and its target made, as container
/// engines do (`/etc/resolv.conf` is often such a link).
fn ensure(path: &[u8], is_dir: bool, depth: u32) -> Outcome {
    if let Some(parent) = parent_of(path) {
        make_dirs(parent, 0o755, depth)?;
    }
    if is_dir {
        return make_dirs(path, 0o755, depth);
    }
    let buffer = PathBuffer::new(path)?;
    // SAFETY: a NUL-terminated buffer.
    match check(unsafe {
        libc::open(buffer.ptr(), libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_CLOEXEC, 0o644)
    }) {
        Ok(fd) => {
            close(fd);
            Ok(())
        }
        Err(libc::EEXIST) => match dangling(&buffer, depth)? {
            Some(target) => ensure(target.as_slice(), false, depth + 1),
            None => Ok(()),
        },
        Err(e) => Err(e),
    }
}

fn parent_of(path: &[u8]) -> Option<&[u8]> {
    let at = path.iter().rposition(|&b| b == b'/')?;
    if at == 0 { None } else { path.get(..at) }
}

/// mkdir -p, following links that lead nowhere.
fn make_dirs(path: &[u8], mode: u32, depth: u32) -> Outcome {
    // The whole of it often exists but for the last component.
    let whole = PathBuffer::new(path)?;
    // SAFETY: a NUL-terminated buffer.
    match check(unsafe { libc::mkdir(whole.ptr(), mode) }) {
        Ok(_) => return Ok(()),
        Err(libc::EEXIST) => {
            return match dangling(&whole, depth)? {
                Some(target) => make_dirs(target.as_slice(), mode, depth + 1),
                None => Ok(()),
            };
        }
        Err(libc::ENOENT) => {}
        Err(e) => return Err(e),
    }
    for (at, _) in path.iter().enumerate().filter(|&(at, &b)| at > 0 && b == b'/') {
        make_one(path.get(..at).unwrap_or(path), mode, depth)?;
    }
    make_one(path, mode, depth)
}

fn make_one(path: &[u8], mode: u32, depth: u32) -> Outcome {
    let buffer = PathBuffer::new(path)?;
    // SAFETY: a NUL-terminated buffer.
    match check(unsafe { libc::mkdir(buffer.ptr(), mode) }) {
        Ok(_) => Ok(()),
        Err(libc::EEXIST) => match dangling(&buffer, depth)? {
            Some(target) => make_dirs(target.as_slice(), mode, depth + 1),
            None => Ok(()),
        },
        Err(e) => Err(e),
    }
}

/// The target of a link that leads nowhere; None for anything that exists.
fn dangling(path: &PathBuffer, depth: u32) -> Result<Option<PathBuffer>, c_int> {
    // SAFETY: all-zero is a valid stat.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: a NUL-terminated buffer and a struct that live across the call.
    match check(unsafe { libc::stat(path.ptr(), &raw mut stat) }) {
        Ok(_) => return Ok(None),
        Err(libc::ENOENT) => {}
        Err(e) => return Err(e),
    }
    if depth >= MAX_LINKS {
        return Err(libc::ELOOP);
    }
    let mut link = [0u8; PATH_MAX];
    // SAFETY: the buffer is valid for the length that is passed.
    let len = unsafe { libc::readlink(path.ptr(), link.as_mut_ptr().cast(), PATH_MAX) };
    let Ok(len) = usize::try_from(len) else { return Err(errno()) };
    let link = link.get(..len).unwrap_or(&[]);
    if link.first() == Some(&b'/') {
        return Ok(Some(PathBuffer::new(link)?));
    }
    let mut target = PathBuffer::new(parent_of(path.as_slice()).unwrap_or(b""))?;
    target.append(b"/")?;
    target.append(link)?;
    Ok(Some(target))
}

fn remount_read_only(path: &CStr) -> Outcome {
    // SAFETY: all-zero is a valid statvfs.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the string and the struct live across the call; it is one system call and some copying.
    check(unsafe { libc::statvfs(path.as_ptr(), &raw mut stat) })?;
    // Flags that a user namespace may not clear must be given again.
    let mut flags = libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY;
    for (st, ms) in [
        (0x2, libc::MS_NOSUID),
        (0x4, libc::MS_NODEV),
        (0x8, libc::MS_NOEXEC),
        (0x400, libc::MS_NOATIME),
        (0x800, libc::MS_NODIRATIME),
        (0x1000, libc::MS_RELATIME),
    ] {
        if stat.f_flag & st != 0 {
            flags |= ms;
        }
    }
    mount(None, path, None, flags, None)
}

fn mask(path: &CStr) -> Outcome {
    match mount(Some(c"/dev/null"), path, None, libc::MS_BIND, None) {
        Err(libc::ENOENT) => Ok(()),
        Err(libc::ENOTDIR) => mount(
            Some(c"tmpfs"),
            path,
            Some(c"tmpfs"),
            libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV,
            Some(c"size=0k,nr_inodes=1"),
        ),
        other => other,
    }
}

fn read_only_path(path: &CStr) -> Outcome {
    match mount(Some(path), path, None, libc::MS_BIND | libc::MS_REC, None) {
        Err(libc::ENOENT) => return Ok(()),
        other => other?,
    }
    remount_read_only(path)
}

fn pivot(path: &CStr) -> Outcome {
    // SAFETY: C strings and plain system calls.
    unsafe {
        check(libc::chdir(path.as_ptr()))?;
        // The old root ends up on top of the new one, where "." still is: no folder for it is needed.
        check_long(libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()))?;
        check(libc::umount2(c".".as_ptr(), libc::MNT_DETACH))?;
        check(libc::chdir(c"/".as_ptr()))?;
    }
    Ok(())
}

/// `struct __user_cap_header_struct` and data of capset(2), version 3.
#[repr(C)]
struct CapHeader {
    version: u32,
    pid: c_int,
}

#[repr(C)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

#[allow(clippy::cast_possible_truncation)]
fn set_caps(permitted: u64) -> Outcome {
    const PR_CAP_AMBIENT: c_int = 47;
    const PR_CAP_AMBIENT_CLEAR_ALL: libc::c_ulong = 4;
    // SAFETY: plain system call.
    check(unsafe { libc::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) })?;
    let header = CapHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let low = permitted as u32;
    let high = (permitted >> 32) as u32;
    let data = [
        CapData { effective: low, permitted: low, inheritable: 0 },
        CapData { effective: high, permitted: high, inheritable: 0 },
    ];
    // SAFETY: header and two data words, as version 3 wants.
    check_long(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) })?;
    Ok(())
}

#[repr(C)]
struct SockFprog {
    len: u16,
    filter: *const SockFilter,
}

fn seccomp(filter: &[SockFilter]) -> Outcome {
    let program = SockFprog { len: u16::try_from(filter.len()).map_err(|_| libc::E2BIG)?, filter: filter.as_ptr() };
    // SAFETY: the program points to `len` instructions that live across the call.
    check(unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program, 0, 0) })?;
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

fn terminal(owner: (u32, u32), console: bool, rows: u16, cols: u16, report: c_int) -> Outcome {
    let master = open(c"/dev/pts/ptmx", libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC, 0)?;
    let unlock: c_int = 0;
    // SAFETY: the ioctls take a pointer to an int, none, and a winsize, which live across the calls.
    let slave = unsafe {
        check(libc::ioctl(master, libc::TIOCSPTLCK, &raw const unlock))?;
        check(libc::ioctl(master, libc::TIOCGPTPEER, libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC))?
    };
    let size = libc::winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: as above; TIOCSCTTY takes an int.
    unsafe {
        if rows > 0 && cols > 0 {
            check(libc::ioctl(slave, libc::TIOCSWINSZ, &raw const size))?;
        }
        libc::fchown(slave, owner.0, owner.1);
        libc::fchmod(slave, 0o620);
        check(libc::ioctl(slave, libc::TIOCSCTTY, 0))?;
    }
    if console {
        bind_console(slave)?;
    }
    send_terminal(report, master)?;
    for target in 0..3 {
        // SAFETY: plain system call.
        check(unsafe { libc::dup2(slave, target) })?;
    }
    close(master);
    close(slave);
    Ok(())
}

/// /dev/console is the terminal, as container engines have it.
fn bind_console(slave: c_int) -> Outcome {
    let tree = open_tree(slave, c"", false, libc::AT_EMPTY_PATH)?;
    attach(tree, c"/dev/console")
}

fn send_terminal(report: c_int, master: c_int) -> Outcome {
    let mut message = [0u8; MESSAGE];
    message[0..4].copy_from_slice(&TAG_TERMINAL.to_ne_bytes());
    let mut iov = libc::iovec { iov_base: message.as_mut_ptr().cast(), iov_len: MESSAGE };
    // Room for one descriptor, aligned as cmsghdr wants it.
    let mut control = [0u64; 4];
    // SAFETY: all-zero is a valid msghdr; the control buffer is large enough for one descriptor (CMSG_SPACE(4) = 24).
    unsafe {
        let mut header: libc::msghdr = std::mem::zeroed();
        header.msg_iov = &raw mut iov;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = libc::CMSG_SPACE(4) as _;
        let cmsg = libc::CMSG_FIRSTHDR(&raw const header);
        if cmsg.is_null() {
            return Err(libc::EINVAL);
        }
        (*cmsg).cmsg_level = libc::SOL_SOCKET;
        (*cmsg).cmsg_type = libc::SCM_RIGHTS;
        (*cmsg).cmsg_len = libc::CMSG_LEN(4) as _;
        libc::CMSG_DATA(cmsg).cast::<c_int>().write_unaligned(master);
        if libc::sendmsg(report, &raw const header, libc::MSG_NOSIGNAL) < 0 {
            return Err(errno());
        }
    }
    Ok(())
}
