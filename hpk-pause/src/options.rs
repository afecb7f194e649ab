//! The command line. Pure; by hand, because hpk-pause is to stay small.

use crate::paths::Paths;
use std::path::PathBuf;

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Supervise a pod.
    Run(Box<Run>),
    /// Talk to a running supervisor: the arguments after `ctl`.
    Ctl(Vec<String>),
    /// Become a container's command where Apptainer has made its root file system: for the nested launcher alone.
    Inner,
    /// Be a container's keeper: for the launchers alone.
    Keep,
    /// Make a container for the ranks of an MPI step on one of its further nodes: for hpk-netns alone.
    Ranks(Box<Ranks>),
    /// Print the version.
    Version,
    /// Print the usage.
    Help,
}

/// How to supervise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Run {
    pub paths: Paths,
    /// Do not insist on being PID 1 (tests): orphans come by PR_SET_CHILD_SUBREAPER.
    pub allow_not_init: bool,
}

/// See [`Command::Ranks`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranks {
    pub paths: Paths,
    /// Which instance of the step's container.
    pub instance: u32,
    /// Where to write the keeper's number.
    pub record: PathBuf,
}

/// A command line that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UsageError {
    /// Unknown flag.
    #[error("unknown argument {0:?}; hpk-pause --help lists all")]
    Unknown(String),
    /// Flag without its value.
    #[error("{0} needs a value")]
    NoValue(String),
    /// Nothing to do.
    #[error("--plan FILE is missing")]
    NoPlan,
}

/// For `--help`.
pub const USAGE: &str = "\
hpk-pause: the supervisor of one pod, PID 1 of its parent container

usage: hpk-pause --plan FILE [--pod-dir DIR] [--images DIR] [--mounted DIR] [--scratch DIR] [--host DIR] [--run DIR] [--allow-not-init]
       hpk-pause ctl [--socket FILE] status|stats|logs|exec|stop …
       hpk-pause --version";

/// Parses the arguments after the program's name.
///
/// # Errors
/// [`UsageError`] names the argument.
pub fn parse(args: impl IntoIterator<Item = String>) -> Result<Command, UsageError> {
    let mut args = args.into_iter();
    let mut run = Run::default();
    let mut plan = None;
    let mut ranks = None;
    while let Some(arg) = args.next() {
        let mut folder =
            |name: &str| args.next().map(PathBuf::from).ok_or_else(|| UsageError::NoValue(name.to_owned()));
        match arg.as_str() {
            "ctl" => return Ok(Command::Ctl(args.collect())),
            "inner" => return Ok(Command::Inner),
            hpk_sys::launch::KEEP => return Ok(Command::Keep),
            "ranks" => ranks = Some(Ranks::default()),
            "--instance" => {
                let value = args.next().ok_or_else(|| UsageError::NoValue(arg.clone()))?;
                let number = value.parse().map_err(|_| UsageError::Unknown(value))?;
                ranks.get_or_insert_default().instance = number;
            }
            "--record" => ranks.get_or_insert_default().record = folder("--record")?,
            "--version" | "-V" => return Ok(Command::Version),
            "--help" | "-h" => return Ok(Command::Help),
            "--allow-not-init" => run.allow_not_init = true,
            "--plan" => plan = Some(folder("--plan")?),
            "--pod-dir" => run.paths.pod = folder("--pod-dir")?,
            "--images" => run.paths.images = folder("--images")?,
            "--mounted" => run.paths.mounted = folder("--mounted")?,
            "--scratch" => run.paths.scratch = folder("--scratch")?,
            "--host" => run.paths.host = folder("--host")?,
            "--run" => run.paths.run = folder("--run")?,
            other => return Err(UsageError::Unknown(other.to_owned())),
        }
    }
    run.paths.plan = plan.ok_or(UsageError::NoPlan)?;
    if let Some(ranks) = ranks {
        return Ok(Command::Ranks(Box::new(Ranks { paths: run.paths, ..ranks })));
    }
    Ok(Command::Run(Box::new(run)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Result<Command, UsageError> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn command_lines() {
        let Ok(Command::Run(run)) = of("--plan /hpk/pod/plan.json") else { panic!() };
        assert_eq!(*run, Run::default());
        let Ok(Command::Run(run)) = of("--plan p --run r --allow-not-init") else { panic!() };
        assert_eq!((run.paths.socket(), run.allow_not_init), ("r/supervisor.sock".into(), true));
        assert_eq!(of("ctl status --plan"), Ok(Command::Ctl(vec!["status".into(), "--plan".into()])));
        assert_eq!(of("--version"), Ok(Command::Version));
        assert_eq!(of("inner"), Ok(Command::Inner));
        assert_eq!(of("keep"), Ok(Command::Keep));
        let Ok(Command::Ranks(ranks)) = of("ranks --plan p --instance 3 --record k --scratch s") else { panic!() };
        assert_eq!((ranks.instance, ranks.record, ranks.paths.scratch), (3, "k".into(), "s".into()));
        assert_eq!(of("ranks --plan p --instance x"), Err(UsageError::Unknown("x".into())));
        assert_eq!(of(""), Err(UsageError::NoPlan));
        assert_eq!(of("--plan"), Err(UsageError::NoValue("--plan".into())));
        assert_eq!(of("--plam x"), Err(UsageError::Unknown("--plam".into())));
    }
}
