//! `status.json`: the supervisor's last word, written by a thread of its own.
//!
//! The pod's folder is on a shared file system that may hang for minutes, so the event loop only leaves the newest
//! state here. The thread writes the latest one; states in between are skipped. The last one is on disk before
//! the job ends.
//!
//! A file system may be full by then. So a file of some blocks is kept from the start: the last state goes into these
//! blocks, and the file takes the state's name ([`Reserve`]).

use hpk_api::state::PodState;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Time until a failed write is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How long the end of the job waits for a file system that does not take the last state.
const LAST_LIMIT: Duration = Duration::from_secs(20);

#[derive(Debug, Default)]
struct Slot {
    /// Not yet written.
    next: Option<Arc<PodState>>,
    /// No further states will come.
    closing: bool,
    /// The last state is on disk, or was given up.
    done: bool,
}

#[derive(Debug, Default)]
struct Shared {
    slot: Mutex<Slot>,
    wake: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The way to the writing thread.
#[derive(Debug)]
pub(crate) struct StatusWriter {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl StatusWriter {
    /// Starts the thread, `hpk-status`.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(crate) fn start(path: PathBuf) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let builder = std::thread::Builder::new().name("hpk-status".to_owned()).stack_size(128 << 10);
        let thread = builder.spawn(move || write_all(&theirs, &path))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Leaves a newer state. Never blocks on the file system.
    pub(crate) fn put(&self, state: Arc<PodState>) {
        self.shared.lock().next = Some(state);
        self.shared.wake.notify_all();
    }

    /// Waits until the last state is synced, within reason. True when it is.
    #[must_use]
    pub(crate) fn close(mut self) -> bool {
        let mut slot = self.shared.lock();
        slot.closing = true;
        self.shared.wake.notify_all();
        let waited = self.shared.wake.wait_timeout_while(slot, LAST_LIMIT, |slot| !slot.done);
        let (slot, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let done = slot.done;
        drop(slot);
        if done && let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        done
    }
}

/// Bytes that are kept for the last state: that of a pod of some twenty containers.
const KEPT: usize = 32 << 10;

/// A file whose blocks are there already when no others are to be had.
struct Reserve(PathBuf);

impl Reserve {
    /// Beside the state's own file. That it cannot be had is no harm now.
    fn make(path: &Path) -> Self {
        let own = Self(path.with_extension("reserve"));
        // No zeros: a file system may leave those out.
        let _ = hpk_layout::replace_soon(&own.0, &[b' '; KEPT], 0o600);
        own
    }

    /// Puts the content into the place of `path`.
    fn spend(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        let mut file = std::fs::OpenOptions::new().write(true).open(&self.0)?;
        // What is left of the blanks behind it is no harm to JSON, so nothing is shortened before it is whole.
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&self.0, path)
    }
}

impl Drop for Reserve {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn write_all(shared: &Shared, path: &Path) {
    let mut told = false;
    let mut reserve = None;
    loop {
        let mut slot = shared.lock();
        while slot.next.is_none() && !slot.closing {
            slot = shared.wake.wait(slot).unwrap_or_else(PoisonError::into_inner);
        }
        let closing = slot.closing;
        let Some(state) = slot.next.take() else {
            slot.done = true;
            shared.wake.notify_all();
            return;
        };
        drop(slot);
        // The state before the last is only news; the last one must survive the node.
        let sync = closing || state.finished;
        let mut written = write(path, &state, sync);
        if written.is_ok() && !sync && reserve.is_none() {
            reserve = Some(Reserve::make(path));
        }
        if let (Err(error), Some(reserve), true) = (&written, &reserve, sync)
            && is_full(error)
        {
            written = serde_json::to_vec(&*state).map_err(io::Error::from).and_then(|text| reserve.spend(path, &text));
        }
        if let Err(error) = written {
            if !told {
                hpk_api::say!("hpk-pause: {}: {error}; trying again", path.display());
                told = true;
            }
            let mut slot = shared.lock();
            slot.next.get_or_insert(state);
            let _ = shared.wake.wait_timeout(slot, RETRY);
        }
    }
}

/// Replaces the file by this state.
///
/// # Errors
/// As the file system says.
pub(crate) fn write(path: &Path, state: &PodState, sync: bool) -> io::Result<()> {
    let content = serde_json::to_vec(state)?;
    if sync { hpk_layout::replace(path, &content, 0o600) } else { hpk_layout::replace_soon(path, &content, 0o600) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_state_is_on_disk_after_close() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("status.json");
        let writer = StatusWriter::start(path.clone()).unwrap();
        for sequence in 1..=1000 {
            writer.put(Arc::new(PodState { sequence, ..PodState::default() }));
        }
        assert!(writer.close());
        let state: PodState = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(state.sequence, 1000);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
    }

    /// On a small file system of its own, which this test program mounts when it runs again in a namespace.
    #[test]
    fn a_full_disk_takes_the_last_state() {
        const FOLDER: &str = "HPK_TEST_FULL_DISK";
        let Some(folder) = std::env::var_os(FOLDER) else {
            let dir = tempfile::tempdir().unwrap();
            let this = "status::tests::a_full_disk_takes_the_last_state";
            let script =
                "mount -t tmpfs -o size=256k none \"$HPK_TEST_FULL_DISK\" && exec \"$0\" --exact \"$1\" --nocapture";
            let ended = std::process::Command::new("unshare")
                .args(["-r", "-m", "sh", "-c", script])
                .arg(std::env::current_exe().unwrap())
                .arg(this)
                .env(FOLDER, dir.path())
                .output()
                .unwrap();
            assert!(ended.status.success(), "{ended:?}");
            return;
        };
        let folder = PathBuf::from(folder);
        let path = folder.join("status.json");
        let writer = StatusWriter::start(path.clone()).unwrap();
        let state = |sequence, finished| Arc::new(PodState { sequence, finished, ..PodState::default() });
        writer.put(state(1, false));
        while !folder.join("status.reserve").exists() {
            std::thread::yield_now();
        }
        // Whatever is there is taken.
        let mut rest = std::fs::File::create(folder.join("rest")).unwrap();
        while rest.write(&[1; 4096]).is_ok_and(|n| n > 0) {}
        assert!(write(&path, &state(2, false), false).is_err(), "it is full");
        writer.put(state(3, true));
        assert!(writer.close());
        let last: PodState = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert!(last.finished && last.sequence == 3);
        assert!(!folder.join("status.reserve").exists());
    }

    #[test]
    fn a_folder_that_comes_late_is_written_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("late/status.json");
        let writer = StatusWriter::start(path.clone()).unwrap();
        writer.put(Arc::new(PodState { sequence: 7, ..PodState::default() }));
        std::thread::sleep(Duration::from_millis(50));
        std::fs::create_dir(dir.path().join("late")).unwrap();
        assert!(writer.close());
        assert!(path.exists());
    }
}
