//! The one way in which long-lived programs write to their standard error.
//!
//! `eprintln!` ends its thread when the line cannot be written. Standard error of a daemon is a file on the user's home,
//! and a full home is no reason to end: what cannot be written is lost, and the work goes on.

use std::fmt::{Arguments, Display};
use std::io::Write;

/// Writes one line to standard error, in one piece; nothing happens when it cannot be written. Use [`say!`](crate::say!).
pub fn line(text: Arguments<'_>) {
    let _ = std::io::stderr().write_all(format!("{text}\n").as_bytes());
}

/// An error and its causes in one line. A cause that the text before it names already is left out: many errors show theirs.
pub fn once<E: Display>(chain: impl IntoIterator<Item = E>) -> String {
    let mut said = String::new();
    for cause in chain {
        let text = cause.to_string();
        if said.is_empty() {
            said = text;
        } else if !said.contains(&text) {
            said.push_str(": ");
            said.push_str(&text);
        }
    }
    said
}

/// As `eprintln!`, for a program that must not end because its log is full.
#[macro_export]
macro_rules! say {
    ($($text:tt)*) => { $crate::say::line(format_args!($($text)*)) };
}

#[cfg(test)]
mod tests {
    use super::once;

    #[test]
    fn a_cause_is_said_once() {
        assert_eq!(once(["/x: not found", "not found"]), "/x: not found");
        assert_eq!(once(["reading", "/x: not found", "not found"]), "reading: /x: not found");
        assert_eq!(once(["reading", "damaged"]), "reading: damaged");
    }
}
