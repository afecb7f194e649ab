//! Services for a pod whose network is the site's (mode cni): the node's `nft` puts them into the pod's network
//! namespace, again and again as facts come over the link. One task owns it.
//!
//! The rules are the namespace's and go with it.

mod rules;

use crate::cni::inside::Inside;
use crate::cni::{run_inside, search_path};
use hpk_api::link::NetUpdate;
use rules::{Services, Stale};
use std::ffi::OsString;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// How long changes are gathered before nft is started: a rollout comes in bursts.
const GATHER: Duration = Duration::from_millis(20);
/// How long nft may take.
const LIMIT: Duration = Duration::from_secs(20);

/// The pod's namespaces, open, and its addresses.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) user: OwnedFd,
    pub(crate) network: OwnedFd,
    pub(crate) ips: Vec<IpAddr>,
}

/// What the task hears.
#[derive(Debug)]
pub(crate) enum Heard {
    /// From the supervisor, once.
    Pod(Pod),
    /// From the link.
    Fact(NetUpdate),
    /// The link is new.
    Fresh,
}

/// How far it is; changes are for whoever waits with the pod's start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Nothing was put in yet.
    #[default]
    Waiting,
    /// The services known are in.
    Done,
    /// They are not, and why.
    Failed(String),
}

/// Where `nft` is.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    which::which_in(program, Some(search_path()), "/").ok()
}

/// Runs as long as somebody can tell it something.
pub(crate) async fn keep(mut heard: mpsc::UnboundedReceiver<Heard>, progress: watch::Sender<Progress>) {
    let Some(nft) = find("nft") else {
        let message = "the compute node has no nft: Services by ClusterIP do not work in mode cni; ask for the package \
                       nftables on the compute nodes";
        progress.send_replace(Progress::Failed(message.to_owned()));
        return;
    };
    let conntrack = find("conntrack");
    let (mut services, mut put) = (Services::default(), Services::default());
    // A link that comes again is complete only at its end.
    let (mut pod, mut synced, mut due): (Option<Pod>, bool, bool) = (None, false, false);
    loop {
        let next = if due && synced && pod.is_some() {
            match tokio::time::timeout(GATHER, heard.recv()).await {
                Ok(next) => next,
                Err(_) => {
                    due = false;
                    if let Some(pod) = &pod {
                        let done = apply(&nft, pod, &services).await;
                        if done.is_ok() {
                            for stale in services.stale(&put) {
                                forget(conntrack.as_ref(), pod, stale).await;
                            }
                            put.clone_from(&services);
                        }
                        progress.send_replace(done.map_or_else(Progress::Failed, |()| Progress::Done));
                    }
                    continue;
                }
            }
        } else {
            heard.recv().await
        };
        match next {
            None => return,
            Some(Heard::Pod(new)) => {
                pod = Some(new);
                due = true;
            }
            Some(Heard::Fresh) => {
                services.forget();
                synced = false;
            }
            Some(Heard::Fact(NetUpdate::ServicesSynced)) => {
                synced = true;
                due |= services != put;
            }
            Some(Heard::Fact(update)) => due |= services.learn(&update),
        }
    }
}

async fn apply(nft: &std::path::Path, pod: &Pod, services: &Services) -> Result<(), String> {
    let command = [nft.as_os_str().to_owned(), "-f".into(), "-".into()];
    inside(pod, &command, &services.script(&pod.ips)).await.inspect_err(|error| hpk_api::say!("hpk-netns: {error}"))
}

/// Without the program such a flow goes on until it is quiet for as long as connection tracking waits (30 s, 120 s).
async fn forget(conntrack: Option<&PathBuf>, pod: &Pod, stale: Stale) {
    let Some(program) = conntrack else { return };
    let mut command: Vec<OsString> = vec![program.clone().into_os_string()];
    let family = if stale.service.is_ipv4() { "ipv4" } else { "ipv6" };
    command.extend(["-D", "-f", family, "-p", "udp"].map(OsString::from));
    for (flag, value) in [
        ("--orig-dst", stale.service.ip().to_string()),
        ("--orig-port-dst", stale.service.port().to_string()),
        ("--reply-src", stale.endpoint.ip().to_string()),
    ] {
        command.extend([flag.into(), value.into()]);
    }
    // It fails when there is no such flow.
    let _ = inside(pod, &command, "").await;
}

async fn inside(pod: &Pod, command: &[OsString], input: &str) -> Result<(), String> {
    let place = Inside { user: pod.user.as_raw_fd(), network: pod.network.as_raw_fd(), places: None };
    let name = command.first().map(|p| p.to_string_lossy().into_owned()).unwrap_or_default();
    let env = [("PATH", search_path())];
    let ended = run_inside(&place, command, &env, input.as_bytes(), LIMIT).await.map_err(|e| format!("{name}: {e}"))?;
    if ended.code == Some(0) {
        return Ok(());
    }
    Err(format!("{name}: {}", String::from_utf8_lossy(&ended.stderr).trim()))
}
