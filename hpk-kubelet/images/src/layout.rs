//! How an image lies in the store: as a folder of its files, or as one file. Pure but for [`Layout::of`].

use hpk_api::images::LayoutChoice;
use nix::sys::statfs::{FsType, statfs};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// How an image lies in the store. Images of both layouts are used side by side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// A folder with every file of the image.
    #[default]
    Folder,
    /// One SquashFS file.
    Squashfs,
}

/// File systems whose servers and quotas count files, by the magic number that statfs(2) tells.
const FEW_FILES: [(u64, &str); 6] = [
    (0x0bd0_0bd0, "Lustre"),
    (0x4750_4653, "GPFS"),
    (0x1983_0326, "BeeGFS"),
    (0x6969, "NFS"),
    (0x00c3_6400, "CephFS"),
    (0x8584_5844, "Panasas"),
];

impl Layout {
    /// What a choice comes to for a store in `folder`, which may be yet to be made.
    #[must_use]
    pub fn of(choice: LayoutChoice, folder: &Path) -> Self {
        match choice {
            LayoutChoice::Folder => Self::Folder,
            LayoutChoice::Squashfs => Self::Squashfs,
            LayoutChoice::Auto if shared_by(folder).is_some() => Self::Squashfs,
            LayoutChoice::Auto => Self::Folder,
        }
    }

    /// As in `hpk up --image-layout`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Folder => "folder",
            Self::Squashfs => "squashfs",
        }
    }
}

/// The file system that a folder is on, or is to be on, where that is one that suffers from many files.
#[must_use]
pub fn shared_by(folder: &Path) -> Option<&'static str> {
    let place = folder.ancestors().find(|path| path.exists())?;
    named(statfs(place).ok()?.filesystem_type())
}

fn named(kind: FsType) -> Option<&'static str> {
    // Some platforms have a signed number of 32 bits.
    #[allow(clippy::unnecessary_cast, clippy::cast_sign_loss, reason = "its type differs between platforms")]
    let magic = kind.0 as u64 & 0xffff_ffff;
    FEW_FILES.iter().find(|(number, _)| *number == magic).map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_that_suffer_from_many_files_are_known() {
        assert_eq!(named(nix::sys::statfs::NFS_SUPER_MAGIC), Some("NFS"));
        assert_eq!(named(nix::sys::statfs::TMPFS_MAGIC), None);
        assert_eq!(named(nix::sys::statfs::EXT4_SUPER_MAGIC), None);
    }

    #[test]
    fn the_user_decides_before_the_file_system() {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("not/yet");
        assert_eq!(Layout::of(LayoutChoice::Squashfs, &inside), Layout::Squashfs);
        assert_eq!(Layout::of(LayoutChoice::Folder, &inside), Layout::Folder);
    }
}
