//! Which MPI library a container holds, and by that how its ranks are to find each other.
//!
//! The loader's own order is followed as far as files tell it: LD_LIBRARY_PATH, what lies beside the folders of PATH, the
//! loader's configuration, the usual folders, /opt. Nothing of the container is executed.

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// By what their ranks find each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// PMIx, and since version 5 nothing else.
    OpenMpi,
    /// MPICH, Intel MPI, MVAPICH and others of their ABI: PMI-2.
    Mpich,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Library {
    pub(crate) family: Option<Family>,
    /// Slurm's client of PMI-2, which Intel MPI loads by its path.
    pub(crate) pmi2: Option<PathBuf>,
}

/// By the names that their loaders ask for. Open MPI's own come first: a Debian has both beside each other.
const NAMES: [(&str, Family); 6] = [
    ("libmpi.so.40", Family::OpenMpi),
    ("libopen-pal.so.80", Family::OpenMpi),
    ("libmpi.so.20", Family::OpenMpi),
    ("libmpi.so.12", Family::Mpich),
    ("libmpich.so.12", Family::Mpich),
    ("libmpi_cray.so.12", Family::Mpich),
];
const PMI2: [&str; 2] = ["libpmi2.so.0", "libpmi2.so"];

const USUAL: [&str; 10] = [
    "/usr/local/lib",
    "/usr/local/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/usr/lib64/openmpi/lib",
    "/usr/lib64/mpich/lib",
    "/usr/lib64/slurm",
    "/opt/intel/oneapi/mpi/latest/lib",
];

/// Longest file of the loader's configuration that is read, bytes.
const CONFIG: u64 = 64 << 10;

/// The folders that a container's loader would look into, in order. `configured`: by /etc/ld.so.conf.d; `opt`: names in /opt.
fn folders(env: &[(String, String)], configured: &[String], opt: &[String]) -> Vec<PathBuf> {
    let variable =
        |name: &str| env.iter().rev().find(|(known, _)| known == name).map_or("", |(_, value)| value.as_str());
    let list = |name: &str| variable(name).split(':').filter(|part| part.starts_with('/')).map(PathBuf::from);
    let mut folders: Vec<PathBuf> = list("LD_LIBRARY_PATH").collect();
    for programs in list("PATH") {
        let Some(prefix) = programs.parent().filter(|prefix| *prefix != Path::new("/") && *prefix != Path::new("/usr"))
        else {
            continue;
        };
        folders.extend([prefix.join("lib"), prefix.join("lib64")]);
    }
    folders.extend(configured.iter().map(PathBuf::from));
    folders.extend(USUAL.map(PathBuf::from));
    folders.extend(opt.iter().map(|name| Path::new("/opt").join(name).join("lib")));
    let mut seen = std::collections::HashSet::new();
    folders.retain(|folder| folder.is_absolute() && seen.insert(folder.clone()));
    folders
}

/// Looks into a container by its root folder.
pub(crate) fn find(root: &OwnedFd, env: &[(String, String)]) -> Library {
    let configured: Vec<String> = names(root, Path::new("etc/ld.so.conf.d"))
        .iter()
        .filter(|name| name.ends_with(".conf"))
        .flat_map(|name| lines(root, &Path::new("etc/ld.so.conf.d").join(name)))
        .filter(|line| line.starts_with('/'))
        .collect();
    let mut library = Library::default();
    for folder in folders(env, &configured, &names(root, Path::new("opt"))) {
        let Ok(open) = within(root, &folder, OFlag::O_PATH | OFlag::O_DIRECTORY) else { continue };
        let has = |name: &str| within(&open, Path::new(name), OFlag::O_PATH | OFlag::O_NOFOLLOW).is_ok();
        if library.family.is_none() {
            library.family = NAMES.iter().find(|(name, _)| has(name)).map(|(_, family)| *family);
        }
        if library.pmi2.is_none() {
            library.pmi2 = PMI2.iter().find(|name| has(name)).map(|name| folder.join(name));
        }
    }
    library
}

/// A path of the container, whose links lead nowhere out of it.
fn within(root: impl AsFd, path: &Path, flags: OFlag) -> Result<OwnedFd, Errno> {
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_IN_ROOT);
    openat2(root, path, how)
}

fn names(root: &OwnedFd, folder: &Path) -> Vec<String> {
    let Ok(open) = within(root, folder, OFlag::O_RDONLY | OFlag::O_DIRECTORY) else { return Vec::new() };
    let Ok(mut open) = nix::dir::Dir::from_fd(open) else { return Vec::new() };
    let mut names: Vec<String> = open
        .iter()
        .filter_map(|entry| entry.ok()?.file_name().to_str().ok().map(str::to_owned))
        .filter(|name| !name.starts_with('.'))
        .collect();
    names.sort_unstable();
    names
}

fn lines(root: &OwnedFd, path: &Path) -> Vec<String> {
    // Not to wait for a writer of a FIFO.
    let Ok(open) = within(root, path, OFlag::O_RDONLY | OFlag::O_NONBLOCK) else { return Vec::new() };
    let mut text = String::new();
    let _ = File::from(open).take(CONFIG).read_to_string(&mut text);
    text.lines().map(|line| line.trim().to_owned()).collect()
}

/// `--mpi` for what srun has (`srun --mpi=list`) and what the container holds. Where the library is not known: PMIx, which
/// most of today's speak.
pub(crate) fn choose_mpi(list: &str, family: Option<Family>) -> Option<&'static str> {
    let has = |wanted: &str| list.split(|c: char| c.is_whitespace() || c == ',').any(|word| word == wanted);
    let wanted: &[&'static str] = match family {
        Some(Family::Mpich) => &["pmi2", "pmix"],
        Some(Family::OpenMpi) | None => &["pmix"],
    };
    wanted.iter().find(|wanted| has(wanted)).copied()
}

/// What the user is to know of their own `--mpi`: it starts ranks that do not find each other, and says nothing of it.
pub(crate) fn advice(mpi: Option<&str>, family: Option<Family>) -> Option<&'static str> {
    match (mpi?, family?) {
        ("pmi2" | "none", Family::OpenMpi) => Some(
            "hpk: the container's Open MPI finds its ranks by PMIx: with another --mpi than pmix each rank may be a world of its own",
        ),
        ("none", Family::Mpich) => {
            Some("hpk: with --mpi=none each rank of the container's MPI library is a world of its own; it takes pmi2")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn env(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    /// A container with empty files of these names.
    fn container(files: &[&str]) -> (tempfile::TempDir, OwnedFd) {
        let tmp = tempfile::tempdir().unwrap();
        for file in files {
            let path = tmp.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let root = File::open(tmp.path()).unwrap().into();
        (tmp, root)
    }

    #[test]
    fn the_loaders_order() {
        let env = env(&[("PATH", "/opt/x/bin:/usr/bin:/bin:relative"), ("LD_LIBRARY_PATH", "/first::/second")]);
        let folders = folders(&env, &["/conf".to_owned()], &["y".to_owned()]);
        let want = ["/first", "/second", "/opt/x/lib", "/opt/x/lib64", "/conf", "/usr/local/lib"].map(PathBuf::from);
        assert_eq!(folders.get(..6).unwrap(), want);
        assert_eq!(folders.last().unwrap(), Path::new("/opt/y/lib"));
    }

    #[test]
    fn the_library_that_would_be_loaded() {
        let (_tmp, root) = container(&["usr/lib/x86_64-linux-gnu/libmpi.so.40", "opt/mpich/lib/libmpi.so.12"]);
        assert_eq!(find(&root, &[]).family, Some(Family::OpenMpi));
        assert_eq!(find(&root, &env(&[("LD_LIBRARY_PATH", "/opt/mpich/lib")])).family, Some(Family::Mpich));
        assert_eq!(find(&root, &env(&[("PATH", "/opt/mpich/bin:/bin")])).family, Some(Family::Mpich));
        let (_tmp, root) = container(&["opt/mpich/lib/libmpi.so.12", "usr/lib/x86_64-linux-gnu/libpmi2.so.0"]);
        let found = find(&root, &[]);
        assert_eq!(found.family, Some(Family::Mpich));
        assert_eq!(found.pmi2.as_deref(), Some(Path::new("/usr/lib/x86_64-linux-gnu/libpmi2.so.0")));
        let (_tmp, root) = container(&["bin/sh"]);
        assert_eq!(find(&root, &[]), Library::default());
    }

    /// Links are the container's: they lead to its own files and to nobody else's.
    #[test]
    fn links_stay_inside() {
        let (tmp, root) = container(&["opt/mpich-5/lib/libmpi.so.12", "outside/libmpi.so.40"]);
        symlink("/opt/mpich-5/lib", tmp.path().join("libs")).unwrap();
        symlink(tmp.path().join("outside"), tmp.path().join("out")).unwrap();
        std::fs::create_dir_all(tmp.path().join("etc/ld.so.conf.d")).unwrap();
        std::fs::write(tmp.path().join("etc/ld.so.conf.d/a.conf"), "# first\n/out\n/libs\n").unwrap();
        assert_eq!(find(&root, &[]).family, Some(Family::Mpich));
    }

    #[test]
    fn how_ranks_find_each_other() {
        let list =
            "MPI plugin types are...\n\tnone\n\tpmix\n\tpmi2\nspecific pmix plugin versions available: pmix_v5\n";
        let old = "MPI plugin types are...\n\tnone\n\tpmi2\n";
        let new = "MPI plugin types are...\n\tnone\n\tpmix\n";
        for (list, family, want) in [
            (list, None, Some("pmix")),
            (list, Some(Family::OpenMpi), Some("pmix")),
            (list, Some(Family::Mpich), Some("pmi2")),
            (new, Some(Family::Mpich), Some("pmix")),
            (old, Some(Family::OpenMpi), None),
            (old, None, None),
        ] {
            assert_eq!(choose_mpi(list, family), want, "{family:?}");
        }
        assert!(advice(Some("pmi2"), Some(Family::OpenMpi)).unwrap().contains("PMIx"));
        assert!(advice(Some("none"), Some(Family::Mpich)).unwrap().contains("pmi2"));
        assert_eq!(advice(Some("pmix"), Some(Family::OpenMpi)), None);
        assert_eq!(advice(Some("pmi2"), None), None);
    }
}
