//! Which network modes can work: `hpk-netns probe` tries them, here or on a compute node.

use super::Finding;
use crate::home;
use hpk_api::cluster::ClusterConfig;
use hpk_api::net::NetworkMode;
use serde::Deserialize;
use std::ffi::OsString;
use std::process::Command;

/// What `hpk-netns probe` says of one mode.
#[derive(Debug, Deserialize)]
struct Found {
    mode: String,
    works: bool,
    found: String,
    #[serde(default)]
    remedy: String,
}

/// The login node tells what compute nodes of the same kind will say.
pub(super) fn login(show: &mut dyn FnMut(Finding)) {
    tell("network", None, show);
}

/// The compute node has the last word: pods run there.
pub(super) fn job(show: &mut dyn FnMut(Finding)) {
    tell("compute: network", Some(&["srun", "-N1", "-n1", "-t2"]), show);
}

fn tell(prefix: &str, by: Option<&[&str]>, show: &mut dyn FnMut(Finding)) {
    let Ok(install) = home::install() else { return };
    let cluster = home::find()
        .ok()
        .and_then(|home| serde_json::from_slice::<ClusterConfig>(&std::fs::read(home.cluster_json()).ok()?).ok());
    let mut line: Vec<OsString> = by.unwrap_or_default().iter().map(OsString::from).collect();
    line.extend([install.libexec("hpk-netns").into(), "probe".into(), install.pause_image().into()]);
    line.extend(cluster.as_ref().and_then(|c| c.cni_network.clone()).map(OsString::from));
    let Some((program, arguments)) = line.split_first() else { return };
    let output = match Command::new(program).args(arguments).output() {
        Ok(output) => output,
        Err(error) => return show(Finding::warning(prefix.to_owned(), error.to_string(), "install HPK: make install")),
    };
    let found: Vec<Found> = match serde_json::from_slice(&output.stdout) {
        Ok(found) => found,
        Err(_) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return show(Finding::warning(prefix.to_owned(), format!("not tried: {said}"), "see that srun works"));
        }
    };
    for one in found {
        show(finding(prefix, one, cluster.as_ref()));
    }
}

/// A mode that does not work is no harm, unless it is the cluster's.
fn finding(prefix: &str, found: Found, cluster: Option<&ClusterConfig>) -> Finding {
    let chosen = match cluster.map(|c| (c.network_mode, c.cni_network.as_deref())) {
        Some((NetworkMode::Cni, name)) => {
            found.mode == "cni" || name.is_some_and(|n| found.mode.strip_prefix("cni:") == Some(n))
        }
        Some((NetworkMode::Host, _)) => found.mode == "host",
        Some((NetworkMode::Overlay, _)) | None => found.mode == "overlay",
    };
    let check = format!("{prefix} {}", found.mode);
    match (found.works, chosen) {
        (true, _) => Finding::ok(check, found.found),
        (false, true) => Finding::failed(check, found.found, found.remedy),
        (false, false) => Finding::warning(check, found.found, found.remedy),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn only_the_clusters_own_mode_is_needed() {
        let verdict = |mode: &str, works, cluster: Option<&ClusterConfig>| {
            let found = Found { mode: mode.to_owned(), works, found: String::new(), remedy: String::new() };
            finding("network", found, cluster).verdict
        };
        assert_eq!(verdict("cni", false, None), Verdict::Warning);
        assert_eq!(verdict("overlay", false, None), Verdict::Failed);
        let mut cluster = crate::decide::tests::layout().cluster;
        cluster.network_mode = NetworkMode::Cni;
        cluster.cni_network = Some("site".to_owned());
        assert_eq!(verdict("overlay", false, Some(&cluster)), Verdict::Warning);
        assert_eq!(verdict("cni:other", false, Some(&cluster)), Verdict::Warning);
        assert_eq!(verdict("cni:site", false, Some(&cluster)), Verdict::Failed);
        assert_eq!(verdict("cni:site", true, Some(&cluster)), Verdict::Ok);
    }
}
