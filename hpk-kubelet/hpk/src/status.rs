//! `hpk status`: how the supervisor and its components stand. Exit code 0 when all serve, 3 when not.

use crate::cli::{self, Format};
use crate::home::Home;
use crate::site;
use crate::supervise::control::{Client, ControlError, Request, Snapshot};
use anyhow::Result;
use std::process::ExitCode;

/// As `systemctl status` has it for what is not active.
const NOT_READY: u8 = 3;

/// `hpk status`.
pub(crate) async fn run(args: &cli::Output) -> Result<ExitCode> {
    let home = Home::from_env()?;
    let snapshot = match Client::ask(&home, &site::hostname()?, Request::Status).await {
        Ok(mut client) => Some(client.must().await?),
        Err(ControlError::NotRunning) => None,
        Err(e) => return Err(e.into()),
    };
    match args.output {
        Format::Json => println!("{}", serde_json::to_string_pretty(&snapshot)?),
        Format::Text => print!("{}", text(snapshot.as_ref(), &home)),
    }
    let ready = snapshot.is_some_and(|s| s.ready);
    Ok(if ready { ExitCode::SUCCESS } else { ExitCode::from(NOT_READY) })
}

fn text(snapshot: Option<&Snapshot>, home: &Home) -> String {
    let Some(s) = snapshot else { return "the control plane is not running: start it with hpk up\n".into() };
    let word = if s.stopping {
        "stopping"
    } else if s.ready {
        "ready"
    } else {
        "not ready"
    };
    let mut out = format!("{word} on {} since {} (process {})\n\n", s.host, s.started, s.pid);
    out.push_str(&format!("{:<25}{:<12}{:<10}{:<10}{}\n", "COMPONENT", "STATE", "PROCESS", "RESTARTS", "MESSAGE"));
    for c in &s.components {
        let pid = c.pid.map(|p| p.to_string()).unwrap_or_default();
        let line = format!("{:<25}{:<12}{:<10}{:<10}{}", c.name, c.phase, pid, c.restarts, c.message);
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out.push_str(&format!("\nlogs: {}\nkubeconfig: {}\n", home.log().display(), home.kubeconfig().display()));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervise::control::{ComponentStatus, Phase};

    #[test]
    fn columns_line_up() {
        let s = Snapshot {
            pid: 7,
            host: "login".into(),
            started: "2026-01-01T00:00:00Z".into(),
            stopping: false,
            ready: false,
            components: vec![ComponentStatus {
                name: "kube-controller-manager".into(),
                phase: Phase::Backoff,
                pid: None,
                restarts: 2,
                message: "exit status: 1".into(),
            }],
        };
        let out = text(Some(&s), &Home::at("/h/.hpk".into()));
        let lines: Vec<&str> = out.lines().collect();
        assert!(lines[0].starts_with("not ready on login"));
        for (a, b) in [("STATE", "restarting"), ("RESTARTS", "2"), ("MESSAGE", "exit status: 1")] {
            assert_eq!(lines[2].find(a), lines[3].find(b), "{out}");
        }
    }
}
