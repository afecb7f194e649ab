//! Opening what an image's name leads to among the user's own files.
//!
//! Whoever may create pods chooses the name, and it may name any file. So: regular files only, opened once and without
//! waiting; only below the folders that are allowed, whatever links say; and no error shows a byte of what was read.

use crate::error::SourceError;
use crate::region::Region;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::Mode;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

/// From where images in files may be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalImages {
    /// Wherever the user can read.
    Anywhere,
    /// Below these folders.
    Below(Vec<PathBuf>),
    /// From nowhere; and why, for people.
    Nowhere(String),
}

/// A file or folder of the user's, open.
pub(crate) struct Opened {
    /// As it was named, without the tag.
    pub(crate) path: PathBuf,
    /// What followed the path and a colon.
    pub(crate) tag: Option<String>,
    pub(crate) node: Node,
}

/// What was opened.
pub(crate) enum Node {
    File(Region),
    Folder(Folder),
}

/// An open folder.
pub(crate) struct Folder {
    fd: OwnedFd,
    path: PathBuf,
}

const READ: OFlag = OFlag::O_RDONLY.union(OFlag::O_NONBLOCK).union(OFlag::O_NOCTTY).union(OFlag::O_CLOEXEC);
const FOLDER: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// Opens `spec`: a path, or a path, a colon and a tag. The longest that exists is the path.
pub(crate) fn open(spec: &Path, allowed: &LocalImages) -> Result<Opened, SourceError> {
    let roots = roots(allowed)?;
    // A text with `..` is below a folder in its letters only.
    if *allowed != LocalImages::Anywhere && spec.components().any(|part| matches!(part, Component::ParentDir)) {
        return Err(SourceError::Forbidden("the path of an image must not contain `..`".to_owned()));
    }
    let text = spec.to_string_lossy();
    let shorter = text.match_indices(':').map(|(colon, _)| (Path::new(&text[..colon]), Some(&text[colon + 1..])));
    let mut is_allowed = false;
    for (path, tag) in std::iter::once((spec, None)).chain(shorter) {
        let Some((root, rest)) = below(&roots, path) else { continue };
        is_allowed = true;
        let fd = match open_below(&root, &rest) {
            // A link out of the folder may lead into another one that is allowed.
            Err(Errno::EXDEV) => match std::fs::canonicalize(path).ok().and_then(|real| below(&roots, &real)) {
                Some((root, rest)) => open_below(&root, &rest),
                None => Err(Errno::EXDEV),
            },
            other => other,
        };
        match fd {
            Ok(fd) => return Opened::of(fd, path, tag),
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(Errno::EXDEV) => {
                return Err(SourceError::Forbidden(format!(
                    "a link leads out of the folders that images may be taken from ({})",
                    names(allowed)
                )));
            }
            Err(errno) => return Err(refused(errno, path)),
        }
    }
    if is_allowed {
        return Err(SourceError::NotFound(format!("no such file: {}", spec.display())));
    }
    Err(SourceError::Forbidden(format!("images may be taken from files below {} only", names(allowed))))
}

/// A folder that is allowed, and whether links may lead out of it.
#[derive(Clone)]
struct Root {
    path: PathBuf,
    is_all: bool,
}

fn roots(allowed: &LocalImages) -> Result<Vec<Root>, SourceError> {
    match allowed {
        LocalImages::Anywhere => Ok(vec![Root { path: PathBuf::from("/"), is_all: true }]),
        LocalImages::Nowhere(why) => Err(SourceError::Forbidden(why.clone())),
        LocalImages::Below(folders) => Ok(folders
            .iter()
            .flat_map(|folder| [Some(folder.clone()), std::fs::canonicalize(folder).ok()])
            .flatten()
            .map(|path| Root { path, is_all: false })
            .collect()),
    }
}

fn names(allowed: &LocalImages) -> String {
    match allowed {
        LocalImages::Below(folders) => folders.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", "),
        LocalImages::Anywhere | LocalImages::Nowhere(_) => "/".to_owned(),
    }
}

fn below(roots: &[Root], path: &Path) -> Option<(Root, PathBuf)> {
    roots.iter().find_map(|root| Some((root.clone(), path.strip_prefix(&root.path).ok()?.to_owned())))
}

fn open_below(root: &Root, rest: &Path) -> Result<OwnedFd, Errno> {
    let folder = nix::fcntl::open(&root.path, FOLDER, Mode::empty())?;
    let rest = if rest.as_os_str().is_empty() { Path::new(".") } else { rest };
    match root.is_all {
        true => resolve(&folder, rest, ResolveFlag::RESOLVE_NO_MAGICLINKS),
        false => resolve(&folder, rest, ResolveFlag::RESOLVE_NO_MAGICLINKS | ResolveFlag::RESOLVE_BENEATH),
    }
}

fn resolve(folder: &OwnedFd, path: &Path, how: ResolveFlag) -> Result<OwnedFd, Errno> {
    loop {
        match openat2(folder, path, OpenHow::new().flags(READ).resolve(how)) {
            // Something was renamed on the way; the kernel asks for another try.
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(Errno::ENOSYS | Errno::EPERM) => return walk(folder, path),
            other => return other,
        }
    }
}

/// For kernels before 5.6: step by step, and over no link at all.
fn walk(folder: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let mut at = folder.try_clone().map_err(|_| Errno::EMFILE)?;
    let parts: Vec<_> = path.components().filter(|part| matches!(part, Component::Normal(_))).collect();
    let (last, folders) = parts.split_last().map_or((Path::new("."), &[][..]), |(l, rest)| (l.as_ref(), rest));
    for part in folders {
        at = openat(&at, part.as_os_str(), FOLDER | OFlag::O_NOFOLLOW, Mode::empty())?;
    }
    openat(&at, last, READ | OFlag::O_NOFOLLOW, Mode::empty())
}

fn refused(errno: Errno, path: &Path) -> SourceError {
    match errno {
        Errno::ENXIO | Errno::ENODEV => not_regular(path),
        Errno::ELOOP => SourceError::Forbidden(format!("{} leads over a link that is not followed", path.display())),
        errno => SourceError::Io { action: "open", path: path.to_owned(), source: errno.into() },
    }
}

fn not_regular(path: &Path) -> SourceError {
    SourceError::InvalidImage { what: path.display().to_string(), cause: "it is not a regular file".to_owned() }
}

fn region(fd: OwnedFd, path: &Path) -> Result<Region, SourceError> {
    let file = File::from(fd);
    let meta = file.metadata().map_err(SourceError::io("read", path))?;
    if !meta.is_file() {
        return Err(not_regular(path));
    }
    Region::whole(file).map_err(SourceError::io("read", path))
}

impl Opened {
    fn of(fd: OwnedFd, path: &Path, tag: Option<&str>) -> Result<Self, SourceError> {
        let file = File::from(fd);
        let meta = file.metadata().map_err(SourceError::io("read", path))?;
        let fd = OwnedFd::from(file);
        let node = match meta.is_dir() {
            true => Node::Folder(Folder { fd, path: path.to_owned() }),
            false => Node::File(region(fd, path)?),
        };
        Ok(Self { path: path.to_owned(), tag: tag.map(str::to_owned), node })
    }

    /// The file; a folder is none.
    pub(crate) fn file(&self) -> Result<&Region, SourceError> {
        match &self.node {
            Node::File(region) => Ok(region),
            Node::Folder(_) => Err(not_regular(&self.path)),
        }
    }
}

impl Folder {
    /// A regular file below the folder. A link that leads out of the folder is refused.
    pub(crate) fn file(&self, name: &str) -> Result<Region, SourceError> {
        let path = self.path.join(name);
        let invalid = |cause: &str| {
            Err(SourceError::InvalidImage { what: self.path.display().to_string(), cause: format!("{name} {cause}") })
        };
        if name.is_empty() || Path::new(name).components().any(|c| !matches!(c, Component::Normal(_))) {
            return invalid("leads out of the image's folder");
        }
        let how = ResolveFlag::RESOLVE_NO_MAGICLINKS | ResolveFlag::RESOLVE_BENEATH;
        match resolve(&self.fd, Path::new(name), how) {
            Ok(fd) => region(fd, &path),
            Err(Errno::ENOENT | Errno::ENOTDIR) => invalid("is missing"),
            Err(Errno::EXDEV) => invalid("leads out of the image's folder"),
            Err(errno) => Err(refused(errno, &path)),
        }
    }
}

/// What tells a file from the same file after a change: also one that kept its length and time.
pub(crate) fn stamp(region: &Region) -> Option<String> {
    let meta = region.file.metadata().ok()?;
    Some(format!(
        "{}.{:09} {}.{:09} {} {}:{}",
        meta.mtime(),
        meta.mtime_nsec(),
        meta.ctime(),
        meta.ctime_nsec(),
        meta.size(),
        meta.dev(),
        meta.ino()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    struct Files {
        _dir: tempfile::TempDir,
        home: PathBuf,
    }

    /// `home` with images in it, beside it a secret.
    fn files() -> Files {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home");
        std::fs::create_dir_all(home.join("images/layout/blobs")).unwrap();
        std::fs::write(dir.path().join("secret"), "secret").unwrap();
        std::fs::write(home.join("images/a:b.tar"), "ab").unwrap();
        std::fs::write(home.join("images/layout/blobs/one"), "1").unwrap();
        Files { _dir: dir, home }
    }

    fn why(result: Result<Opened, SourceError>) -> String {
        match result {
            Ok(opened) => panic!("{} was opened", opened.path.display()),
            Err(e) => format!("{e:?}"),
        }
    }

    #[test]
    fn path_and_tag_are_split_by_what_exists() {
        let files = files();
        for allowed in [LocalImages::Anywhere, LocalImages::Below(vec![files.home.clone()])] {
            let open = |name: &str| open(&files.home.join(name), &allowed);
            let plain = open("images/a:b.tar").unwrap();
            assert_eq!((plain.path, plain.tag), (files.home.join("images/a:b.tar"), None));
            let tagged = open("images/a:b.tar:v1:x").unwrap();
            assert_eq!((tagged.path, tagged.tag.as_deref()), (files.home.join("images/a:b.tar"), Some("v1:x")));
            assert!(matches!(open("images/layout:t").unwrap().node, Node::Folder(_)));
            assert!(why(open("images/none.tar:v1")).contains("NotFound"));
        }
    }

    #[test]
    fn nothing_is_opened_outside_of_the_allowed_folders() {
        let files = files();
        let images = files.home.join("images");
        let allowed = LocalImages::Below(vec![images.clone()]);
        let outside = files.home.parent().unwrap().join("secret");
        symlink(&outside, images.join("absolute")).unwrap();
        symlink("../../secret", images.join("relative")).unwrap();
        symlink(files.home.parent().unwrap(), images.join("folder")).unwrap();
        symlink(images.join("a:b.tar"), images.join("inside")).unwrap();
        for bad in
            [&outside, &images.join("../../secret"), &files.home.join("images2"), Path::new("/proc/self/environ")]
        {
            assert!(why(open(bad, &allowed)).contains("Forbidden"), "{}", bad.display());
        }
        for bad in ["absolute", "relative", "folder/secret", "relative:tag"] {
            assert!(why(open(&images.join(bad), &allowed)).contains("a link leads out"), "{bad}");
        }
        assert!(open(&images.join("inside"), &allowed).is_ok(), "a link within is followed");
        let both = LocalImages::Below(vec![images.clone(), files.home.parent().unwrap().to_owned()]);
        assert!(open(&images.join("absolute"), &both).is_ok(), "a link into another allowed folder is followed");
        let none = LocalImages::Nowhere("not in this namespace".to_owned());
        assert!(why(open(&images.join("a:b.tar"), &none)).contains("not in this namespace"));
    }

    #[test]
    fn a_fifo_blocks_nobody_and_is_no_image() {
        let files = files();
        let fifo = files.home.join("images/fifo.tar");
        nix::unistd::mkfifo(&fifo, Mode::S_IRUSR).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(files.home.join("images/socket.tar")).unwrap();
        for bad in [fifo, files.home.join("images/socket.tar"), PathBuf::from("/dev/zero")] {
            assert!(why(open(&bad, &LocalImages::Anywhere)).contains("not a regular file"), "{}", bad.display());
        }
        let magic = format!("/proc/self/cwd{}", files.home.join("images/a:b.tar").display());
        assert!(why(open(Path::new(&magic), &LocalImages::Anywhere)).contains("a link that is not followed"));
    }

    #[test]
    fn a_layout_reaches_nothing_outside_of_it() {
        let files = files();
        let layout = files.home.join("images/layout");
        symlink("../a:b.tar", layout.join("out")).unwrap();
        symlink("blobs/one", layout.join("in")).unwrap();
        nix::unistd::mkfifo(&layout.join("fifo"), Mode::S_IRUSR).unwrap();
        let Node::Folder(folder) = open(&layout, &LocalImages::Anywhere).unwrap().node else { panic!("no folder") };
        assert_eq!(folder.file("in").unwrap().length, 1);
        for bad in ["out", "../a:b.tar", "/etc/passwd", "fifo", "blobs", "", "none"] {
            assert!(folder.file(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn kernels_without_openat2_follow_no_link() {
        let files = files();
        let folder = OwnedFd::from(File::open(&files.home).unwrap());
        symlink("a:b.tar", files.home.join("images/link")).unwrap();
        symlink("images", files.home.join("link")).unwrap();
        assert!(walk(&folder, Path::new("images/a:b.tar")).is_ok());
        for bad in ["images/link", "link/a:b.tar"] {
            assert!(walk(&folder, Path::new(bad)).is_err(), "{bad}");
        }
    }
}
