//! Files of variables (`env.valueFrom.fileKeyRef`).
//!
//! The grammar is upstream's (pkg/kubelet/util/env): lines of `NAME='value'`. A value stands in single quotes, is taken
//! as it is, and may go over several lines. A comment may follow it. Lines that are blank or begin with `#` are left out.
//! `NAME=` with a blank after it gives an empty value, as in a shell.

const BLANKS: [char; 2] = [' ', '\t'];

/// The value of `key`; None: the file does not set it, or sets it to nothing.
///
/// What follows the first line that sets `key` is not looked at.
///
/// # Errors
/// What is wrong, with the number of the line.
pub fn value(text: &str, key: &str) -> Result<Option<String>, String> {
    let mut lines = text.lines().zip(1..);
    while let Some((line, number)) = lines.next() {
        let line = line.trim_start_matches(BLANKS);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, rest) = line.split_once('=').ok_or_else(|| format!("line {number}: '=' is missing"))?;
        if name.is_empty() {
            return Err(format!("line {number}: the name before '=' is missing"));
        }
        if name.ends_with(BLANKS) {
            return Err(format!("line {number}: a blank stands before '='"));
        }
        let found = if rest.starts_with(BLANKS) { String::new() } else { quoted(rest, number, &mut lines)? };
        if name == key {
            return Ok(Some(found).filter(|value| !value.is_empty()));
        }
    }
    Ok(None)
}

/// The value whose first line ends with `rest`.
fn quoted<'a>(rest: &'a str, first: u32, lines: &mut impl Iterator<Item = (&'a str, u32)>) -> Result<String, String> {
    let mut rest = rest.strip_prefix('\'').ok_or_else(|| format!("line {first}: the value is not in single quotes"))?;
    let mut number = first;
    let mut value = String::new();
    loop {
        if let Some((last, after)) = rest.split_once('\'') {
            value.push_str(last);
            let after = after.trim_start_matches(BLANKS);
            return match after.is_empty() || after.starts_with('#') {
                true => Ok(value),
                false => Err(format!("line {number}: something follows the closing quote")),
            };
        }
        value.push_str(rest);
        value.push('\n');
        (rest, number) = lines.next().ok_or_else(|| format!("line {first}: the value has no closing quote"))?;
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
            assert_eq!(value(text, "A"), Err(says.to_owned()), "{text:?}");
        }
    }
}
