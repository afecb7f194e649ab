//! `hpk-netns probe`: which network modes can work on this node, found out by doing. `hpk doctor` shows it.
//!
//! ```text
//! overlay   new namespaces ─▶ probe inside: a TUN; a node side with a veth pair, for CNI plug-ins
//! cni       apptainer exec --net --network NAME … ─▶ probe given: which interfaces are there?
//! host      nothing to try
//! ```
//! What it makes goes with the processes that it starts, but for a bridge that a plug-in of the site's makes and keeps.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it prints for who calls it, and ends then")]

use crate::apptainer::{Site, SiteNetwork};
use crate::nat;
use hpk_sys::error::LaunchError;
use hpk_sys::netdev::{self, NetError, Netlink, Rule, TABLE_LOCAL};
use hpk_sys::userns::{self, Surroundings, UsernsError, Users};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Sub-commands of the processes that are started for it.
pub const INSIDE: &str = "probe-inside";
/// See [`INSIDE`].
pub const GIVEN: &str = "probe-given";

/// What was found of one mode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// `overlay`, `overlay with CNI plug-ins`, `cni:NAME`, `host`.
    pub mode: String,
    /// Pods would have a network.
    pub works: bool,
    /// What was seen.
    pub found: String,
    /// What to do about it; empty when all is well.
    #[serde(default)]
    pub remedy: String,
}

impl Found {
    fn works(mode: &str, found: impl Into<String>) -> Self {
        Self { mode: mode.to_owned(), works: true, found: found.into(), remedy: String::new() }
    }

    fn fails(mode: &str, found: impl Into<String>, remedy: &str) -> Self {
        Self { mode: mode.to_owned(), works: false, found: found.into(), remedy: remedy.to_owned() }
    }
}

/// All modes. `image`: the pods' parent image. `wanted`: the CNI network of the cluster, if it has one.
#[must_use]
pub fn run(image: &Path, wanted: Option<&str>) -> Vec<Found> {
    let mut all = overlay();
    all.extend(cni(image, wanted));
    all.push(Found::works(
        "host",
        "works anywhere; pods share the compute node's ports and have no Services by ClusterIP",
    ));
    all
}

const OVERLAY: &str = "overlay";
const PLUGINS: &str = "overlay with CNI plug-ins";

fn overlay() -> Vec<Found> {
    let tried = own_program().map_err(Untried::Io).and_then(|exe| {
        let (mut said, word) = io::pipe().map_err(Untried::Io)?;
        let around =
            Surroundings { users: Users::most(), network: true, stderr: Some(word.into()), ..Surroundings::default() };
        let child = userns::start(&exe, &[INSIDE.into()], around).map_err(Untried::Start)?;
        let mut text = String::new();
        said.read_to_string(&mut text).map_err(Untried::Io)?;
        child.wait().map_err(Untried::Start)?;
        serde_json::from_str(&text).map_err(|_| Untried::Io(io::Error::other(text.trim().to_owned())))
    });
    tried.unwrap_or_else(|error| vec![Found::fails(OVERLAY, error.to_string(), error.remedy())])
}

/// Why the part in new namespaces has not said anything.
#[derive(Debug, thiserror::Error)]
enum Untried {
    #[error(transparent)]
    Io(io::Error),
    #[error(transparent)]
    Start(UsernsError),
}

impl Untried {
    fn remedy(&self) -> &'static str {
        match self {
            Self::Start(UsernsError::Launch(LaunchError::Exec { errno: Errno::EACCES, .. })) => {
                "user namespaces are there, but root of one has no rights over other users' files: install HPK where \
                 everybody can read it (make install PREFIX=FOLDER), or be the user whose folder it is in"
            }
            _ => "ask for user namespaces on the compute nodes (user.max_user_namespaces > 0)",
        }
    }
}

fn own_program() -> io::Result<PathBuf> {
    std::env::current_exe()
}

/// The part in new namespaces: its result on standard error.
pub fn inside() {
    let tun = netdev::loopback_up().and_then(|()| netdev::create_tun("probe0")).map(|tun| tun.vnet_hdr);
    let plugins = tun.clone().and_then(|_| node_side());
    let unneeded = "only CNI plug-ins in net.d need it";
    let all = [
        match tun {
            Ok(_) => Found::works(OVERLAY, "a TUN can be made in a pod's namespace"),
            Err(error) => {
                Found::fails(OVERLAY, error.to_string(), "ask for /dev/net/tun with mode 0666 on the compute nodes")
            }
        },
        match plugins {
            Ok(()) => Found::works(PLUGINS, "a node side with a veth pair can be made"),
            Err(error) => Found::fails(PLUGINS, error.to_string(), unneeded),
        },
    ];
    eprintln!("{}", serde_json::to_string(&all).unwrap_or_default());
}

fn node_side() -> Result<(), NetError> {
    let file = std::fs::File::open("/proc/self/ns/net").map(OwnedFd::from);
    let namespace = file.map_err(|e| NetError::Kernel {
        operation: "open the network namespace".to_owned(),
        errno: nix::errno::Errno::from_raw(e.raw_os_error().unwrap_or(0)),
    })?;
    let mut netlink = Netlink::open()?;
    netlink.add_veth("probe1", "probe2", &namespace, 1400)?;
    netlink.add_rule(Rule { v6: false, to: None, priority: 100, table: TABLE_LOCAL })?;
    netdev::sysctl("net.ipv4.ip_forward", "1")
}

fn cni(image: &Path, wanted: Option<&str>) -> Vec<Found> {
    const MODE: &str = "cni";
    let Ok(apptainer) = which::which("apptainer").or_else(|_| which::which("singularity")) else {
        return vec![Found::fails(MODE, "no apptainer", "Apptainer must be installed on the compute nodes")];
    };
    let root = nix::unistd::getuid().is_root();
    let site = Site::of(&apptainer);
    if !root && !site.setuid {
        return vec![Found::fails(
            MODE,
            "Apptainer is installed without setuid here: for an ordinary user it makes no CNI network, and says nothing",
            "ask the site for Apptainer with setuid, or use the overlay, which needs nothing",
        )];
    }
    let mut networks = site.networks;
    if let Some(wanted) = wanted {
        networks.retain(|network| network.name == wanted);
        if networks.is_empty() {
            networks.push(SiteNetwork { name: wanted.to_owned(), maps_ports: false });
        }
    }
    if networks.is_empty() {
        let none = format!("no network is configured in {}", site.folder.display());
        return vec![Found::fails(MODE, none, "ask the site to configure one for Apptainer (cni configuration path)")];
    }
    networks.iter().map(|one| network(&apptainer, image, one, root)).collect()
}

/// One network, by a container of a moment.
fn network(apptainer: &Path, image: &Path, network: &SiteNetwork, root: bool) -> Found {
    let SiteNetwork { name, maps_ports } = network;
    let mode = format!("cni:{name}");
    let exe = own_program().unwrap_or_default();
    let mut args: Vec<OsString> =
        ["--quiet", "exec", "--containall", "--no-home", "--net", "--network", name].map(OsString::from).to_vec();
    let lacks = hpk_sys::caps::missing();
    if !root {
        args.push("--fakeroot".into());
    } else if !lacks.is_empty() {
        args.extend(["--drop-caps".into(), lacks.join(",").into()]);
    }
    args.extend(["--bind".into(), format!("{}:/probe:ro", exe.display()).into(), image.into()]);
    args.extend(["/probe", GIVEN].map(OsString::from));
    let output = match Command::new(apptainer).args(args).stdin(Stdio::null()).output() {
        Ok(output) => output,
        Err(error) => return Found::fails(&mode, error.to_string(), "see that apptainer works"),
    };
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let services = if nat::find("nft").is_some() {
        ""
    } else {
        "; without nft there are no Services by ClusterIP: ask for nftables"
    };
    let ports =
        if *maps_ports { "" } else { "; no plug-in of it has the capability portMappings: hostPort has no effect" };
    match (output.status.success(), said.is_empty()) {
        (true, false) => Found::works(&mode, format!("{said}{services}{ports}")),
        (true, true) => Found::fails(
            &mode,
            "Apptainer gives no interface but lo, and says nothing",
            "ask the site to allow it (apptainer.conf: allow net users, allow net networks), or use the overlay",
        ),
        (false, _) => {
            let error = String::from_utf8_lossy(&output.stderr);
            let line = error.lines().rfind(|l| !l.trim().is_empty()).unwrap_or("apptainer failed").trim().to_owned();
            Found::fails(&mode, line, "see that apptainer exec --net --network NAME works on the compute nodes")
        }
    }
}

/// The part in a container that Apptainer has made: its interfaces on standard output.
pub fn given() {
    let devices = Netlink::open().and_then(|mut netlink| netlink.devices()).unwrap_or_default();
    let shown = devices.iter().filter(|d| !d.loopback && !d.addresses.is_empty()).map(|d| {
        let addresses: Vec<String> = d.addresses.iter().map(|(ip, prefix)| format!("{ip}/{prefix}")).collect();
        format!("{} {} MTU {}", d.name, addresses.join(" "), d.mtu)
    });
    println!("{}", shown.collect::<Vec<_>>().join(", "));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_not_told_as_a_want_of_namespaces() {
        let start = |errno| {
            let command = "/home/alice/.local/libexec/hpk/hpk-netns".to_owned();
            Untried::Start(UsernsError::Launch(LaunchError::Exec { command, errno })).remedy()
        };
        assert!(start(Errno::EACCES).contains("make install PREFIX"));
        assert!(Untried::Start(UsernsError::Refused(Errno::EPERM)).remedy().contains("max_user_namespaces"));
    }
}
