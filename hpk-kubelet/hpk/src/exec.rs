//! `hpk exec --rank`: kubectl exec, told by the command's first word which rank is meant.

use crate::cli::Exec;
use crate::home;
use anyhow::{Context, Result};
use hpk_api::pod_flags::{MPI_CONTAINER, MPI_FLAGS};
use hpk_api::step::SESSION_PREFIX;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

/// Becomes kubectl.
pub(crate) fn run(args: Exec) -> Result<ExitCode> {
    let kubectl = which::which("kubectl").context("kubectl: install it, or put it on PATH")?;
    let mut command = Command::new(&kubectl);
    if std::env::var_os("KUBECONFIG").is_none() {
        command.env("KUBECONFIG", home::find()?.kubeconfig());
    }
    let mut args = args;
    if args.container.is_none() {
        args.container = step_of(&kubectl, &args)?;
    }
    Err(command.args(arguments(args)).exec()).with_context(|| kubectl.display().to_string())
}

/// The container that the pod's annotations name as its step. None: the first, which kubectl takes by itself.
fn step_of(kubectl: &Path, args: &Exec) -> Result<Option<String>> {
    let mut command = Command::new(kubectl);
    if std::env::var_os("KUBECONFIG").is_none() {
        command.env("KUBECONFIG", home::find()?.kubeconfig());
    }
    let namespace = args.namespace.iter().map(|name| format!("--namespace={name}"));
    let asked = command.args(["get", "pod", &args.pod, "--output=json"]).args(namespace).output();
    let asked = asked.with_context(|| kubectl.display().to_string())?;
    anyhow::ensure!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr).trim());
    Ok(named_step(&serde_json::from_slice(&asked.stdout).context("kubectl get pod")?))
}

/// The step that the annotations of this pod name.
fn named_step(pod: &serde_json::Value) -> Option<String> {
    let annotations = pod.get("metadata")?.get("annotations")?;
    annotations.get(MPI_FLAGS)?;
    annotations.get(MPI_CONTAINER)?.as_str().map(str::to_owned)
}

/// What kubectl is given. Pure.
fn arguments(args: Exec) -> Vec<OsString> {
    let mut argv: Vec<OsString> = vec!["exec".into()];
    for (flag, value) in [("--namespace", args.namespace), ("--container", args.container)] {
        argv.extend(value.map(|value| format!("{flag}={value}").into()));
    }
    for (flag, given) in [("--stdin", args.stdin), ("--tty", args.tty)] {
        argv.extend(given.then(|| flag.into()));
    }
    argv.extend([args.pod.into(), "--".into(), format!("{SESSION_PREFIX}{}", args.rank).into()]);
    argv.extend(args.command);
    argv
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command as Word};
    use clap::Parser;

    #[test]
    fn the_step_is_the_container_that_the_pod_names() {
        use serde_json::json;
        for (annotations, name) in [
            (json!({MPI_FLAGS: "", MPI_CONTAINER: "solver"}), Some("solver")),
            (json!({MPI_FLAGS: ""}), None),
            (json!({MPI_CONTAINER: "solver"}), None),
        ] {
            let pod = json!({"metadata": {"annotations": annotations}});
            assert_eq!(named_step(&pod).as_deref(), name, "{pod}");
        }
        assert_eq!(named_step(&json!({"metadata": {}})), None);
    }

    #[test]
    fn what_kubectl_is_given() {
        let line = |words: &str| {
            let Word::Exec(args) = Cli::parse_from(words.split(' ')).command else { panic!("{words}") };
            arguments(args).join(std::ffi::OsStr::new(" ")).into_string().unwrap()
        };
        assert_eq!(line("hpk exec --rank 5 p -- ps aux"), "exec p -- rank:5 ps aux");
        let all = "exec --namespace=n --container=c --stdin --tty p -- rank:0 sh -c x";
        assert_eq!(line("hpk exec --rank 0 -n n -c c -it p -- sh -c x"), all);
    }
}
