//! `hpk shell`: a shell, or a command, in which kubectl speaks to this cluster.

use crate::home;
use anyhow::{Context, Result, bail};
use clap::Args;
use hpk_layout::Home;
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// `hpk shell`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  hpk shell                       your shell with KUBECONFIG set; leave it by exit
  hpk shell -- kubectl get nodes  one command
  hpk shell -- helm list -A")]
pub(crate) struct Shell {
    /// A command and its arguments [default: your shell]
    #[arg(last = true)]
    command: Vec<OsString>,
}

/// Where bash is told its prompt: it reads its own start file after the environment.
const BASH: &str = "[ ! -r ~/.bashrc ] || . ~/.bashrc\nPS1=\"(hpk) $PS1\"\n";

/// `hpk shell`.
pub(crate) fn run(args: Shell) -> Result<ExitCode> {
    let home = home::find()?;
    let kubeconfig = home.kubeconfig();
    if !kubeconfig.exists() {
        bail!("{} is not there: run hpk up first", kubeconfig.display());
    }
    let own = std::env::current_exe()?;
    let path = path(own.parent(), std::env::var_os("PATH").as_deref())?;
    let mut words = args.command.into_iter();
    let mut command = match words.next() {
        Some(program) => Command::new(program),
        None => shell(&home)?,
    };
    command.args(words).env("KUBECONFIG", &kubeconfig).env("PATH", path);
    let name = command.get_program().to_os_string();
    Err(command.exec()).with_context(|| PathBuf::from(name).display().to_string())
}

fn shell(home: &Home) -> Result<Command> {
    let shell = std::env::var_os("SHELL").filter(|s| !s.is_empty()).unwrap_or_else(|| "/bin/sh".into());
    let mut command = Command::new(&shell);
    if Path::new(&shell).file_name() == Some(OsStr::new("bash")) {
        let file = home.shell();
        hpk_layout::replace_soon(&file, BASH.as_bytes(), 0o600).with_context(|| file.display().to_string())?;
        command.arg("--rcfile").arg(file);
    }
    Ok(command)
}

/// The folder of hpk and kubectl comes first, unless it is among the others already.
fn path(own: Option<&Path>, others: Option<&OsStr>) -> Result<OsString> {
    let others: Vec<PathBuf> = others.iter().flat_map(|others| std::env::split_paths(others)).collect();
    let own = own.filter(|own| !others.iter().any(|other| other == own)).map(Path::to_owned);
    Ok(std::env::join_paths(own.into_iter().chain(others))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hpks_own_folder_is_found() {
        let of = |own: &str, others: Option<&str>| path(Some(Path::new(own)), others.map(OsStr::new)).unwrap();
        assert_eq!(of("/h/bin", Some("/usr/bin:/bin")), "/h/bin:/usr/bin:/bin");
        assert_eq!(of("/bin", Some("/usr/bin:/bin")), "/usr/bin:/bin");
        assert_eq!(of("/h/bin", None), "/h/bin");
    }
}
