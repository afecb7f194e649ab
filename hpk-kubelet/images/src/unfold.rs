//! From one file back to a folder: on a compute node that cannot mount it ([`unpack_main`]), and in the store, for a container
//! that comes to a pod which runs already ([`ImageStore::unfold`]).

use crate::entry::{CONFIG, Entry, META, write_json};
use crate::error::{PullError, SourceError};
use crate::helper::Job;
use crate::layout::Layout;
use crate::region::Region;
use crate::store::ImageStore;
use crate::tree::Limits;
use crate::unpack;
use hpk_api::plan::ImageRef;
use hpk_layout::image;
use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::process::ExitCode;

/// Word for [`unpack_main`].
pub const UNPACK: &str = "image-unpack";

/// `image-unpack FILE FOLDER`: unpacks an image of the store into a folder that it makes. The caller has the user's ids: it is
/// root of a user namespace, or of the machine.
#[must_use]
pub fn unpack_main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(2).collect();
    let [file, folder] = args.as_slice() else {
        hpk_api::say!("usage: hpk-kubelet {UNPACK} FILE FOLDER");
        return ExitCode::from(2);
    };
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    match unpack(Path::new(file), Path::new(folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            hpk_api::say!("{}: {why}", file.display());
            ExitCode::FAILURE
        }
    }
}

fn unpack(file: &Path, folder: &Path) -> Result<(), String> {
    let image = File::open(file).and_then(Region::whole).map_err(|e| e.to_string())?;
    std::fs::DirBuilder::new().mode(0o755).create(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    nix::unistd::chroot(folder).map_err(|e| format!("chroot {}: {e}", folder.display()))?;
    nix::unistd::chdir("/").map_err(|e| format!("chdir: {e}"))?;
    // It is an image of the store: the limits were kept when it was made.
    let limits = Limits { bytes: u64::MAX, inodes: u64::MAX };
    unpack::squashfs(&image, has_several(&map), limits).map(drop).map_err(|e| e.to_string())
}

/// Whether a `uid_map` has more ids than one.
fn has_several(map: &str) -> bool {
    let counts = map.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok());
    counts.sum::<u64>() > 1
}

impl ImageStore {
    /// Makes an image a folder too, if it is a file: nothing can be mounted for a pod that runs already.
    ///
    /// # Errors
    /// As a pull that cannot unpack.
    pub async fn unfold(&self, image: &ImageRef) -> Result<(), PullError> {
        self.unfolded(image).await.map_err(|e| e.of(&image.id, "file"))
    }

    async fn unfolded(&self, image: &ImageRef) -> Result<(), SourceError> {
        let inner = &self.inner;
        let _store = inner.share_store().await?;
        let turn = inner.turn(&image.folder);
        let _turn = turn.lock().await;
        let _lock = inner.lock(&image.folder).await?;
        let Some((entry, config)) = Entry::find(&inner.config.root, &image.folder) else { return Ok(()) };
        if entry.layout == Layout::Folder {
            return Ok(());
        }
        let tmp = inner.tmp().join(format!("{}.{}.unfolded", image.folder, std::process::id()));
        let place = inner.config.root.join(&image.folder);
        // What an earlier one left.
        inner.remove(&tmp).await?;
        inner.remove(&place).await?;
        let rootfs = tmp.join(image::ROOTFS);
        std::fs::create_dir_all(&rootfs).map_err(SourceError::io("create", &rootfs))?;
        let file = File::open(&entry.path).and_then(Region::whole).map_err(SourceError::io("open", &entry.path))?;
        let owners = inner.ids.is_some() || nix::unistd::Uid::effective().is_root();
        let limits = Limits { bytes: u64::MAX, inodes: u64::MAX };
        let job = Job::Squashfs { rootfs, image: file, owners, limits };
        let (_, files) = inner.help(&job).await.map_err(|e| SourceError::Unpack(e.to_string()))?;
        let meta = crate::entry::Meta { files: Some(files), ..entry.meta };
        write_json(&tmp.join(CONFIG), &config).map_err(SourceError::io("write", tmp.join(CONFIG)))?;
        write_json(&tmp.join(META), &meta).map_err(SourceError::io("write", tmp.join(META)))?;
        tokio::fs::rename(&tmp, &place).await.map_err(SourceError::io("rename", &tmp))
    }
}

#[cfg(test)]
mod tests {
    use super::has_several;

    #[test]
    fn maps_of_one_id_and_of_many() {
        assert!(!has_several("         0       1000          1\n"));
        assert!(has_several("0 1000 1\n1 100000 65536\n"));
        assert!(has_several("0 0 4294967295\n"));
        assert!(!has_several(""));
    }
}
