//! A run's folder, `HPK_HOME/runs/<id>`: what the kubelet remembers of it and what its first process has written.

use super::needs::Needs;
use super::queue::Size;
use hpk_api::local::{End, Process};
use hpk_layout::Home;
use hpk_layout::run::{END, LAST, PROCESS, RECORD};
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// `run.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The pod's UID.
    pub pod: String,
    /// What runs first; the pod's folder is where it is.
    pub script: PathBuf,
    /// As [`Needs::words`].
    pub asked: Vec<String>,
    /// When its turn came. None: it waits.
    #[serde(default)]
    pub started_at: Option<Timestamp>,
    /// GPUs that it was given.
    #[serde(default)]
    pub gpus: Vec<String>,
    /// The cgroup that was made for it.
    #[serde(default)]
    pub cgroup: Option<PathBuf>,
    /// When somebody cancelled it.
    #[serde(default)]
    pub cancelled_at: Option<Timestamp>,
}

impl Record {
    /// What it takes; nothing, when that cannot be read.
    #[must_use]
    pub(crate) fn size(&self) -> Size {
        Needs::parse(&self.asked).unwrap_or_default().size
    }

    /// The pod's folder.
    #[must_use]
    pub(crate) fn pod_folder(&self) -> &Path {
        self.script.parent().unwrap_or(Path::new("/"))
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Runs {
    root: PathBuf,
}

impl Runs {
    /// Below this home.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub(crate) fn open(home: &Home) -> io::Result<Self> {
        let root = home.runs();
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&root)?;
        Ok(Self { root })
    }

    /// The folder of a run.
    #[must_use]
    pub(crate) fn folder(&self, id: u64) -> PathBuf {
        self.root.join(id.to_string())
    }

    /// All that are on disk, oldest first. One whose record cannot be read has none: it was being made, or removed.
    ///
    /// # Errors
    /// It cannot be told which there are.
    pub(crate) fn all(&self) -> io::Result<Vec<(u64, Option<Record>)>> {
        let mut list = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            let Some(id) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            list.push((id, read(&self.folder(id).join(RECORD))));
        }
        list.sort_by_key(|(id, _)| *id);
        Ok(list)
    }

    /// A number that no run had.
    ///
    /// # Errors
    /// It cannot be written down.
    pub(crate) fn next_id(&self) -> io::Result<u64> {
        let last = fs::read_to_string(self.root.join(LAST)).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        let highest = self.all()?.last().map_or(0, |(id, _)| *id);
        let next = last.max(highest) + 1;
        hpk_layout::replace(&self.root.join(LAST), format!("{next}\n").as_bytes(), 0o600)?;
        Ok(next)
    }

    /// Writes a record, on disk when it returns.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn write(&self, id: u64, record: &Record) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(self.folder(id))?;
        hpk_layout::replace(&self.folder(id).join(RECORD), &serde_json::to_vec_pretty(record)?, 0o600)
    }

    /// Its first process. None: it has not come so far.
    #[must_use]
    pub(crate) fn process(&self, id: u64) -> Option<Process> {
        read(&self.folder(id).join(PROCESS))
    }

    #[must_use]
    pub(crate) fn end(&self, id: u64) -> Option<End> {
        read(&self.folder(id).join(END))
    }

    /// Writes the end of a run that has no process that could.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn write_end(&self, id: u64, end: &End) -> io::Result<()> {
        hpk_layout::replace(&self.folder(id).join(END), &serde_json::to_vec(end)?, 0o600)
    }

    /// Forgets a run.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn remove(&self, id: u64) -> io::Result<()> {
        fs::remove_dir_all(self.folder(id))
    }
}

fn read<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_never_given_again() {
        let home = tempfile::tempdir().unwrap();
        let runs = Runs::open(&Home::at(home.path())).unwrap();
        let record = Record {
            pod: "u".into(),
            script: "/h/pods/u/job.sh".into(),
            asked: vec!["cpu=5m".into()],
            started_at: None,
            gpus: vec![],
            cgroup: None,
            cancelled_at: None,
        };
        assert_eq!(record.pod_folder(), Path::new("/h/pods/u"));
        assert_eq!(record.size().milli_cpu, 5);
        assert_eq!(runs.next_id().unwrap(), 1);
        runs.write(1, &record).unwrap();
        runs.write(7, &record).unwrap();
        assert_eq!(runs.next_id().unwrap(), 8);
        runs.remove(7).unwrap();
        assert_eq!(runs.next_id().unwrap(), 9);
        fs::create_dir(runs.folder(3)).unwrap();
        let all = runs.all().unwrap();
        assert_eq!(all, [(1, Some(record)), (3, None)]);
        assert_eq!((runs.process(1), runs.end(1)), (None, None));
    }
}
