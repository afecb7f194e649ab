//! Images that are one SquashFS file in the store, made visible on this node as folders.
//!
//! ```text
//! HPK_HOME/images/<digest>.sqfs ─ squashfuse ─▶ <pod>/images/<digest>/rootfs     in the pod's own mount namespace
//!                               └ else unpacked ▶ <user>/img-<home>/<digest>/rootfs, once for all pods of this node
//!                                                   lock   shared by each hpk-netns for its pod's life
//!                                                   making whoever unpacks
//! ```
//! A mount takes milliseconds whatever the image's size, and needs /dev/fuse, squashfuse (which comes with Apptainer) and
//! namespaces that are ours to make. Whatever is in the way of it, the image is unpacked: that needs nothing but room. What
//! was unpacked goes with the last pod that has it.
//!
//! The mount is made by `hpk-netns images` ([`show`]), which becomes the program that is to see it.

use super::scratch;
use hpk_api::plan::{SandboxPlan, VolumePlan};
use hpk_layout::image::{self, ROOTFS};
use hpk_layout::node;
use hpk_sys::mounts;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Sub-command: makes images visible, then becomes the program behind `--`.
pub const COMMAND: &str = "images";

const GATE: &str = ".gate";
const MAKING: &str = "making";

/// Why a pod's images cannot be seen on this node.
#[derive(Debug, thiserror::Error)]
pub enum ImagesError {
    /// The file system's.
    #[error("image on this node: {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    /// The file could not be unpacked.
    #[error("image {}: cannot be unpacked on this node: {why}", file.display())]
    Unpack {
        /// In the store.
        file: PathBuf,
        why: String,
    },
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> ImagesError {
    let path = path.to_owned();
    move |source| ImagesError::Io { path, source }
}

/// The images of a pod that are files, and where they are to be seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Images {
    /// Their names in the store.
    folders: BTreeSet<String>,
    store: PathBuf,
    /// Mount points, the pod's own.
    points: PathBuf,
    /// Of what is unpacked, for all pods.
    here: PathBuf,
    /// The program that unpacks.
    kubelet: PathBuf,
    /// None: nothing can be mounted.
    squashfuse: Option<PathBuf>,
}

impl Images {
    /// Those of a plan. `is_file`: of the store, whether an image is there as a file alone.
    pub(crate) fn of(
        plan: &SandboxPlan,
        layout: &super::layout::Layout,
        points: PathBuf,
        is_file: impl Fn(&str) -> bool,
    ) -> Self {
        let volumes = plan.volumes.values().filter_map(|volume| match volume {
            VolumePlan::Image { image_ref } => Some(image_ref),
            _ => None,
        });
        let all = plan.all().map(|container| &container.image_ref).chain(volumes).map(|image| image.folder.clone());
        let all: BTreeSet<String> = all.filter(|folder| !folder.is_empty()).collect();
        Self {
            folders: all.into_iter().filter(|folder| is_file(folder)).collect(),
            store: layout.images.clone(),
            points,
            here: layout.unpacked.clone(),
            kubelet: layout.kubelet.clone(),
            squashfuse: None,
        }
    }

    /// As a store on this file system has them.
    pub(crate) fn find(plan: &SandboxPlan, layout: &super::layout::Layout, points: PathBuf) -> Self {
        let is_file =
            |folder: &str| !layout.images.join(folder).is_dir() && layout.images.join(image::file(folder)).is_file();
        Self::of(plan, layout, points, is_file)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.folders.is_empty()
    }

    fn file(&self, folder: &str) -> PathBuf {
        self.store.join(image::file(folder))
    }

    /// Takes a share of each image's place on this node, so that nobody removes it, and makes the mount points. `apptainer`:
    /// beside it there may be a squashfuse.
    pub(crate) fn take(&mut self, apptainer: Option<&Path>) -> Result<Vec<File>, ImagesError> {
        self.squashfuse = squashfuse(apptainer);
        private(&self.here)?;
        private(&self.points)?;
        let _gate = gate(&self.here)?;
        let mut shares = Vec::with_capacity(self.folders.len());
        for folder in &self.folders {
            let place = self.here.join(folder);
            private(&place)?;
            let path = place.join(node::LOCK);
            let open = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
            shares.push(open.and_then(|file| file.lock_shared().map(|()| file)).map_err(io_error(&path))?);
            private(&self.points.join(folder))?;
            private(&self.points.join(folder).join(ROOTFS))?;
        }
        Ok(shares)
    }

    /// Unpacks all of them, for a program that is to see them at [`Self::unpacked`].
    pub(crate) fn unpack(&self) -> Result<(), ImagesError> {
        self.folders.iter().try_for_each(|folder| self.unpack_one(folder))
    }

    /// Where [`Self::unpack`] puts them.
    pub(crate) fn unpacked(&self) -> &Path {
        &self.here
    }

    /// Where [`Self::wrap`]ped programs see them.
    pub(crate) fn points(&self) -> &Path {
        &self.points
    }

    fn unpack_one(&self, folder: &str) -> Result<(), ImagesError> {
        let place = self.here.join(folder);
        let (rootfs, new, path) = (place.join(ROOTFS), place.join("new"), place.join(MAKING));
        let open = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let _making = open.and_then(|file| file.lock().map(|()| file)).map_err(io_error(&path))?;
        if rootfs.is_dir() {
            return Ok(());
        }
        // Of one that was killed over it.
        scratch::remove(&new).map_err(io_error(&new))?;
        let file = self.file(folder);
        let args = [OsString::from("image-unpack"), file.clone().into(), new.clone().into()];
        let unpack = |why: String| ImagesError::Unpack { file: file.clone(), why };
        // In the pod's own namespace the ids are there already.
        let done = match hpk_sys::below::in_user_namespace() && nix::unistd::geteuid().is_root() {
            true => Command::new(&self.kubelet).args(&args).status().map(|status| status.code().unwrap_or(1)),
            false => hpk_sys::userns::run(&self.kubelet, &args).map_err(io::Error::other),
        };
        match done {
            Ok(0) => std::fs::rename(&new, &rootfs).map_err(io_error(&rootfs)),
            Ok(code) => {
                let _ = scratch::remove(&new);
                Err(unpack(format!(
                    "{} image-unpack ended with code {code}: see the job's output",
                    self.kubelet.display()
                )))
            }
            Err(error) => Err(unpack(error.to_string())),
        }
    }

    /// The program and its arguments that show the images to `program` and become it.
    pub(crate) fn wrap(&self, program: PathBuf, args: Vec<OsString>) -> (PathBuf, Vec<OsString>) {
        if self.is_empty() {
            return (program, args);
        }
        let own = std::env::current_exe().unwrap_or_else(|_| "hpk-netns".into());
        let mut all = vec![COMMAND.into(), serde_json::to_string(self).unwrap_or_default().into(), program.into()];
        all.extend(args);
        (own, all)
    }

    /// Mounts an image, or binds what is unpacked of it in its place.
    fn show_one(&self, folder: &str) -> Result<(), ImagesError> {
        let point = self.points.join(folder).join(ROOTFS);
        if let Some(program) = &self.squashfuse {
            match mount(program, &self.file(folder), &point) {
                Ok(()) => return Ok(()),
                Err(why) => hpk_api::say!("hpk-netns: image {folder} is unpacked on this node, for {why}"),
            }
        }
        self.unpack_one(folder)?;
        mounts::bind_read_only(&self.here.join(folder).join(ROOTFS), &point).map_err(|e| io_error(&point)(e.into()))
    }
}

/// Further shares of the images that have mount points in a folder.
pub(crate) fn shares(points: &Path, here: &Path) -> Result<Vec<File>, ImagesError> {
    let entries = match std::fs::read_dir(points) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(io_error(points))?,
    };
    let share = |entry: io::Result<std::fs::DirEntry>| {
        let path = here.join(entry.map_err(io_error(points))?.file_name()).join(node::LOCK);
        File::open(&path).and_then(|file| file.lock_shared().map(|()| file)).map_err(io_error(&path))
    };
    entries.map(share).collect()
}

/// In the namespaces of a pod: makes the images of `wish` visible and becomes the program.
///
/// # Errors
/// An image cannot be shown, or the program not be executed.
pub fn show(wish: &OsString, program: &OsString, args: &[OsString]) -> Result<std::convert::Infallible, ImagesError> {
    let broken = |source| ImagesError::Io { path: COMMAND.into(), source };
    let images: Images =
        serde_json::from_slice(wish.as_encoded_bytes()).map_err(|error| broken(io::Error::from(error)))?;
    // Side by side: each mount waits for a program to start.
    let shown: Vec<Result<(), ImagesError>> = std::thread::scope(|scope| {
        let all: Vec<_> = images.folders.iter().map(|folder| scope.spawn(|| images.show_one(folder))).collect();
        all.into_iter().map(|one| one.join().unwrap_or_else(|_| Err(broken(io::ErrorKind::Other.into())))).collect()
    });
    shown.into_iter().collect::<Result<(), _>>()?;
    let error = Command::new(program).args(args).exec();
    Err(ImagesError::Io { path: program.into(), source: error })
}

/// Starts squashfuse, which goes on in the background when the mount is there. It ends when the mount points are removed,
/// or with the job.
fn mount(program: &Path, file: &Path, point: &Path) -> Result<(), String> {
    // allow_other: containers are in user namespaces below this one, and have users beside root.
    let mut command = Command::new(program);
    command.args(["-o", "ro,allow_other"]).arg(file).arg(point).stdin(Stdio::null()).stdout(Stdio::null());
    match command.stderr(Stdio::piped()).output() {
        Ok(output) if output.status.success() && mounts::is_mount_point(point) => Ok(()),
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr);
            Err(format!("{} failed ({}): {}", program.display(), output.status, text.trim()))
        }
        Err(error) => Err(format!("{}: {error}", program.display())),
    }
}

/// Where there is one, if it could work at all.
fn squashfuse(apptainer: Option<&Path>) -> Option<PathBuf> {
    OpenOptions::new().read(true).write(true).open("/dev/fuse").ok()?;
    let beside = apptainer.and_then(|path| std::fs::canonicalize(path).ok()).and_then(|path| {
        let folder = path.parent()?.parent()?.join("libexec/apptainer/bin");
        Some(folder.join("squashfuse_ll"))
    });
    let usual = ["squashfuse_ll", "squashfuse"].iter().filter_map(|name| which::which(name).ok());
    usual.chain(beside.filter(|path| path.is_file())).next()
}

/// Removes what no pod on this node has any more.
pub(crate) fn sweep(here: &Path) -> Result<(), ImagesError> {
    if !here.is_dir() {
        return Ok(());
    }
    let mut old = Vec::new();
    {
        let _gate = gate(here)?;
        for entry in std::fs::read_dir(here).map_err(io_error(here))?.flatten() {
            let place = entry.path();
            let is_left = node::is_old(&entry.file_name());
            let Ok(lock) = File::open(place.join(node::LOCK)) else {
                old.extend(is_left.then_some((None, place)));
                continue;
            };
            if lock.try_lock().is_ok() {
                let to = here.join(node::old(&entry.file_name(), std::process::id()));
                std::fs::rename(&place, &to).map_err(io_error(&place))?;
                old.push((Some(lock), to));
            }
        }
    }
    for (_lock, path) in old {
        scratch::remove(&path).map_err(io_error(&path))?;
    }
    Ok(())
}

fn gate(here: &Path) -> Result<File, ImagesError> {
    let path = here.join(GATE);
    let open = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    open.and_then(|file| file.lock().map(|()| file)).map_err(io_error(&path))
}

/// Below a folder that was found to be ours alone.
fn private(path: &Path) -> Result<(), ImagesError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(io_error(path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::{Layout, Surroundings};
    use super::*;

    fn images(tmp: &Path) -> Images {
        let around = Surroundings { user: tmp.to_owned(), uid: 7, ..Surroundings::default() };
        let layout = Layout::new(Path::new("/h/pods/u"), "u", &around);
        let image = |folder: &str| serde_json::json!({"folder": folder, "id": "x"});
        let container = |name: &str, folder: &str| serde_json::json!({"name": name, "image": "i", "image_ref": image(folder), "argv": ["a"]});
        let plan: SandboxPlan = serde_json::from_value(serde_json::json!({
            "version": 1, "pod": {"namespace": "d", "name": "p", "uid": "u"}, "hostname": "p",
            "restart_policy": "Always", "termination_grace_period_seconds": 30, "network": {"mode": "host"},
            "containers": [container("a", "sha256-1"), container("b", "sha256-2"), container("c", "sha256-1"), container("d", "")],
        }))
        .unwrap();
        Images::of(&plan, &layout, tmp.join("u/images"), |folder| folder == "sha256-1")
    }

    #[test]
    fn only_images_that_are_files_are_shown_and_each_once() {
        let tmp = tempfile::tempdir().unwrap();
        let images = images(tmp.path());
        assert_eq!(images.folders.iter().collect::<Vec<_>>(), ["sha256-1"]);
        assert_eq!(images.file("sha256-1"), Path::new("/h/images/sha256-1.sqfs"));
        let (_, args) = images.wrap("/bin/apptainer".into(), vec!["exec".into()]);
        let args: Vec<_> = args.iter().map(|a| a.to_string_lossy().into_owned()).collect();
        assert_eq!((args[0].as_str(), &args[2..]), (COMMAND, &["/bin/apptainer".to_owned(), "exec".to_owned()][..]));
        assert_eq!(serde_json::from_str::<Images>(&args[1]).unwrap(), images);
    }

    #[test]
    fn a_program_without_such_images_is_started_as_it_is() {
        let none = Images::default();
        assert_eq!(none.wrap("/bin/a".into(), vec!["b".into()]), ("/bin/a".into(), vec!["b".into()]));
    }

    #[test]
    fn what_was_unpacked_stays_as_long_as_a_pod_has_it() {
        let tmp = tempfile::tempdir().unwrap();
        let mut images = images(tmp.path());
        std::fs::create_dir(tmp.path().join("u")).unwrap();
        let first = images.take(None).unwrap();
        let place = images.here.join("sha256-1");
        std::fs::create_dir(place.join(ROOTFS)).unwrap();
        let second = shares(&images.points, &images.here).unwrap();
        assert_eq!((first.len(), second.len()), (1, 1));
        drop(first);
        sweep(&images.here).unwrap();
        assert!(place.join(ROOTFS).is_dir());
        drop(second);
        sweep(&images.here).unwrap();
        let left: Vec<_> = std::fs::read_dir(&images.here).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, [GATE]);
        // It can be had again.
        assert_eq!(images.take(None).unwrap().len(), 1);
    }
}
