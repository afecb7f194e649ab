//! Slurm's own flags, given by annotation.
//!
//! The text is split as a shell splits words (quotes and backslashes, no expansion). Each flag must be one of a list
//! ([`table`]), by its full name or its one letter, and leaves here as one argument, `--name` or `--name=value`. So sbatch has
//! nothing to guess: it takes any unambiguous beginning of a long name, and several letters in one word.

mod split;
mod table;

use hpk_api::pod_flags::{self, PodFlags};
use std::collections::BTreeMap;
use thiserror::Error;

/// A flag that a pod may give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Flag {
    name: &'static str,
    short: Option<char>,
    value: Value,
    /// On the short list of [`PodFlags::List`].
    where_and_when: bool,
}

/// Whether a flag has a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Value {
    /// `--name`
    None,
    /// `--name=value` or `--name value`
    Needed,
    /// `--name` or `--name=value`
    Optional,
}

/// A bad annotation.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{place}: {problem}")]
pub(crate) struct FlagsError {
    /// Where the flags are written.
    place: String,
    /// What is wrong with it.
    problem: Problem,
}

#[derive(Clone, Debug, PartialEq, Eq, Error)]
enum Problem {
    #[error("{0} in {1:?}")]
    Syntax(&'static str, String),
    #[error("{0:?} is not a flag; write flags as --name=value")]
    NotAFlag(String),
    #[error("{flag} is not a flag that a pod may give; {remedy}")]
    Unknown { flag: String, remedy: String },
    #[error(
        "{0} does not say where and when a job runs, and only such flags are taken here (hpk up --pod-flags list); remove it"
    )]
    NotListed(String),
    #[error("this cluster takes no flags from pods (hpk up --pod-flags deny); remove the annotation")]
    Denied,
    #[error("{0} needs a value; write {0}=value")]
    NoValue(String),
    #[error("{0} takes no value; write {0} alone")]
    HasValue(String),
    #[error("{0} with a file name, which Slurm would read; write the names of the nodes")]
    FileName(String),
}

/// The flags of a pod's job, in order, each one argument of sbatch.
///
/// # Errors
/// The first thing in the annotations that cannot be passed on.
pub(crate) fn of_job(
    annotations: Option<&BTreeMap<String, String>>,
    policy: PodFlags,
) -> Result<Vec<String>, FlagsError> {
    let mut all = Vec::new();
    // The newer key comes after the older one and so wins.
    for annotation in [pod_flags::OLD_FLAGS, pod_flags::FLAGS] {
        all.extend(of(annotations, annotation, table::SBATCH, policy)?);
    }
    Ok(all)
}

/// The flags of a pod's priority class, as the user has set them: those that say where and when a job runs.
///
/// # Errors
/// As [`of_job`].
pub(crate) fn of_class(class: &str, text: &str) -> Result<Vec<String>, FlagsError> {
    parse(text, table::SBATCH, PodFlags::List)
        .map_err(|problem| FlagsError { place: format!("hpk up --priority-class {class}"), problem })
}

/// The flags of a pod's MPI steps, each one argument of srun.
///
/// # Errors
/// As [`of_job`].
pub(crate) fn of_step(
    annotations: Option<&BTreeMap<String, String>>,
    policy: PodFlags,
) -> Result<Vec<String>, FlagsError> {
    of(annotations, pod_flags::MPI_FLAGS, table::SRUN, policy)
}

fn of(
    annotations: Option<&BTreeMap<String, String>>,
    annotation: &'static str,
    known: &'static [Flag],
    policy: PodFlags,
) -> Result<Vec<String>, FlagsError> {
    let Some(text) = annotations.and_then(|a| a.get(annotation)) else { return Ok(Vec::new()) };
    parse(text, known, policy).map_err(|problem| FlagsError { place: format!("annotation {annotation}"), problem })
}

fn parse(text: &str, known: &'static [Flag], policy: PodFlags) -> Result<Vec<String>, Problem> {
    let words = split::words(text).map_err(|problem| Problem::Syntax(problem, text.to_owned()))?;
    if policy == PodFlags::Deny && !words.is_empty() {
        return Err(Problem::Denied);
    }
    let mut list = Vec::new();
    let mut words = words.into_iter().peekable();
    while let Some(word) = words.next() {
        let (flag, mut value) = find(&word, known)?;
        let name = format!("--{}", flag.name);
        if policy == PodFlags::List && !flag.where_and_when {
            return Err(Problem::NotListed(name));
        }
        if flag.value == Value::Needed && value.is_none() {
            // A word that looks like a flag is more likely one than a value.
            value = words.next_if(|next| !next.starts_with('-'));
        }
        match (flag.value, &value) {
            (Value::Needed, None) => return Err(Problem::NoValue(name)),
            (Value::Needed, Some(text)) if text.is_empty() => return Err(Problem::NoValue(name)),
            (Value::None, Some(_)) => return Err(Problem::HasValue(name)),
            // A node's name has no slash, and with one Slurm opens the file of that name.
            (_, Some(text)) if matches!(flag.name, "nodelist" | "exclude") && text.contains('/') => {
                return Err(Problem::FileName(name));
            }
            _ => {}
        }
        list.push(match value {
            Some(value) => format!("{name}={value}"),
            None => name,
        });
    }
    Ok(list)
}

/// The flag that a word begins, and the value that the word has for it.
fn find(word: &str, known: &'static [Flag]) -> Result<(Flag, Option<String>), Problem> {
    if let Some(long) = word.strip_prefix("--") {
        let (name, value) = match long.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (long, None),
        };
        let flag = known.iter().find(|f| f.name == name).copied();
        return flag.map(|f| (f, value)).ok_or_else(|| unknown(&format!("--{name}"), name, known));
    }
    let mut letters = word.chars();
    let (Some('-'), Some(letter)) = (letters.next(), letters.next()) else {
        return Err(Problem::NotAFlag(word.to_owned()));
    };
    let rest = letters.as_str();
    let Some(flag) = known.iter().find(|f| f.short == Some(letter)).copied() else {
        return Err(Problem::Unknown { flag: format!("-{letter}"), remedy: REMEDY.to_owned() });
    };
    match rest {
        "" => Ok((flag, None)),
        // Slurm would take the rest for further flags, or = for a part of the value.
        _ if flag.value != Value::Needed || rest.starts_with('=') => {
            Err(Problem::Unknown { flag: word.to_owned(), remedy: in_full(flag) })
        }
        _ => Ok((flag, Some(rest.to_owned()))),
    }
}

const REMEDY: &str = "remove it, or give one of those in docs/guide/pods.md by its full name";

fn in_full(flag: Flag) -> String {
    let value = if flag.value == Value::Needed { "=value" } else { "" };
    format!("write --{}{value}", flag.name)
}

fn unknown(flag: &str, name: &str, known: &'static [Flag]) -> Problem {
    let mut meant = known.iter().filter(|f| !name.is_empty() && f.name.starts_with(name));
    let remedy = match (meant.next(), meant.next()) {
        (Some(one), None) => in_full(*one),
        _ => REMEDY.to_owned(),
    };
    Problem::Unknown { flag: flag.to_owned(), remedy }
}

/// The value of the last flag of this name in a list of arguments: the one that holds.
#[must_use]
pub(crate) fn value<'a>(arguments: &'a [String], name: &str) -> Option<&'a str> {
    arguments.iter().rev().find_map(|a| a.strip_prefix("--")?.strip_prefix(name)?.strip_prefix('='))
}

/// Whether a flag of this name is in a list of arguments.
#[must_use]
pub(crate) fn has(arguments: &[String], name: &str) -> bool {
    arguments.iter().any(|a| a.strip_prefix("--").and_then(|a| a.split('=').next()) == Some(name))
}

#[cfg(test)]
mod tests;
