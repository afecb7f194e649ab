//! `hpk status`: how the supervisor and its components stand, and which network pods are in. Exit code 0 when all serve, 3
//! when not, and after `--watch`.
#![allow(clippy::print_stdout, reason = "it prints for who calls it, and ends then")]

use crate::cli::{self, Format};
use crate::decide::Families;
use crate::home;
use crate::in_job::ask;
use crate::json::need_json;
use crate::site;
use crate::supervise::control::{Client, ControlError, Request, Snapshot};
use anyhow::Result;
use hpk_api::cluster::ClusterConfig;
use hpk_api::net::NetworkMode;
use hpk_layout::Home;
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

/// For the control plane's supervisor, which answers at once unless it is stopped.
const PATIENCE: Duration = Duration::from_secs(10);

/// As `systemctl status` has it for what is not active.
const NOT_READY: u8 = 3;

/// All that is shown of a control plane that runs.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    snapshot: Snapshot,
    network: Network,
}

impl Shown {
    fn of(snapshot: Snapshot, home: &Home) -> Result<Self> {
        // The network cannot be changed while the control plane runs.
        Ok(Self { snapshot, network: Network::of(&need_json(&home.cluster_json())?) })
    }
}

/// What pods that start now are given.
#[derive(Serialize)]
struct Network {
    /// As `hpk up --network` takes it: `overlay`, `cni:NAME` or `host`.
    mode: String,
    /// As Kubernetes names them: of Services, and in the overlay of pods.
    ip_families: &'static [&'static str],
}

impl Network {
    fn of(cluster: &ClusterConfig) -> Self {
        let mode = match cluster.network_mode {
            NetworkMode::Overlay => "overlay".to_owned(),
            NetworkMode::Cni => format!("cni:{}", cluster.cni_network.as_deref().unwrap_or_default()),
            NetworkMode::Host => "host".to_owned(),
        };
        let ip_families: &[&str] = match Families::decide(None, Some(cluster)) {
            Families::Ipv4 => &["IPv4"],
            Families::Dual => &["IPv4", "IPv6"],
        };
        Self { mode, ip_families }
    }
}

/// `hpk status`.
pub(crate) async fn run(args: &cli::Status) -> Result<ExitCode> {
    let home = home::find()?;
    let print = |shown: Option<&Shown>| -> Result<()> {
        match (args.output.output, args.watch) {
            (Format::Json, true) => println!("{}", serde_json::to_string(&shown)?),
            (Format::Json, false) => println!("{}", serde_json::to_string_pretty(&shown)?),
            (Format::Text, _) => print!("{}", text(shown, &home)),
        }
        Ok(())
    };
    if args.watch {
        return watch(&home, args.output.output, print).await;
    }
    let asked = async {
        let mut client = Client::ask(&home, &site::hostname()?, Request::Status).await?;
        anyhow::Ok(client.must().await?)
    };
    let answer = match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Ok(snapshot)) => Ok(snapshot),
        Ok(Err(e)) => Err(e.downcast::<ControlError>()?),
        Err(_) => Err(ControlError::Mute { seconds: PATIENCE.as_secs(), log: home.supervisor_log() }),
    };
    let shown = match answer {
        Ok(snapshot) => Some(Shown::of(snapshot, &home)?),
        Err(ControlError::NotRunning) => None,
        Err(error @ ControlError::OtherHost { .. }) => {
            return ask::go_there(&home)?.map_or_else(|| Err(error.into()), Ok);
        }
        Err(e) => return Err(e.into()),
    };
    print(shown.as_ref())?;
    let ready = shown.is_some_and(|s| s.snapshot.ready);
    Ok(if ready { ExitCode::SUCCESS } else { ExitCode::from(NOT_READY) })
}

/// Each change, until the control plane is down.
async fn watch(home: &Home, format: Format, print: impl Fn(Option<&Shown>) -> Result<()>) -> Result<ExitCode> {
    let clears = format == Format::Text && std::io::stdout().is_terminal();
    let asked = Client::ask(home, &site::hostname()?, Request::Watch).await;
    if matches!(asked, Err(ControlError::OtherHost { .. }))
        && let Some(code) = ask::go_there(home)?
    {
        return Ok(code);
    }
    let mut client = asked?;
    let mut first = true;
    while let Some(snapshot) = client.next().await? {
        if clears {
            print!("\x1b[H\x1b[2J");
        } else if !first && format == Format::Text {
            println!();
        }
        first = false;
        print(Some(&Shown::of(snapshot, home)?))?;
        std::io::stdout().flush()?;
    }
    print(None)?;
    Ok(ExitCode::from(NOT_READY))
}

fn text(shown: Option<&Shown>, home: &Home) -> String {
    let Some(Shown { snapshot: s, network }) = shown else {
        return "the control plane is not running: start it with hpk up\n".into();
    };
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
    out.push_str(&format!("\nnetwork: {}, {}\n", network.mode, network.ip_families.join(" and ")));
    out.push_str(&format!("logs: {}\nkubeconfig: {}\n", home.log().display(), home.kubeconfig().display()));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::tests::layout;
    use crate::supervise::control::{ComponentStatus, Phase};

    fn shown(cluster: &ClusterConfig) -> Shown {
        let snapshot = Snapshot {
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
        Shown { snapshot, network: Network::of(cluster) }
    }

    #[test]
    fn columns_line_up() {
        let out = text(Some(&shown(&layout().cluster)), &Home::at("/h/.hpk"));
        let lines: Vec<&str> = out.lines().collect();
        assert!(lines[0].starts_with("not ready on login"));
        for (a, b) in [("STATE", "restarting"), ("RESTARTS", "2"), ("MESSAGE", "exit status: 1")] {
            assert_eq!(lines[2].find(a), lines[3].find(b), "{out}");
        }
    }

    #[test]
    fn the_network_is_shown_to_people_and_to_programs() {
        let mut cluster = layout().cluster;
        let both = |cluster: &ClusterConfig| {
            let shown = shown(cluster);
            let out = text(Some(&shown), &Home::at("/h/.hpk"));
            let line = out.lines().find_map(|l| l.strip_prefix("network: ")).map(str::to_owned);
            (line.unwrap_or_default(), serde_json::to_value(&shown).unwrap())
        };
        let (line, json) = both(&cluster);
        assert_eq!(line, "overlay, IPv4 and IPv6");
        assert_eq!(json["network"], serde_json::json!({"mode": "overlay", "ip_families": ["IPv4", "IPv6"]}));
        assert_eq!(json["components"][0]["restarts"], 2, "beside all that was there before");

        cluster.pod_cidr = "10.244.0.0/16".into();
        cluster.network_mode = NetworkMode::Cni;
        cluster.cni_network = Some("site".into());
        let (line, json) = both(&cluster);
        assert_eq!(line, "cni:site, IPv4");
        assert_eq!(json["network"], serde_json::json!({"mode": "cni:site", "ip_families": ["IPv4"]}));

        cluster.network_mode = NetworkMode::Host;
        assert_eq!(both(&cluster).0, "host, IPv4");
    }
}
