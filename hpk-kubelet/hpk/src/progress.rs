//! Progress for people: a spinner on a terminal, plain lines with elapsed seconds elsewhere. Writes to
//! standard error only; results are not its business.
#![allow(clippy::print_stderr, reason = "it prints for who calls it, and ends then")]

use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// One command's progress.
#[derive(Debug)]
pub(crate) struct Progress {
    begin: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Begins now.
    #[must_use]
    pub(crate) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed:>3} {wide_msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self { begin: Instant::now(), bar }
    }

    /// Something is done: a line that stays.
    pub(crate) fn done(&self, message: &str) {
        let line = format!("[{:>5.1} s] {message}", self.begin.elapsed().as_secs_f64());
        match &self.bar {
            Some(bar) => bar.println(line),
            None => eprintln!("{line}"),
        }
    }

    /// A new phase begins: on a terminal what is being waited for, elsewhere a line, if there was nothing to read for longer
    /// than `silent`.
    pub(crate) fn phase(&self, message: String, silent: Duration) {
        if self.bar.is_none() && self.begin.elapsed() > silent {
            self.done(&message);
        }
        self.waiting(message);
    }

    /// What is being waited for: shown on a terminal only.
    pub(crate) fn waiting(&self, message: String) {
        if let Some(bar) = &self.bar {
            bar.set_message(message);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
