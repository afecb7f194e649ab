//! Files of variables (`env.valueFrom.fileKeyRef`).
//!
//! The grammar is upstream's (pkg/kubelet/util/env): lines of `NAME='value'`. A value stands in single quotes, is taken
//! as it is, and may go over several lines. A comment may follow it. Lines that are blank or begin with `#` are left out.
//! `NAME=` with a blank after it gives an empty value, as in a shell.

use std::fmt;

const BLANKS: [char; 2] = [' ', '\t'];

/// What is wrong with a file of variables, and in which line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EnvFileError {
    /// Counted from 1.
    pub line: u32,
    pub fault: Fault,
}

/// What is wrong with a line of a file of variables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    NoEquals,
    NoName,
    BlankBeforeEquals,
    NotQuoted,
    NotClosed,
    AfterQuote,
}

impl fmt::Display for EnvFileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match self.fault {
            Fault::NoEquals => "'=' is missing",
            Fault::NoName => "the name before '=' is missing",
            Fault::BlankBeforeEquals => "a blank stands before '='",
            Fault::NotQuoted => "the value is not in single quotes",
            Fault::NotClosed => "the value has no closing quote",
            Fault::AfterQuote => "something follows the closing quote",
        };
        write!(f, "line {}: {words}", self.line)
    }
}

impl std::error::Error for EnvFileError {}

/// The value of `key`; None: the file does not set it, or sets it to nothing.
///
/// What follows the first line that sets `key` is not looked at.
///
/// # Errors
/// The file does not follow the grammar.
pub fn value(text: &str, key: &str) -> Result<Option<String>, EnvFileError> {
    let mut lines = text.lines().zip(1..);
    while let Some((line, number)) = lines.next() {
        let line = line.trim_start_matches(BLANKS);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, rest) = line.split_once('=').ok_or(EnvFileError { line: number, fault: Fault::NoEquals })?;
        if name.is_empty() {
            return Err(EnvFileError { line: number, fault: Fault::NoName });
        }
        if name.ends_with(BLANKS) {
            return Err(EnvFileError { line: number, fault: Fault::BlankBeforeEquals });
        }
        let found = if rest.starts_with(BLANKS) { String::new() } else { quoted(rest, number, &mut lines)? };
        if name == key {
            return Ok(Some(found).filter(|value| !value.is_empty()));
        }
    }
    Ok(None)
}

/// The value whose first line ends with `rest`.
fn quoted<'a>(
    rest: &'a str,
    first: u32,
    lines: &mut impl Iterator<Item = (&'a str, u32)>,
) -> Result<String, EnvFileError> {
    let mut rest = rest.strip_prefix('\'').ok_or(EnvFileError { line: first, fault: Fault::NotQuoted })?;
    let mut number = first;
    let mut value = String::new();
    loop {
        if let Some((last, after)) = rest.split_once('\'') {
            value.push_str(last);
            let after = after.trim_start_matches(BLANKS);
            return match after.is_empty() || after.starts_with('#') {
                true => Ok(value),
                false => Err(EnvFileError { line: number, fault: Fault::AfterQuote }),
            };
        }
        value.push_str(rest);
        value.push('\n');
        (rest, number) = lines.next().ok_or(EnvFileError { line: first, fault: Fault::NotClosed })?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_as_upstream_reads_them() {
        let cases: [(&str, &str, Option<&str>); 16] = [
            ("A='1'\nB='2'\n", "B", Some("2")),
            ("   A='1'\n\t\tB='2'", "B", Some("2")),
            ("# note\n\n  # note\nA='1'", "A", Some("1")),
            ("A='1' # note", "A", Some("1")),
            ("A='1#2'", "A", Some("1#2")),
            ("A='$B \\n \"x\"'", "A", Some("$B \\n \"x\"")),
            ("A='one\ntwo\n'\nB='3'", "A", Some("one\ntwo\n")),
            ("A='one\n# two\nB='\nB='3'", "B", Some("3")),
            ("A='1'\nA='2'", "A", Some("1")),
            ("A='1'", "B", None),
            ("A=''", "A", None),
            ("A= '1'\nB='2'", "A", None),
            ("A= x\nB='2'", "B", Some("2")),
            ("A='1'\nnonsense", "A", Some("1")),
            ("A='1'\r\nB='2'", "B", Some("2")),
            ("", "A", None),
        ];
        for (text, key, expected) in cases {
            assert_eq!(value(text, key), Ok(expected.map(str::to_owned)), "{key} of {text:?}");
        }
    }

    #[test]
    fn mistakes_name_their_line() {
        for (text, says) in [
            ("nonsense\nA='1'", "line 1: '=' is missing"),
            ("\n='1'", "line 2: the name before '=' is missing"),
            ("B = '1'\nA='1'", "line 1: a blank stands before '='"),
            ("B=1\nA='1'", "line 1: the value is not in single quotes"),
            ("B=\"1\"", "line 1: the value is not in single quotes"),
            ("B='1'x\nA='1'", "line 1: something follows the closing quote"),
            ("B='1\n2'x", "line 2: something follows the closing quote"),
            ("C='0'\nB='1\n2\n", "line 2: the value has no closing quote"),
        ] {
            assert_eq!(value(text, "A").map_err(|e| e.to_string()), Err(says.to_owned()), "{text:?}");
        }
    }
}
