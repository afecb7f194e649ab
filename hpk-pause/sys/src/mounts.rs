//! Mounts that the supervisor makes for a pod in its own namespace: tmpfs volumes, /dev/shm, propagation.
//!
//! They live as long as the job. A container's own mounts are not made here but in its launch.

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use std::path::Path;

/// Mounts a tmpfs, for `emptyDir.medium: Memory` and the pod's /dev/shm. `bytes`: size limit, None: half of memory (the
/// kernel's default). The folder must exist.
///
/// # Errors
/// As mount(2).
pub fn tmpfs(dir: &Path, bytes: Option<u64>, mode: u32) -> Result<(), Errno> {
    let size = bytes.map_or_else(String::new, |bytes| format!(",size={bytes}"));
    let options = format!("mode={mode:o}{size}");
    mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some(options.as_str()))
}

/// Makes a folder a shared mount point, so that containers with `mountPropagation` see each other's mounts below it.
///
/// # Errors
/// As mount(2).
pub fn make_shared(dir: &Path) -> Result<(), Errno> {
    mount(Some(dir), dir, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
    mount(None::<&str>, dir, None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>)
}

/// Whether the kernel has mount_setattr(2) (5.12).
pub(crate) fn has_mount_setattr() -> bool {
    // SAFETY: a descriptor of -1 and no attributes: the kernel can only refuse.
    let result = unsafe { libc::syscall(libc::SYS_mount_setattr, -1, c"".as_ptr(), 0, std::ptr::null::<u8>(), 0) };
    result >= 0 || Errno::last() != Errno::ENOSYS
}
