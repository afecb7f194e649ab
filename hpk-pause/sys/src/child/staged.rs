//! Mounts of a container where the kernel has no detached ones (see `launch::compile::staged`): each is made on a stage, where
//! its name is its slot's number, and moved to its place from there. The working directory is the stage meanwhile, so
//! that the names need no root.

use super::mounts::{is_folder, mount, remount_read_only};
use super::paths::{PathBuffer, digits, ensure, make_file};
use super::{Outcome, check, check_long, open, slot, store};
use libc::c_int;
use std::ffi::CStr;

/// Where the sources are, below the stage.
const SOURCES: &[u8] = b"/sources";

/// Makes the stage, and makes it the working directory.
pub(super) fn stage(path: &CStr) -> Outcome {
    // What is mounted here is to be seen nowhere else: whatever the stage is on must not be shared.
    match mount(None, path, None, libc::MS_PRIVATE, None) {
        // It is no mount but a folder of the root.
        Err(libc::EINVAL) => mount(None, c"/", None, libc::MS_PRIVATE, None)?,
        other => other?,
    }
    let flags = libc::MS_NOSUID | libc::MS_NODEV;
    mount(Some(c"tmpfs"), path, Some(c"tmpfs"), flags, Some(c"mode=0755"))?;
    // A source that is a folder above (`/`) is staged without it.
    mount(None, path, None, libc::MS_UNBINDABLE, None)?;
    let mut sources = PathBuffer::new(path.to_bytes())?;
    sources.append(SOURCES)?;
    // SAFETY: a NUL-terminated buffer.
    unsafe {
        check(libc::mkdir(sources.ptr(), 0o700))?;
        check(libc::chdir(sources.ptr()))?;
    }
    Ok(())
}

/// The name of a slot, relative to the working directory.
fn name(index: usize) -> Result<PathBuffer, c_int> {
    let mut buffer = [0u8; 20];
    PathBuffer::new(digits(u64::try_from(index).unwrap_or(u64::MAX), &mut buffer))
}

/// Binds what the slot holds on the stage.
pub(super) fn stage_tree(slots: &[c_int], index: usize, recursive: bool) -> Outcome {
    let fd = slot(slots, index)?;
    let name = name(index)?;
    if is_folder(fd)? {
        // SAFETY: a NUL-terminated buffer.
        check(unsafe { libc::mkdir(name.ptr(), 0o700) })?;
    } else {
        make_file(&name)?;
    }
    bind(fd, name.c_str(), if recursive { libc::MS_REC } else { 0 })
}

/// Binds what a descriptor means. /proc must be there.
pub(super) fn bind(fd: c_int, target: &CStr, flags: u64) -> Outcome {
    let mut buffer = [0u8; 20];
    let mut source = PathBuffer::new(b"/proc/self/fd/")?;
    source.append(digits(u64::from(fd.unsigned_abs()), &mut buffer))?;
    mount(Some(source.c_str()), target, None, libc::MS_BIND | flags, None)
}

/// Mounts a file system without a source on the stage.
pub(super) fn stage_fs(slots: &mut [c_int], index: usize, fstype: &CStr, flags: u64) -> Outcome {
    let name = name(index)?;
    // SAFETY: a NUL-terminated buffer.
    check(unsafe { libc::mkdir(name.ptr(), 0o700) })?;
    mount(Some(fstype), name.c_str(), Some(fstype), flags, None)?;
    let fd = open(name.c_str(), libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC, 0)?;
    store(slots, index, fd)
}

/// Changes how what is staged takes part in its source's mounts.
pub(super) fn stage_propagation(index: usize, flags: u64) -> Outcome {
    mount(None, name(index)?.c_str(), None, flags, None)
}

/// As [`super::mounts::attach`], from the stage.
pub(super) fn attach(slots: &[c_int], index: usize, target: &CStr, missing: bool, read_only: bool) -> Outcome {
    let fd = slot(slots, index)?;
    let name = name(index)?;
    if missing {
        let _ = make_file(&PathBuffer::new(target.to_bytes())?);
    }
    let to_its_place = || mount(Some(name.c_str()), target, None, libc::MS_MOVE, None);
    match to_its_place() {
        Err(libc::ENOENT) => {
            ensure(target.to_bytes(), is_folder(fd)?, 0)?;
            to_its_place()?;
        }
        other => other?,
    }
    if read_only { remount_read_only(target) } else { Ok(()) }
}

/// From now on paths begin at the new root and cannot lead out of it, while the old one is still there to move mounts from.
pub(super) fn enter(slots: &mut [c_int], old: usize, path: &CStr) -> Outcome {
    let root = open(c"/", libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC, 0)?;
    store(slots, old, root)?;
    // SAFETY: a C string.
    check(unsafe { libc::chroot(path.as_ptr()) })?;
    Ok(())
}

/// As [`super::mounts::pivot`], after [`enter`]. The ties of the old root's mounts to others are cut here, where everything that
/// keeps its own has left: without that, others would lose the mounts too.
pub(super) fn leave(slots: &[c_int], old: usize, path: &CStr) -> Outcome {
    let old = slot(slots, old)?;
    // SAFETY: C strings and plain system calls.
    unsafe {
        check(libc::fchdir(old))?;
        check(libc::chroot(c".".as_ptr()))?;
        check(libc::chdir(path.as_ptr()))?;
        check_long(libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()))?;
        check(libc::fchdir(old))?;
    }
    mount(None, c".", None, libc::MS_REC | libc::MS_PRIVATE, None)?;
    // SAFETY: C strings and plain system calls.
    unsafe {
        check(libc::umount2(c".".as_ptr(), libc::MNT_DETACH))?;
        check(libc::chdir(c"/".as_ptr()))?;
    }
    Ok(())
}
