//! The one way in which long-lived programs write to their standard error.
//!
//! `eprintln!` ends its thread when the line cannot be written. Standard error of a daemon is a file on the user's home,
//! and a full home is no reason to end: what cannot be written is lost, and the work goes on.

use std::fmt::Arguments;
use std::io::Write;

/// Writes one line to standard error, in one piece; nothing happens when it cannot be written. Use [`say!`](crate::say!).
pub fn line(text: Arguments<'_>) {
    let _ = std::io::stderr().write_all(format!("{text}\n").as_bytes());
}

/// As `eprintln!`, for a program that must not end because its log is full.
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => { $crate::say::line(format_args!($($text)*)) };
}
