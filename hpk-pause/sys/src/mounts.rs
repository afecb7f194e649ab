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

/// Shows the folder `source` at the folder `target` too.
///
/// # Errors
/// As mount(2).
pub fn bind(source: &Path, target: &Path) -> Result<(), Errno> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
}

/// Makes a folder a shared mount point, so that containers with `mountPropagation` see each other's mounts below it.
///
/// # Errors
/// As mount(2).
pub fn make_shared(dir: &Path) -> Result<(), Errno> {
    mount(Some(dir), dir, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
    mount(None::<&str>, dir, None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>)
}

/// Shows the folder `source` at `target` too, read-only.
///
/// # Errors
/// As mount(2).
pub fn bind_read_only(source: &Path, target: &Path) -> Result<(), Errno> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(None::<&str>, target, None::<&str>, flags, None::<&str>)
}

/// Whether another file system than that of the folder above is mounted at `path`.
#[must_use]
pub fn is_mount_point(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| std::fs::metadata(path).map(|meta| meta.dev()).ok();
    path.parent().is_some_and(|above| device(path).is_some() && device(path) != device(above))
}

/// Whether the kernel has mount_setattr(2) (5.12), and with it detached mounts (5.2). Sandboxes answer EPERM for what they do
/// not know; the kernel itself finds the missing attributes first.
pub(crate) fn has_mount_setattr() -> bool {
    // SAFETY: a descriptor of -1 and no attributes: the kernel can only refuse.
    let result = unsafe { libc::syscall(libc::SYS_mount_setattr, -1, c"".as_ptr(), 0, std::ptr::null::<u8>(), 0) };
    result >= 0 || !matches!(Errno::last(), Errno::ENOSYS | Errno::EPERM)
}
