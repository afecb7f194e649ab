//! `status.json`: the supervisor's last word, written by a thread of its own.
//!
//! The pod's folder is on a shared file system that may hang for minutes, so the event loop only leaves the newest
//! state here. The thread writes the latest one; states in between are skipped. The last one is on disk before
//! the job ends.

use hpk_api::state::PodState;
use std::io;
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
pub struct StatusWriter {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl StatusWriter {
    /// Starts the thread, `hpk-status`.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(path: PathBuf) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let builder = std::thread::Builder::new().name("hpk-status".to_owned()).stack_size(128 << 10);
        let thread = builder.spawn(move || write_all(&theirs, &path))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Leaves a newer state. Never blocks on the file system.
    pub fn put(&self, state: Arc<PodState>) {
        self.shared.lock().next = Some(state);
        self.shared.wake.notify_all();
    }

    /// Waits until the last state is synced, within reason. True when it is.
    #[must_use]
    pub fn close(mut self) -> bool {
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

fn write_all(shared: &Shared, path: &Path) {
    let mut told = false;
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
        if let Err(error) = write(path, &state, sync) {
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
pub fn write(path: &Path, state: &PodState, sync: bool) -> io::Result<()> {
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
