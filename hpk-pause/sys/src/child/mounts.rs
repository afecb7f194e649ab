//! Mounts of a container, made by its child.

use super::beneath::{Outside, open_path};
use super::paths::{PathBuffer, Way, ensure, make_dirs, make_file, parent_of, way};
use super::{Outcome, check, check_long, close, open, slot};
use libc::{c_int, c_void};
use std::ffi::CStr;

pub(super) fn mount(
    source: Option<&CStr>,
    target: &CStr,
    fstype: Option<&CStr>,
    flags: u64,
    data: Option<&CStr>,
) -> Outcome {
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

pub(super) fn open_tree(dir: c_int, path: &CStr, recursive: bool, extra: c_int) -> Result<c_int, c_int> {
    let recursive = if recursive { libc::AT_RECURSIVE } else { 0 };
    let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | recursive | extra;
    // SAFETY: a C string.
    check_long(unsafe { libc::syscall(libc::SYS_open_tree, dir, path.as_ptr(), flags) })
}

/// fsopen(2), fsconfig(2), fsmount(2) (Linux 5.2).
pub(super) fn new_fs(fstype: &CStr, attributes: u64) -> Result<c_int, c_int> {
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
fn open_beneath(dir: c_int, path: &CStr) -> Result<c_int, c_int> {
    // SAFETY: all-zero is a valid open_how.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = u64::from((libc::O_PATH | libc::O_CLOEXEC).cast_unsigned());
    how.resolve = libc::RESOLVE_BENEATH | libc::RESOLVE_NO_MAGICLINKS;
    loop {
        // SAFETY: the string and the struct live across the call.
        let fd = check_long(unsafe {
            libc::syscall(libc::SYS_openat2, dir, path.as_ptr(), &raw const how, size_of::<libc::open_how>())
        });
        // The kernel gives EAGAIN when a rename somewhere raced with a `..`: it asks to try again.
        match fd {
            Err(libc::EAGAIN) => {}
            // A kernel before 5.6, or a sandbox that does not know the call.
            Err(libc::ENOSYS | libc::EPERM) => return open_path(dir, path.to_bytes(), Outside::Refused),
            other => return other,
        }
    }
}

/// `copy`: a detached tree, else what is there.
pub(super) fn open_sub_tree(
    volume: &CStr,
    prefixes: &[std::ffi::CString],
    last: &[std::ffi::CString],
    copy: bool,
) -> Result<c_int, c_int> {
    let root = open(volume, libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC, 0)?;
    // SAFETY: all-zero is a valid stat.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the struct lives across the call.
    check(unsafe { libc::fstat(root, &raw mut stat) })?;
    let mut current = root;
    for (prefix, component) in prefixes.iter().zip(last) {
        let next = match open_beneath(root, prefix) {
            Ok(fd) => fd,
            Err(libc::ENOENT) => {
                // SAFETY: a C string; `current` is a folder beneath the volume.
                match check(unsafe { libc::mkdirat(current, component.as_ptr(), stat.st_mode & 0o7777) }) {
                    Ok(_) | Err(libc::EEXIST) => {}
                    Err(e) => return Err(e),
                }
                open_beneath(root, prefix)?
            }
            Err(e) => return Err(e),
        };
        if current != root {
            close(current);
        }
        current = next;
    }
    if !copy {
        if current != root {
            close(root);
        }
        return Ok(current);
    }
    let tree = open_tree(current, c"", true, libc::AT_EMPTY_PATH);
    if current != root {
        close(current);
    }
    close(root);
    tree
}

#[repr(C)]
pub(super) struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

pub(super) fn set_attr(fd: c_int, read_only: bool, recursive: bool, propagation: u64) -> Outcome {
    let attr = MountAttr { set: if read_only { MOUNT_ATTR_RDONLY } else { 0 }, clear: 0, propagation, userns: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the struct lives across the call and has the size that is passed.
    check_long(unsafe {
        libc::syscall(libc::SYS_mount_setattr, fd, c"".as_ptr(), flags, &raw const attr, size_of::<MountAttr>())
    })?;
    Ok(())
}

/// `missing`: the mount point is known to be a file that is not there yet.
pub(super) fn attach(fd: c_int, target: &CStr, missing: bool) -> Outcome {
    if missing {
        // Whatever hinders it shows below: another with this target made it, its folder is missing too, ….
        let _ = make_file(&PathBuffer::new(target.to_bytes())?);
    }
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
pub(super) fn skeleton(
    root: &CStr,
    image: &CStr,
    folders: &[std::ffi::CString],
    targets: &[(crate::program::Slot, std::ffi::CString)],
    slots: &[c_int],
) -> Outcome {
    let below = |target: &[u8]| {
        let mut path = PathBuffer::new(root.to_bytes())?;
        path.append(target).map(|()| path)
    };
    for folder in folders {
        make_dirs(below(folder.as_bytes())?.as_slice(), 0o755, 0)?;
    }
    // Many mount points share their folder: the image is asked for it once.
    let mut last: (&[u8], bool) = (b"", false);
    for (index, target) in targets {
        // A source that was optional and is missing.
        let Ok(fd) = slot(slots, index.0) else { continue };
        let target = target.as_bytes();
        let folder = parent_of(target).unwrap_or(b"");
        if last.0 != folder {
            last = (folder, matches!(way(image.to_bytes(), folder), Way::Missing));
        }
        let path = match if last.1 { Way::Missing } else { way(image.to_bytes(), target) } {
            Way::Link(led) => below(led.as_slice())?,
            Way::Plain | Way::Missing => below(target)?,
        };
        // One target can be a file for one mount and a folder above another: the attach tells.
        match ensure(path.as_slice(), is_folder(fd)?, 0) {
            Ok(()) | Err(libc::ENOTDIR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

pub(super) fn is_folder(fd: c_int) -> Result<bool, c_int> {
    // SAFETY: all-zero is a valid stat.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: the struct lives across the call.
    check(unsafe { libc::fstat(fd, &raw mut stat) })?;
    Ok(stat.st_mode & libc::S_IFMT == libc::S_IFDIR)
}

pub(super) fn remount_read_only(path: &CStr) -> Outcome {
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

pub(super) fn mask(path: &CStr, folder: bool) -> Outcome {
    let over_file = || mount(Some(c"/dev/null"), path, None, libc::MS_BIND, None);
    let over_folder = || {
        let flags = libc::MS_RDONLY | libc::MS_NOSUID | libc::MS_NODEV;
        mount(Some(c"tmpfs"), path, Some(c"tmpfs"), flags, Some(c"size=0k,nr_inodes=1"))
    };
    let masked = match if folder { over_folder() } else { over_file() } {
        Err(libc::ENOTDIR) if folder => over_file(),
        Err(libc::ENOTDIR) => over_folder(),
        other => other,
    };
    match masked {
        Err(libc::ENOENT) => Ok(()),
        other => other,
    }
}

pub(super) fn read_only_path(path: &CStr) -> Outcome {
    match mount(Some(path), path, None, libc::MS_BIND | libc::MS_REC, None) {
        Err(libc::ENOENT) => return Ok(()),
        other => other?,
    }
    remount_read_only(path)
}

pub(super) fn pivot(path: &CStr) -> Outcome {
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
