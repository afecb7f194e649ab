//! When rotated logs are compressed, and the thread that does it.

use crate::file::LogFile;
use crate::rotate;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Instant;

/// Logs whose rotated files are to be compressed: folder, and number of the instance.
pub(super) type Logs = Vec<(PathBuf, u32)>;

pub(super) fn later(queue: &mut Option<(Instant, Logs)>, log: &LogFile, at: Instant) {
    let entry = (log.dir().to_owned(), log.restart_count());
    match queue {
        // The later rotation decides: a log that rotates all the time is compressed when it comes to rest,
        // or not at all when its files are pruned before.
        Some((due, logs)) => {
            *due = at;
            if !logs.contains(&entry) {
                logs.push(entry);
            }
        }
        None => *queue = Some((at, vec![entry])),
    }
}

/// Compresses in a thread of its own, which ends when done: the pump must not wait, and memory is only held while
/// there is work.
pub(super) fn now(logs: Logs) -> Option<JoinHandle<()>> {
    let work = move || {
        for (dir, restart_count) in logs {
            // What cannot be compressed stays plain and is tried again after the next rotation.
            let _ = rotate::compress(&dir, restart_count);
        }
    };
    std::thread::Builder::new().name("hpk-log-gzip".to_owned()).stack_size(256 << 10).spawn(work).ok()
}
