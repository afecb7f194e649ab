//! sbatch flags that a user passes through by annotation.
//!
//! The text is split as a shell splits words (quotes and backslashes, no expansion) and checked: a flag that
//! would break how HPK finds or runs the job is refused by name. Everything else is sbatch's to judge.

use std::collections::BTreeMap;
use thiserror::Error;

/// Annotation for flags of the pod's job.
pub const ANNOTATION: &str = "slurm-job.hpk.io/flags";
/// The older key of the same meaning; [`ANNOTATION`] comes after it and so wins.
pub const OLD_ANNOTATION: &str = "slurm.hpk.io/flags";

/// Annotation for flags of srun for MPI steps, which there are not yet: it is announced.
pub const MPI_ANNOTATION: &str = "slurm-job.hpk.io/mpi-flags";

/// A bad annotation.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FlagsError {
    /// Quotes or backslash at the end.
    #[error("annotation {annotation}: {problem} in {text:?}")]
    Syntax {
        /// Annotation key.
        annotation: &'static str,
        /// What is wrong.
        problem: &'static str,
        /// The annotation's value.
        text: String,
    },
    /// A word that is no flag.
    #[error("annotation {annotation}: {word:?} is not an sbatch flag; write flags as --name=value")]
    NotAFlag {
        /// Annotation key.
        annotation: &'static str,
        /// The word.
        word: String,
    },
    /// A flag that HPK needs for itself.
    #[error("annotation {annotation}: {flag} cannot be set by the pod, HPK needs it itself; remove it")]
    Reserved {
        /// Annotation key.
        annotation: &'static str,
        /// The flag.
        flag: String,
    },
}

/// Flags that identify, redirect or replace the job, or make sbatch answer differently.
const RESERVED_LONG: &[&str] = &[
    "array",
    "chdir",
    "clusters",
    "comment",
    "error",
    "export",
    "export-file",
    "get-user-env",
    "gid",
    "help",
    "ignore-pbs",
    "input",
    "job-name",
    "open-mode",
    "output",
    "parsable",
    "quiet",
    "test-only",
    "uid",
    "usage",
    "verbose",
    "version",
    "wait",
    "wrap",
    "kill-on-invalid-dep-none",
    "signal",
];
const RESERVED_SHORT: &[char] = &['a', 'D', 'e', 'h', 'H', 'i', 'J', 'M', 'o', 'Q', 'v', 'V', 'W'];
/// Short flags of sbatch that take no value.
const SHORT_WITHOUT_VALUE: &[char] = &['I', 'k', 'O', 's'];

/// The flags of a pod's annotations, in order, each word one argument of sbatch.
///
/// # Errors
/// The first word that cannot be passed through.
pub fn from_annotations(annotations: Option<&BTreeMap<String, String>>) -> Result<Vec<String>, FlagsError> {
    let mut all = Vec::new();
    for key in [OLD_ANNOTATION, ANNOTATION] {
        if let Some(text) = annotations.and_then(|a| a.get(key)) {
            let words =
                split(text).map_err(|problem| FlagsError::Syntax { annotation: key, problem, text: text.clone() })?;
            check(key, &words)?;
            all.extend(words);
        }
    }
    Ok(all)
}

fn check(annotation: &'static str, words: &[String]) -> Result<(), FlagsError> {
    let mut value_may_follow = false;
    for word in words {
        if let Some(long) = word.strip_prefix("--") {
            let name = long.split('=').next().unwrap_or_default();
            // getopt_long takes any unambiguous beginning of a name: refuse those of reserved ones too.
            let reserved = RESERVED_LONG
                .iter()
                .any(|r| *r == name || (name.len() >= 3 && r.starts_with(name) && !is_other_flag(name)));
            if name.is_empty() || reserved {
                return Err(FlagsError::Reserved { annotation, flag: format!("--{name}") });
            }
            value_may_follow = !long.contains('=');
        } else if let Some(short) = word.strip_prefix('-').and_then(|w| w.chars().next()) {
            if RESERVED_SHORT.contains(&short) {
                return Err(FlagsError::Reserved { annotation, flag: format!("-{short}") });
            }
            value_may_follow = word.len() == 2 && !SHORT_WITHOUT_VALUE.contains(&short);
        } else if value_may_follow {
            value_may_follow = false;
        } else {
            return Err(FlagsError::NotAFlag { annotation, word: word.clone() });
        }
    }
    Ok(())
}

/// Real flags of sbatch that are the beginning of a reserved one.
fn is_other_flag(name: &str) -> bool {
    matches!(name, "cluster-constraint" | "export")
}

/// Splits like a POSIX shell, without any expansion.
fn split(text: &str) -> Result<Vec<String>, &'static str> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\0' => return Err("a NUL character"),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next().ok_or("a single quote that is not closed")? {
                        '\'' => break,
                        c => word.push(c),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next().ok_or("a double quote that is not closed")? {
                        '"' => break,
                        '\\' => match chars.next().ok_or("a double quote that is not closed")? {
                            c @ ('"' | '\\' | '$' | '`') => word.push(c),
                            c => word.extend(['\\', c]),
                        },
                        c => word.push(c),
                    }
                }
            }
            '\\' => word.get_or_insert_default().push(chars.next().ok_or("a backslash at the end")?),
            c if c.is_whitespace() => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Vec<String>, FlagsError> {
        from_annotations(Some(&[(ANNOTATION.to_owned(), text.to_owned())].into()))
    }

    #[test]
    fn words() {
        for (text, words) in [
            ("", vec![]),
            ("  --partition=debug  ", vec!["--partition=debug"]),
            ("-p debug --qos high", vec!["-p", "debug", "--qos", "high"]),
            ("--constraint='a&b'", vec!["--constraint=a&b"]),
            ("--constraint=\"[a|b]*2 \\\"\"", vec!["--constraint=[a|b]*2 \""]),
            ("--x=a\\ b\n--y=$HOME", vec!["--x=a b", "--y=$HOME"]),
            ("--exclusive --nodes=2", vec!["--exclusive", "--nodes=2"]),
        ] {
            assert_eq!(parse(text).expect("flags"), words, "{text}");
        }
    }

    #[test]
    fn refusals() {
        for (text, part) in [
            ("--comment=x", "--comment cannot be set"),
            ("--job-name=x", "--job-name cannot be set"),
            ("--job-n=x", "--job-n cannot be set"),
            ("-J x", "-J cannot be set"),
            ("--wrap=true", "--wrap cannot be set"),
            ("--array=1-3", "--array cannot be set"),
            ("--x='y", "single quote"),
            ("--x=\"y", "double quote"),
            ("x", "\"x\" is not an sbatch flag"),
            ("--mem=1 /bin/evil", "\"/bin/evil\" is not an sbatch flag"),
            ("--", "-- cannot be set"),
        ] {
            let error = parse(text).expect_err(text).to_string();
            assert!(error.contains(part) && error.contains(ANNOTATION), "{error}");
        }
    }

    #[test]
    fn both_keys_in_order() {
        let both = [(ANNOTATION.to_owned(), "-p b".to_owned()), (OLD_ANNOTATION.to_owned(), "-p a".to_owned())].into();
        assert_eq!(from_annotations(Some(&both)).expect("flags"), ["-p", "a", "-p", "b"]);
    }

    proptest! {
        #[test]
        fn total(text in "[-a-z='\"\\\\ ]{0,30}") {
            let _ = parse(&text);
        }

        #[test]
        fn quoting_is_undone(words in proptest::collection::vec("[^'\0]{0,8}", 0..5)) {
            let text: Vec<String> = words.iter().map(|w| format!("'{w}'")).collect();
            prop_assert_eq!(split(&text.join(" ")).expect("words"), words);
        }
    }
}
