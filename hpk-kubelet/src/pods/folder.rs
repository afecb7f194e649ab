//! A pod's folder `HPK_HOME/pods/<uid>`: what the kubelet writes there and what it reads back.
//!
//! What is below [`files::INSIDE`] the pod's supervisor writes too, and whoever gets its rights: no link made there is
//! followed ([`beneath`]). What else is here no pod can reach.
//!
//! `kubelet.json` is the kubelet's own memory of the pod. It is written before and after every step that must
//! not be done twice, so that a kubelet that was killed at any moment knows where it was.

use super::resize::Granted;
use crate::executor::run::Run;
use hpk_api::ids::JobId;
use hpk_api::plan::{ImageRef, PodRef, SandboxPlan};
use hpk_api::state::{LaunchReport, PodState};
use hpk_layout::pod as files;
use hpk_sys::beneath;
use jiff::Timestamp;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Longest file that is read back, bytes.
const MOST: u64 = 64 << 20;

pub(crate) use hpk_layout::pod::RECORD;

/// How far the pod is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Progress {
    /// Addresses may have been given; no job.
    #[default]
    New,
    /// sbatch may or may not have been run: look in Slurm before doing it again.
    Submitting,
    /// The job's id is known.
    Submitted,
}

/// `kubelet.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`hpk_api::VERSION`] of the writer.
    pub version: u32,
    pub pod: PodRef,
    /// How far it is.
    #[serde(default)]
    pub progress: Progress,
    /// Slurm's id.
    #[serde(default)]
    pub job_id: Option<JobId>,
    /// Addresses given to it.
    #[serde(default)]
    pub pod_ips: Vec<IpAddr>,
    /// Addresses given to its outposts ([`hpk_api::net::NetworkPlan::outposts`]).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outposts: Vec<Vec<IpAddr>>,
    /// When the kubelet first saw it.
    pub seen_at: Timestamp,
    /// Highest sequence of the supervisor's events that was posted.
    #[serde(default)]
    pub last_event: u64,
    /// Its job's present run has dialled us: it can.
    #[serde(default)]
    pub linked: bool,
    /// When the supervisor began whose job Slurm has put back into its queue: what it says is of a former run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub former_run: Option<Timestamp>,
    /// Images in use, by container.
    #[serde(default)]
    pub images: BTreeMap<String, ImageRef>,
    /// Resources that the job was begun with, by container.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub granted: Granted,
    /// Jobs that have ended without a sandbox, nothing of the pod having begun in them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed_jobs: Vec<JobId>,
    /// Nodes from which its next job keeps away, since these were there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub avoid: Vec<String>,
    /// What was asked of Slurm, as flags of sbatch.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub requested: String,
    /// The job's end, once known: Slurm forgets it.
    #[serde(default)]
    pub ended: Option<Run>,
}

impl Record {
    /// All addresses of the pods' network that it may use.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.pod_ips.iter().chain(self.outposts.iter().flatten()).copied().collect()
    }

    /// A pod that was just seen.
    #[must_use]
    pub fn new(pod: PodRef, now: Timestamp) -> Self {
        Self {
            version: hpk_api::VERSION,
            pod,
            progress: Progress::New,
            job_id: None,
            pod_ips: Vec::new(),
            outposts: Vec::new(),
            seen_at: now,
            last_event: 0,
            linked: false,
            former_run: None,
            images: BTreeMap::new(),
            granted: Granted::new(),
            failed_jobs: Vec::new(),
            avoid: Vec::new(),
            requested: String::new(),
            ended: None,
        }
    }
}

/// A record that may be there and cannot be had: what it says is not known, least of all that there is none.
#[derive(Debug, Error)]
pub enum RecordError {
    /// The file system's, for now or for good.
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// It is no record.
    #[error("{} is damaged", path.display())]
    Damaged {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
}

/// One pod's folder.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// The folder at `path`, which need not exist.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The part of it that the pod's supervisor has.
    #[must_use]
    pub fn inside(&self) -> PathBuf {
        files::inside(&self.path)
    }

    /// Makes the folder, and in it those of logs and volumes (0700).
    ///
    /// # Errors
    /// The file system's.
    pub fn create(&self) -> io::Result<()> {
        let closed = |path: &Path| fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        closed(&self.path)?;
        let inside = self.inside();
        closed(&inside)?;
        closed(&inside.join(files::LOGS))?;
        closed(&inside.join(files::VOLUMES))
    }

    /// Where inside a volume is that the kubelet fills.
    #[must_use]
    pub fn volume(name: &str) -> PathBuf {
        Path::new(files::VOLUMES).join(name)
    }

    /// Writes the record. It is on disk then, its name included.
    ///
    /// # Errors
    /// The file system's.
    pub fn write_record(&self, record: &Record) -> io::Result<()> {
        Self::write_json(&self.path, RECORD, record)?;
        fs::File::open(&self.path)?.sync_all()
    }

    /// Reads the record; None when there is none.
    ///
    /// # Errors
    /// There may be one.
    pub fn record(&self) -> Result<Option<Record>, RecordError> {
        let path = self.path.join(RECORD);
        let text = match beneath::read(&self.path, Path::new(RECORD), MOST) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            // The folder is there, and something else has the record's name: that is this pod's damage alone.
            Err(error) if not_a_file(&error) => {
                return Err(RecordError::Damaged { path, source: serde::de::Error::custom(error) });
            }
            Err(source) => return Err(RecordError::Read { path, source }),
        };
        serde_json::from_slice(&text).map(Some).map_err(|source| RecordError::Damaged { path, source })
    }

    /// Path of the link's credentials, which are the link server's to write.
    #[must_use]
    pub fn link(&self) -> PathBuf {
        self.path.join(files::LINK)
    }

    /// The end of what the job has printed.
    #[must_use]
    pub fn output_tail(&self, bytes: u64) -> String {
        let read = || -> io::Result<Vec<u8>> {
            // A pod can have put anything there.
            let mut open = fs::OpenOptions::new();
            open.read(true).custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits());
            let mut file = open.open(self.path.join(files::JOB_OUTPUT))?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(bytes)))?;
            let mut tail = Vec::new();
            file.take(bytes).read_to_end(&mut tail)?;
            Ok(tail)
        };
        String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
    }

    /// Writes plan and script. What an earlier job said in the folder goes: it is not of the one to come.
    ///
    /// # Errors
    /// The file system's.
    pub fn write_job(&self, plan: &SandboxPlan, script: &str) -> io::Result<()> {
        // No link is followed: it is the name itself that goes.
        gone(fs::remove_file(self.inside().join(files::STATUS)))?;
        gone(fs::remove_file(self.path.join(files::LAUNCH)))?;
        self.write_plan(plan)?;
        // Slurm appends to it and would make it for all to read.
        let mut output = fs::OpenOptions::new();
        output.create(true).append(true).mode(0o600).custom_flags(OFlag::O_NOFOLLOW.bits());
        output.open(self.path.join(files::JOB_OUTPUT))?;
        hpk_layout::replace(&self.path.join(files::JOB_SCRIPT), script.as_bytes(), 0o700)
    }

    /// Writes the plan alone.
    ///
    /// # Errors
    /// The file system's.
    pub fn write_plan(&self, plan: &SandboxPlan) -> io::Result<()> {
        Self::write_json(&self.inside(), files::PLAN, plan)
    }

    /// Path of the script.
    #[must_use]
    pub fn script(&self) -> PathBuf {
        self.path.join(files::JOB_SCRIPT)
    }

    /// The plan that was written.
    #[must_use]
    pub fn plan(&self) -> Option<SandboxPlan> {
        read_json(&self.inside(), files::PLAN)
    }

    /// The supervisor's last word on disk.
    #[must_use]
    pub fn status(&self) -> Option<PodState> {
        read_json(&self.inside(), files::STATUS)
    }

    /// The supervisor's last word on disk, where it matters whether there is none.
    ///
    /// # Errors
    /// There may be one.
    pub fn last_word(&self) -> io::Result<Option<PodState>> {
        match beneath::read(&self.inside(), Path::new(files::STATUS), MOST) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// hpk-netns' word on a start that failed.
    #[must_use]
    pub fn launch(&self) -> Option<LaunchReport> {
        read_json(&self.path, files::LAUNCH)
    }

    fn write_json(folder: &Path, name: &str, value: &impl Serialize) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(value).map_err(io::Error::other)?;
        hpk_layout::replace(&folder.join(name), &text, 0o600)
    }

    /// Removes the folder with everything in it, files of subordinate ids included.
    ///
    /// # Errors
    /// Files that could not be removed.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                // Containers that ran as other users left files of subordinate ids: only their namespace may remove them.
                match hpk_sys::userns::remove_tree(&self.path) {
                    Ok(0) => Ok(()),
                    Ok(code) => {
                        Err(io::Error::other(format!("removal in a user namespace ended with exit code {code}")))
                    }
                    Err(cause) => Err(io::Error::other(cause)),
                }
            }
            Err(error) => Err(error),
        }
    }
}

fn read_json<T: DeserializeOwned>(folder: &Path, name: &str) -> Option<T> {
    serde_json::from_slice(&beneath::read(folder, Path::new(name), MOST).ok()?).ok()
}

/// What was not there need not be removed.
fn gone(removed: io::Result<()>) -> io::Result<()> {
    removed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// Uids of all pod folders.
///
/// # Errors
/// Not all of them can be told. That there is no folder above them is no error: there are none.
pub(crate) fn all(pods: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(pods) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let names = entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
    Ok(names.into_iter().filter_map(|n| n.into_string().ok()).filter(|n| !n.starts_with('.')).collect())
}

/// Something is there that is no regular file of ours: a folder, a link, a pipe.
fn not_a_file(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidInput, IsADirectory, NotADirectory};
    matches!(error.kind(), InvalidInput | IsADirectory | NotADirectory)
        || error.raw_os_error() == Some(Errno::ELOOP as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_of_the_pod_are_not_followed() {
        let dir = tempfile::tempdir().expect("tempdir");
        let key = dir.path().join("key");
        fs::write(&key, r#"{"node": "n", "step": "s", "message": "m"}"#).expect("a file");
        let folder = Folder::at(dir.path().join("u"));
        folder.create().expect("create");
        let link = |name: &str| std::os::unix::fs::symlink(&key, folder.path().join(name)).expect("a link");
        link(files::LAUNCH);
        assert_eq!(folder.launch(), None);
        link(RECORD);
        let who = PodRef { namespace: "n".into(), name: "p".into(), uid: "u".into() };
        folder.write_record(&Record::new(who, Timestamp::UNIX_EPOCH)).expect("write");
        assert!(folder.record().expect("a record").is_some());
        assert!(fs::read_to_string(&key).expect("key").starts_with(r#"{"node""#), "it is as it was");
    }

    #[test]
    fn a_pod_of_an_earlier_version_is_found_where_it_is() {
        let dir = tempfile::tempdir().expect("tempdir");
        let folder = Folder::at(dir.path().join("u"));
        fs::create_dir(folder.path()).expect("a folder");
        assert_eq!(folder.inside(), folder.path().join("pod"), "a new one");
        fs::write(folder.path().join(files::PLAN), "{}").expect("a plan");
        assert_eq!(folder.inside(), folder.path());
        folder.create().expect("create");
        assert!(folder.path().join(files::LOGS).is_dir() && !folder.path().join("pod").exists());
    }

    #[test]
    fn record_survives() {
        let dir = tempfile::tempdir().expect("tempdir");
        let folder = Folder::at(dir.path().join("u"));
        folder.create().expect("create");
        assert_eq!(folder.record().expect("none"), None);
        let who = PodRef { namespace: "n".into(), name: "p".into(), uid: "u".into() };
        let mut record = Record::new(who, Timestamp::UNIX_EPOCH);
        record.progress = Progress::Submitted;
        record.job_id = Some("7".into());
        folder.write_record(&record).expect("write");
        assert_eq!(folder.record().expect("one"), Some(record));
        assert_eq!(all(dir.path()).expect("folders"), ["u"]);
        folder.remove().expect("remove");
        folder.remove().expect("removing what is gone is no error");
        assert!(all(dir.path()).expect("folders").is_empty());
        assert!(all(&dir.path().join("missing")).expect("folders").is_empty());
    }

    #[test]
    fn what_cannot_be_read_is_not_nothing() {
        let dir = tempfile::tempdir().expect("tempdir");
        let folder = Folder::at(dir.path().join("u"));
        folder.create().expect("create");
        fs::write(folder.path().join(RECORD), "{").expect("write");
        assert!(matches!(folder.record(), Err(RecordError::Damaged { .. })));
        // What a pod can put in its place damages this pod's record alone, and nobody waits for a pipe's writer.
        let record = folder.path().join(RECORD);
        fs::remove_file(&record).expect("remove");
        fs::create_dir(&record).expect("folder");
        assert!(matches!(folder.record(), Err(RecordError::Damaged { .. })));
        fs::remove_dir(&record).expect("remove");
        std::os::unix::fs::symlink(RECORD, &record).expect("link");
        assert!(matches!(folder.record(), Err(RecordError::Damaged { .. })));
        for name in [RECORD, files::STATUS, files::JOB_OUTPUT] {
            let place = if name == files::STATUS { folder.inside() } else { folder.path().to_owned() };
            let _ = fs::remove_file(place.join(name));
            nix::unistd::mkfifo(&place.join(name), nix::sys::stat::Mode::S_IRWXU).expect("pipe");
        }
        assert!(matches!(folder.record(), Err(RecordError::Damaged { .. })));
        assert!(folder.last_word().is_err());
        assert_eq!(folder.output_tail(10), "");
        // Its folder's name leads elsewhere: that is no word of this pod's.
        fs::rename(folder.path(), dir.path().join("v")).expect("rename");
        fs::write(folder.path(), "").expect("write");
        assert!(folder.record().is_err());
        fs::write(dir.path().join("pods"), "").expect("write");
        assert!(all(&dir.path().join("pods")).is_err());
    }
}
