//! Facts about this site that `hpk up` starts from: Slurm's cluster name, this host's name and address.
//!
//! Asks Slurm's commands and the resolver; decides nothing.

use hpk_api::cluster::ExecutorKind;
use hpk_sys::netdev::Netlink;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::process::Command;

/// What is not to be found out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SiteError {
    /// A command of Slurm's.
    #[error(
        "{command} fails: {message}: run hpk on a host where Slurm's commands work (hpk doctor tells more), or begin a cluster without Slurm by --executor local"
    )]
    Slurm {
        command: &'static str,
        /// What it says.
        message: String,
    },
    /// No usable address.
    #[error("no address of this host that compute nodes could reach: give it with --node-ip ADDRESS")]
    NoAddress,
    /// An address that is not this host's.
    #[error("--node-ip {ip}: not an address of this host: {source}")]
    NotOurs {
        ip: IpAddr,
        #[source]
        source: std::io::Error,
    },
    /// No host name.
    #[error("this host's name is unknown: {0}")]
    Hostname(#[from] nix::errno::Errno),
}

/// This host's name.
///
/// # Errors
/// When the kernel does not tell.
pub(crate) fn hostname() -> Result<String, SiteError> {
    Ok(nix::unistd::gethostname()?.to_string_lossy().into_owned())
}

/// Runs a command of Slurm's and returns what it prints.
///
/// # Errors
/// When it is missing or fails.
pub(crate) fn slurm(command: &'static str, args: &[&str]) -> Result<String, SiteError> {
    let fail = |message: String| SiteError::Slurm { command, message };
    let out = Command::new(command).args(args).output().map_err(|e| fail(e.to_string()))?;
    if !out.status.success() {
        return Err(fail(String::from_utf8_lossy(&out.stderr).trim().to_owned()));
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// Slurm's ClusterName.
///
/// # Errors
/// When scontrol does not say.
pub(crate) fn cluster_name() -> Result<String, SiteError> {
    let text = slurm("scontrol", &["show", "config"])?;
    config_value(&text, "ClusterName")
        .ok_or(SiteError::Slurm { command: "scontrol show config", message: "no ClusterName in it".into() })
}

/// The partitions that the user sees, and the one of jobs that name none.
///
/// # Errors
/// When sinfo does not say.
pub(crate) fn partitions() -> Result<(Vec<String>, Option<String>), SiteError> {
    let text = slurm("sinfo", &["--noheader", "--format=%P"])?;
    let (all, marked) = partitions_of(&text);
    Ok((all, std::env::var("SBATCH_PARTITION").ok().filter(|p| !p.is_empty()).or(marked)))
}

/// Partitions of sinfo's text, where the default one has a star.
fn partitions_of(text: &str) -> (Vec<String>, Option<String>) {
    let mut all: Vec<String> = Vec::new();
    let mut usual = None;
    for word in text.split_whitespace() {
        let name = word.trim_end_matches('*').to_owned();
        if name != word {
            usual = Some(name.clone());
        }
        if !all.contains(&name) {
            all.push(name);
        }
    }
    (all, usual)
}

/// The value of `key` in the text of `scontrol show config`.
fn config_value(text: &str, key: &str) -> Option<String> {
    text.lines().find_map(|l| {
        let (k, v) = l.split_once('=')?;
        (k.trim() == key).then(|| v.trim().to_owned()).filter(|v| !v.is_empty())
    })
}

/// The address under which compute nodes reach this host: `given`, else that of the interface towards a
/// compute node, else that towards the outside.
///
/// # Errors
/// When there is none, or the given one cannot be listened on.
pub(crate) fn node_ip(given: Option<IpAddr>, executor: ExecutorKind) -> Result<IpAddr, SiteError> {
    if let Some(ip) = given {
        return match UdpSocket::bind(SocketAddr::new(ip, 0)) {
            Ok(_) => Ok(ip),
            Err(source) => Err(SiteError::NotOurs { ip, source }),
        };
    }
    let nodes = match executor {
        ExecutorKind::Slurm => slurm("sinfo", &["-h", "-N", "-o", "%o"]).unwrap_or_default(),
        ExecutorKind::Local => String::new(),
    };
    // A few are enough; resolving thousands would take its time.
    let towards_nodes = nodes.lines().map(str::trim).filter(|n| !n.is_empty()).take(8).find_map(towards);
    let hostname = || hostname().ok().and_then(|h| first_usable(resolve(&h)));
    // 192.0.2.1 is nobody's (RFC 5737): only the route is asked for, nothing is sent.
    towards_nodes.or_else(hostname).or_else(|| towards("192.0.2.1")).ok_or(SiteError::NoAddress)
}

/// The address of the other family on the device that has `ip`.
pub(crate) fn beside(ip: IpAddr) -> Option<IpAddr> {
    let devices = Netlink::open().and_then(|mut netlink| netlink.devices()).ok()?;
    hpk_sys::netdev::beside(&devices, ip)
}

/// Our own address on the way to `host`, unless it is the loopback's.
fn towards(host: &str) -> Option<IpAddr> {
    resolve(host).into_iter().find_map(|addr| {
        let any: SocketAddr = if addr.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
        let socket = UdpSocket::bind(any).ok()?;
        socket.connect(addr).ok()?;
        usable(socket.local_addr().ok()?.ip())
    })
}

fn resolve(host: &str) -> Vec<SocketAddr> {
    let mut found: Vec<SocketAddr> = (host, 9).to_socket_addrs().map(Iterator::collect).unwrap_or_default();
    // The pod network's addresses are IPv4.
    found.sort_by_key(|a| !a.is_ipv4());
    found
}

fn first_usable(addrs: Vec<SocketAddr>) -> Option<IpAddr> {
    addrs.into_iter().find_map(|a| usable(a.ip()))
}

fn usable(ip: IpAddr) -> Option<IpAddr> {
    (!ip.is_loopback() && !ip.is_unspecified()).then_some(ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cluster_name_is_read_and_only_that() {
        let text = "Configuration data as of 2026\nXClusterName = no\nClusterName             = site\nA = b\n";
        assert_eq!(config_value(text, "ClusterName").as_deref(), Some("site"));
        assert_eq!(config_value("ClusterName = \n", "ClusterName"), None);
    }

    #[test]
    fn partitions_are_listed_once_and_the_default_one_is_known() {
        let list = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(partitions_of("main*\ndebug\nmain*\n"), (list(&["main", "debug"]), Some("main".to_owned())));
        assert_eq!(partitions_of("a\n"), (list(&["a"]), None));
    }

    #[test]
    fn a_foreign_address_is_refused() {
        let foreign = "192.0.2.77".parse().unwrap();
        assert!(matches!(node_ip(Some(foreign), ExecutorKind::Slurm), Err(SiteError::NotOurs { .. })));
        let ours = "127.0.0.1".parse().unwrap();
        assert_eq!(node_ip(Some(ours), ExecutorKind::Local).unwrap(), ours);
    }
}
