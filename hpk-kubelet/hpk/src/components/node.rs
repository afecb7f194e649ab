//! What runs on the login node itself, outside the image: this program's own one-time set-up of the
//! cluster's objects, and hpk-kubelet, which needs Slurm's and Apptainer's commands.

use super::probe::{Credentials, Probe};
use super::{Component, Kind, Layout};
use hpk_layout::Install;
use std::path::Path;
use std::time::Duration;

pub(super) fn bootstrap(l: &Layout, hpk: &Path) -> Component {
    Component {
        name: "bootstrap",
        needs: &["kube-apiserver"],
        kind: Kind::Once,
        program: hpk.to_owned(),
        args: vec!["bootstrap".into(), "--home".into(), l.home.root().display().to_string()],
        probe: Probe::None,
        grace: Duration::from_secs(5),
    }
}

pub(super) fn kubelet(l: &Layout) -> Option<Component> {
    let program = l.control_plane.kubelet.clone()?;
    let mut args = vec!["--cluster".into(), l.home.cluster_json().display().to_string()];
    args.extend(l.control_plane.egress.as_ref().map(|socket| format!("--egress={}", socket.display())));
    Some(Component {
        name: "hpk-kubelet",
        needs: &["bootstrap"],
        kind: Kind::Service,
        program,
        args,
        probe: Probe::Https {
            addr: l.cluster.kubelet_addr,
            path: "/healthz".into(),
            credentials: Credentials::new(l, "ca", "admin"),
        },
        grace: Duration::from_secs(10),
    })
}

/// The control plane's place in the pod network: pods reach the API server and CoreDNS through it. Its credentials
/// come from hpk-kubelet; until then it waits.
pub(super) fn member(l: &Layout) -> Option<Component> {
    // Installed with it.
    let kubelet = l.control_plane.kubelet.as_deref()?;
    Some(Component {
        name: "hpk-netns-member",
        needs: &["bootstrap"],
        kind: Kind::Service,
        program: Install::find(None, kubelet).netns(),
        args: vec!["member".into(), l.home.root().display().to_string()],
        probe: Probe::Says,
        grace: Duration::from_secs(5),
    })
}
