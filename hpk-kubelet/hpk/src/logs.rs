//! `hpk logs`: what the control plane's programs and hpk-kubelet have logged.
#![allow(clippy::print_stdout, reason = "it prints for who calls it, and ends then")]

use crate::home;
use anyhow::{Context, Result, bail};
use clap::Args;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

/// `hpk logs`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hpk logs                        which logs there are
  hpk logs kube-apiserver         its last 100 lines
  hpk logs hpk-kubelet -f         follow it
  hpk logs etcd --lines all       all of it

Containers' logs are kubectl's: kubectl logs POD.")]
pub(crate) struct Logs {
    /// A component, as hpk status names it; without one the logs are listed
    component: Option<String>,
    /// Go on with what it logs from now on, until interrupted
    #[arg(short, long, requires = "component")]
    follow: bool,
    /// How many lines from its end, or all
    #[arg(short = 'n', long, value_name = "N|all", default_value = "100", value_parser = lines)]
    lines: Lines,
}

/// How much of a log is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lines {
    Last(u64),
    All,
}

fn lines(text: &str) -> Result<Lines, String> {
    match text {
        "all" => Ok(Lines::All),
        _ => text.parse().map(Lines::Last).map_err(|_| "a number of lines, or all".to_owned()),
    }
}

/// `hpk logs`.
pub(crate) fn run(args: &Logs) -> Result<ExitCode> {
    let home = home::find()?;
    let folder = home.log();
    let names = names(&folder).with_context(|| format!("{}: nothing has run yet? hpk up", folder.display()))?;
    let Some(component) = &args.component else {
        names.iter().for_each(|name| println!("{name}"));
        return Ok(ExitCode::SUCCESS);
    };
    if !names.contains(component) {
        bail!("there is no log of {component:?}: there are {}", names.join(", "));
    }
    let file = home.log_of(component);
    // A log that is begun anew is followed too (-F).
    let mut tail = Command::new("tail");
    tail.arg("-n").arg(match args.lines {
        Lines::Last(count) => count.to_string(),
        Lines::All => "+1".to_owned(),
    });
    tail.args(args.follow.then_some("-F")).arg("--").arg(file);
    Err(tail.exec()).context("tail")
}

/// Components that have a log, sorted.
fn names(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        names.extend(name.to_str().and_then(|name| name.strip_suffix(".log")).map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_for_each_component() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["etcd.log", "coredns.log", "etcd.log.1", "notes"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(names(dir.path()).unwrap(), ["coredns", "etcd"]);
        assert!(names(&dir.path().join("none")).is_err());
    }

    #[test]
    fn lines_are_a_number_or_all() {
        assert_eq!((lines("5"), lines("all")), (Ok(Lines::Last(5)), Ok(Lines::All)));
        assert!(lines("-5").is_err() && lines("").is_err());
    }
}
