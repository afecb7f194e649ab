//! The folders of HPK_HOME and the installation that this command works with: which they are, and that nobody else can change
//! what is in HPK_HOME. Their names are `hpk-layout`'s.

use hpk_layout::{Home, Install};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// What can be wrong with the folders.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HomeError {
    /// Neither HPK_HOME nor HOME.
    #[error("neither HPK_HOME nor HOME is set: set HPK_HOME to a folder of yours on the shared file system")]
    NoHome,
    /// A folder or file of ours cannot be made.
    #[error("{}: {source}", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A folder above it is.
    #[error("HPK_HOME: {}, above it, {whose}: others could exchange what is in it; set HPK_HOME to a folder in your home", path.display())]
    Above {
        path: PathBuf,
        /// Whose, or how open.
        whose: String,
    },
    /// The folder is someone else's.
    #[error("{}: owned by uid {owner}, not by you: set HPK_HOME to a folder of yours", path.display())]
    NotOurs { path: PathBuf, owner: u32 },
}

/// HPK_HOME, else `~/.hpk`.
///
/// # Errors
/// [`HomeError::NoHome`].
pub(crate) fn find() -> Result<Home, HomeError> {
    let root = match (std::env::var_os("HPK_HOME"), std::env::var_os("HOME")) {
        (Some(h), _) if !h.is_empty() => PathBuf::from(h),
        (_, Some(h)) if !h.is_empty() => Path::new(&h).join(Home::DEFAULT),
        _ => return Err(HomeError::NoHome),
    };
    let root = std::path::absolute(&root).map_err(|source| HomeError::Io { path: root, source })?;
    Ok(Home::at(root))
}

/// What HPK_PREFIX says, else where this program is.
///
/// # Errors
/// The program's own path cannot be read.
pub(crate) fn install() -> Result<Install, HomeError> {
    let exe =
        std::env::current_exe().map_err(|source| HomeError::Io { path: PathBuf::from("/proc/self/exe"), source })?;
    Ok(Install::find(std::env::var_os("HPK_PREFIX").map(PathBuf::from), &exe))
}

/// Makes the folders, readable by the owner alone.
///
/// # Errors
/// When one cannot be made, or somebody else could put another in the root's place.
pub(crate) fn create(home: &Home) -> Result<(), HomeError> {
    let parent = home.root().parent().unwrap_or(home.root());
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(parent);
    made.map_err(|source| HomeError::Io { path: parent.to_owned(), source })?;
    check_above(home)?;
    let folders = [
        home.pki(),
        home.log(),
        home.run(),
        home.config(),
        home.flexvolume(),
        home.egress(),
        // Bound into the container: it must be there.
        home.etcd(),
        home.pods(),
    ];
    private_dir(home.root())?;
    for dir in folders {
        private_dir(&dir)?;
    }
    Ok(())
}

/// Whether nobody else can put another folder in the root's place, which need not be there yet.
///
/// # Errors
/// [`HomeError::Above`], or the file system's.
pub(crate) fn check_above(home: &Home) -> Result<(), HomeError> {
    let parent = home.root().ancestors().skip(1).find(|p| p.exists()).unwrap_or(Path::new("/"));
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| HomeError::Io { path, source }
    };
    // Both ways: by its links, which others could exchange, and where they lead.
    let real = parent.canonicalize().map_err(io(parent))?;
    for folder in parent.ancestors().chain(real.ancestors()) {
        // Of a link its owner counts; where it leads is looked at by its real path.
        let meta = fs::symlink_metadata(folder).map_err(io(folder))?;
        owner_may_be_trusted(folder, &meta)?;
    }
    Ok(())
}

/// Whoever may rename what is in a folder above HPK_HOME can put a cluster of his in its place.
fn owner_may_be_trusted(folder: &Path, meta: &fs::Metadata) -> Result<(), HomeError> {
    let (us, owner) = (nix::unistd::geteuid().as_raw(), meta.uid());
    let refuse = |whose: String| Err(HomeError::Above { path: folder.to_owned(), whose });
    if owner != us && owner != 0 && owner != overflow_uid() {
        return refuse(format!("belongs to uid {owner}"));
    }
    if meta.is_symlink() || meta.mode() & 0o1000 != 0 {
        return Ok(());
    }
    // A user's own folders are often open to a group of that user's alone.
    let writable = if owner == us { 0o002 } else { 0o022 };
    if meta.mode() & writable != 0 {
        return refuse(format!("has mode {:o}", meta.mode() & 0o7777));
    }
    Ok(())
}

/// Who owns what belongs to nobody that this user namespace knows: the system, as seen from a container.
fn overflow_uid() -> u32 {
    fs::read_to_string("/proc/sys/kernel/overflowuid").ok().and_then(|t| t.trim().parse().ok()).unwrap_or(65534)
}

/// Makes `dir` with mode 0700 if it is absent, and makes it so if it is ours and more open.
///
/// # Errors
/// When it cannot be made or is another user's.
pub(crate) fn private_dir(dir: &Path) -> Result<(), HomeError> {
    let io = |source| HomeError::Io { path: dir.to_owned(), source };
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io)?;
    // The folder may have been there before us: in /tmp anybody can have made it.
    let meta = fs::symlink_metadata(dir).map_err(io)?;
    if meta.uid() != nix::unistd::geteuid().as_raw() {
        return Err(HomeError::NotOurs { path: dir.to_owned(), owner: meta.uid() });
    }
    if !meta.is_dir() {
        return Err(io(io::Error::from(io::ErrorKind::NotADirectory)));
    }
    if meta.mode() & 0o077 != 0 {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(io)?;
    }
    Ok(())
}

/// Writes a file of mode 0600 and puts it in place by rename: a reader sees the old or the new one, whole.
///
/// # Errors
/// Any from the file system, with the path.
pub(crate) fn replace_file(path: &Path, content: &[u8]) -> Result<(), HomeError> {
    hpk_layout::replace(path, content, 0o600).map_err(|source| HomeError::Io { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_home_below_a_folder_of_others_is_refused() {
        let tmp = tempfile::tempdir().unwrap();
        let open = tmp.path().join("open");
        fs::create_dir(&open).unwrap();
        let mode = |mode| fs::set_permissions(&open, fs::Permissions::from_mode(mode)).unwrap();
        let home = Home::at(open.join("deep/h"));
        // The system's, ours: /tmp itself is open to all, and sticky.
        for good in [0o700, 0o755, 0o775, 0o1777] {
            mode(good);
            create(&home).unwrap();
        }
        mode(0o777);
        let refused = create(&home).unwrap_err().to_string();
        assert!(refused.contains(&open.display().to_string()) && refused.contains("777"), "{refused}");
        mode(0o755);
        // A link that others could exchange.
        let link = open.join("link");
        std::os::unix::fs::symlink(open.join("deep"), &link).unwrap();
        create(&Home::at(link.join("h"))).unwrap();
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::lchown(&link, Some(4242), None).unwrap();
            let refused = create(&Home::at(link.join("h"))).unwrap_err().to_string();
            assert!(refused.contains("4242"), "{refused}");
        }
    }

    #[test]
    fn folders_and_files_are_the_owners_alone() {
        let tmp = tempfile::tempdir().unwrap();
        let home = Home::at(tmp.path().join("h"));
        create(&home).unwrap();
        let mode = |p: &Path| fs::metadata(p).unwrap().mode() & 0o777;
        assert_eq!(mode(home.root()), 0o700);
        fs::set_permissions(home.pki(), fs::Permissions::from_mode(0o755)).unwrap();
        create(&home).unwrap();
        assert_eq!(mode(&home.pki()), 0o700);
        let file = home.pki().join("a.key");
        fs::write(&file, "old").unwrap();
        replace_file(&file, b"new").unwrap();
        assert_eq!((fs::read(&file).unwrap().as_slice(), mode(&file)), (&b"new"[..], 0o600));
        assert_eq!(fs::read_dir(home.pki()).unwrap().count(), 1, "no temporary file stays behind");
    }
}
