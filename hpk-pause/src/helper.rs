//! A thread for work that may block: making the sandbox, measuring and removing trees of files.
//!
//! It is made before the first container, because later there may be no thread to be had: a fork bomb in the pod, or
//! the user's other jobs on the node, can take every process that the user may have, and PID 1 must live on. One piece
//! of work after the other, in the order of asking; nobody waits for it.

use std::io;
use std::sync::mpsc::{Sender, channel};

type Work = Box<dyn FnOnce() + Send>;

/// The way to the thread. It ends with its last owner.
#[derive(Clone, Debug)]
pub(crate) struct Helper {
    work: Sender<Work>,
}

impl Helper {
    /// Starts the thread, `hpk-helper`.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(crate) fn start() -> io::Result<Self> {
        let (work, theirs) = channel::<Work>();
        let builder = std::thread::Builder::new().name("hpk-helper".to_owned()).stack_size(512 << 10);
        builder.spawn(move || theirs.into_iter().for_each(|work| work()))?;
        Ok(Self { work })
    }

    /// Leaves a piece of work.
    pub(crate) fn run(&self, work: impl FnOnce() + Send + 'static) {
        // The thread lives as long as anybody can ask.
        let _ = self.work.send(Box::new(work));
    }
}
