//! The root file system: overlay over the image and over a skeleton of mount points.

use super::kernel_fs::fs;
use super::sources::in_kernel_fs;
use super::text::{c, c_opt};
use crate::error::LaunchError;
use crate::launch::spec::LaunchSpec;
use crate::program::{OpKind, Program, Slot, Step};
use libc::{MS_NODEV, MS_NOSUID};
use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// `:`, `,` and `\` mean something in overlay's options.
pub(super) fn overlay_escape(path: &Path) -> Vec<u8> {
    let mut out = Vec::new();
    for &byte in path.as_os_str().as_bytes() {
        if matches!(byte, b':' | b',' | b'\\') {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out
}

/// Makes the folders of a writable layer: its upper and work folders.
pub(super) fn layers(p: &mut Program, dir: &Path) -> Result<(PathBuf, PathBuf), LaunchError> {
    p.push(Step::Upper, dir.to_string_lossy(), OpKind::MkdirAll { path: c("upper", dir)?, mode: 0o700 });
    let (upper_dir, work_dir) = (dir.join("upper"), dir.join("work"));
    // The root of the merged tree takes the upper folder's mode.
    for (path, mode) in [(&upper_dir, 0o755), (&work_dir, 0o700)] {
        p.push(Step::Upper, path.to_string_lossy(), OpKind::MkdirAll { path: c("upper", path)?, mode });
    }
    Ok((upper_dir, work_dir))
}

/// `targets`: mount points to come, absolute.
pub(crate) fn overlay(
    p: &mut Program,
    rootfs: &Path,
    upper: &Path,
    targets: &[(Slot, String)],
) -> Result<CString, LaunchError> {
    let (upper_dir, work_dir) = layers(p, upper)?;
    let root = stage(p, rootfs, targets)?;
    // volatile (5.10): the layer dies with the container, and without it the end of a container waits until all dirty data of
    // the scratch file system is on disk (150 ms and more on a busy node).
    let mut options = b"userxattr,volatile,lowerdir=".to_vec();
    options.extend(overlay_escape(rootfs));
    options.extend(b":");
    options.extend(overlay_escape(Path::new(SKELETON)));
    options.extend(b",upperdir=");
    options.extend(overlay_escape(&upper_dir));
    options.extend(b",workdir=");
    options.extend(overlay_escape(&work_dir));
    let kind = OpKind::Mount {
        source: c_opt("rootfs", "overlay")?,
        target: root.clone(),
        fstype: c_opt("rootfs", "overlay")?,
        flags: 0,
        data: c("rootfs", OsStr::from_bytes(&options)).map(Some)?,
    };
    p.push(Step::RootFs, rootfs.to_string_lossy(), kind);
    Ok(root)
}

/// In the child's own mount namespace a tmpfs is put over /sys, whose tree is already held, as the place for what a launch
/// needs only until the pivot: a folder made there costs no write to the scratch disk.
pub(super) const STAGE: &str = "/sys";
const STAGED_ROOT: &str = "/sys/root";
const SKELETON: &str = "/sys/skeleton";

/// Makes the stage, with the mount point of the root, which is returned, and the skeleton: a lowest layer of empty mount
/// points, so that what the image lacks is there without a write to the disk for each, and the writable layer holds what
/// the container wrote and nothing else. What the image has wins.
pub(super) fn stage(p: &mut Program, rootfs: &Path, targets: &[(Slot, String)]) -> Result<CString, LaunchError> {
    fs(p, Step::Upper, "tmpfs", STAGE, MS_NOSUID | MS_NODEV, Some("mode=0755"), false)?;
    let (staged_root, root) = (c("upper", STAGED_ROOT)?, c("upper", SKELETON)?);
    for path in [&staged_root, &root] {
        p.push(Step::Upper, STAGE, OpKind::MkdirAll { path: path.clone(), mode: 0o755 });
    }
    let folders = ["/dev", "/proc", "/sys"].iter().map(|path| c("mount", path)).collect::<Result<_, _>>()?;
    // `..` would lead out of the skeleton; such a mount point is made when it is attached, inside the container's root.
    let targets = targets
        .iter()
        .filter(|(_, target)| !target.split('/').any(|part| part == ".."))
        .filter(|(_, target)| !target.starts_with("/dev/") && matches!(in_kernel_fs(target), Ok(None)))
        .map(|(slot, target)| Ok((*slot, c("volumeMounts.mountPath", target)?)))
        .collect::<Result<_, LaunchError>>()?;
    p.push(Step::Upper, SKELETON, OpKind::Skeleton { root, image: c("rootfs", rootfs)?, folders, targets });
    Ok(staged_root)
}

pub(super) fn root_file_system(
    p: &mut Program,
    spec: &LaunchSpec,
    targets: &[(Slot, String)],
) -> Result<(), LaunchError> {
    let root = overlay(p, &spec.rootfs, &spec.upper, targets)?;
    p.push(Step::Pivot, spec.rootfs.to_string_lossy(), OpKind::Pivot { path: root });
    Ok(())
}
