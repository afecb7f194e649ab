//! The command line and environment of the pod's parent container. Pure.
//!
//! `apptainer exec` gives the namespaces and the binds; nothing of the job's environment enters the pod but
//! the few variables that the supervisor asks for (`--containall`, [`environment`]).

use super::devices::{Devices, PASSED_ON};
use super::hostport::HostPorts;
use super::layout::Layout;
use super::nested::Nested;
use hpk_api::net::NetworkMode;
use hpk_api::plan::SandboxPlan;
use hpk_layout::parent as paths;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Who makes the user, network and UTS namespaces of the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Namespaces {
    /// hpk-netns, before Apptainer starts, which keeps them. With subordinate ids or without, it is one way, and it takes
    /// less time than `--fakeroot`, which asks its helpers one after the other and through a shell.
    Ours,
    /// Apptainer (`--net`): only it can run a site's CNI configuration. For root it is root's own containers; for others
    /// `--fakeroot` in addition, for the supervisor must be root in its container.
    Apptainers,
}

impl Namespaces {
    pub(crate) fn of(mode: NetworkMode) -> Self {
        if mode == NetworkMode::Cni { Self::Apptainers } else { Self::Ours }
    }
}

/// What the command is made from beside the plan.
pub(crate) struct Parts<'a> {
    pub(crate) layout: &'a Layout,
    /// For the plug-ins of a network of the site's.
    pub(crate) host_ports: &'a HostPorts,
    /// Mount points below [`Layout::host`], in the order of the plan's host binds.
    pub(crate) host_points: &'a [PathBuf],
    /// Of the node.
    pub(crate) devices: Devices,
    /// For jobs of root: capabilities that this root lacks. Apptainer would ask for all of them, and fail.
    pub(crate) root_lacks: Option<&'a [String]>,
    /// Where images that are files in the store are seen as folders; None: the pod has none.
    pub(crate) mounted: Option<&'a Path>,
    /// The node's Apptainer, where the pod's containers may need it.
    pub(crate) nested: Option<&'a Nested>,
}

/// Arguments of `apptainer`.
pub(crate) fn arguments(plan: &SandboxPlan, parts: &Parts<'_>) -> Vec<OsString> {
    let mut argv: Vec<OsString> = Vec::with_capacity(32);
    let mut add = |arg: &str| argv.push(arg.into());
    // --no-eval: plan data reaches hpk-pause as it is. --no-init: hpk-pause itself is PID 1.
    ["--quiet", "exec", "--containall", "--no-init", "--no-eval", "--no-home", "--hostname"]
        .into_iter()
        .for_each(&mut add);
    let nodes = plan.hostname.is_empty().then(crate::node::hostname);
    add(nodes.as_deref().unwrap_or(&plan.hostname));
    if Namespaces::of(plan.network.mode) == Namespaces::Apptainers {
        match parts.root_lacks {
            None => add("--fakeroot"),
            Some([]) => {}
            Some(lacks) => ["--drop-caps", &lacks.join(",")].into_iter().for_each(&mut add),
        }
        ["--uts", "--net", "--network"].into_iter().for_each(&mut add);
        add(plan.network.cni_network.as_deref().unwrap_or("none"));
        if let Some(ports) = parts.host_ports.argument() {
            argv.extend(["--network-args".into(), ports]);
        }
    }
    let l = parts.layout;
    let mut bind = |source: &Path, destination: &str, read_only: bool| {
        argv.push("--mount".into());
        argv.push(mount(source, destination, read_only));
    };
    bind(&hpk_layout::pod::inside(&l.pod), paths::POD, false);
    bind(&l.images, paths::IMAGES, true);
    if let Some(mounted) = parts.mounted {
        bind(mounted, paths::MOUNTED, true);
    }
    bind(&l.scratch, paths::SCRATCH, false);
    bind(&l.run, paths::RUN, false);
    if !parts.host_points.is_empty() {
        bind(&l.host, paths::HOST, false);
    }
    for (index, host) in plan.host_binds.iter().enumerate() {
        bind(Path::new(&host.source), &format!("{}/{index}", paths::HOST), false);
    }
    for device in &parts.devices.binds {
        bind(device, &device.to_string_lossy(), false);
    }
    if let Some(nested) = parts.nested {
        for folder in &nested.folders {
            bind(folder, &folder.to_string_lossy(), true);
        }
        if let Some(fuse) = &nested.fuse {
            bind(fuse, &fuse.to_string_lossy(), false);
        }
    }
    argv.extend(parts.devices.flags.iter().map(OsString::from));
    argv.push(l.parent_image.clone().into());
    argv.extend(["/hpk-pause", "--plan", "/hpk/pod/plan.json"].map(OsString::from));
    argv
}

/// One `--mount` value. It is a line of comma-separated values, so paths with commas, colons or quotes are safe.
fn mount(source: &Path, destination: &str, read_only: bool) -> OsString {
    let field = |key: &str, value: &str| {
        let text = format!("{key}={value}");
        if text.contains([',', '"', '\n']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
    };
    let mut line =
        format!("type=bind,{},{}", field("source", &source.to_string_lossy()), field("destination", destination));
    if read_only {
        line.push_str(",ro");
    }
    line.into()
}

/// The environment of `apptainer` itself: nothing of the job's `APPTAINER*`/`SINGULARITY*` settings (binds of
/// theirs would be applied to the pod), and for the supervisor, by Apptainer's `APPTAINERENV_` rule, the job's
/// `SLURM_*` and `HPK_*` variables and those that name GPUs.
pub(crate) fn environment(
    job: impl Iterator<Item = (OsString, OsString)>,
    own: &[(&str, String)],
) -> Vec<(OsString, OsString)> {
    let mut env = Vec::new();
    for (key, value) in job {
        let Some(name) = key.to_str() else { continue };
        if matches!(name, "PATH" | "HOME" | "USER" | "LOGNAME" | "LANG" | "XDG_RUNTIME_DIR" | "TMPDIR") {
            env.push((key, value));
        } else if name.starts_with("SLURM_") || name.starts_with("HPK_") || PASSED_ON.contains(&name) {
            let inside = format!("APPTAINERENV_{name}");
            env.push((inside.into(), value));
        }
    }
    env.extend(own.iter().map(|(k, v)| (format!("APPTAINERENV_{k}").into(), v.into())));
    env
}

#[cfg(test)]
mod tests {
    use super::super::layout::Surroundings;
    use super::*;
    use hpk_api::link::Protocol;
    use hpk_api::net::HostPort;

    fn plan(mode: &str) -> SandboxPlan {
        serde_json::from_value(serde_json::json!({
            "version": 1, "pod": {"namespace": "d", "name": "p", "uid": "u"}, "hostname": "p",
            "restart_policy": "Always", "termination_grace_period_seconds": 30,
            "network": {"mode": mode, "cni_network": "site"}, "containers": [],
            "host_binds": [{"source": "/data,1", "kind": ""}]
        }))
        .unwrap()
    }

    fn line(mode: &str) -> String {
        line_of(mode, None)
    }

    fn line_of(mode: &str, root_lacks: Option<&[String]>) -> String {
        line_with(mode, root_lacks, &HostPorts::default())
    }

    fn line_with(mode: &str, root_lacks: Option<&[String]>, host_ports: &HostPorts) -> String {
        let around = Surroundings { prefix: Some("/opt".into()), ..Surroundings::default() };
        let layout = Layout::new(Path::new("/h/pods/u"), "u", &around);
        let points = [layout.host.join("0")];
        let nested = Nested { folders: vec!["/usr".into()], fuse: None, program: "/usr/bin/apptainer".into() };
        let parts = Parts {
            layout: &layout,
            host_ports,
            root_lacks,
            nested: Some(&nested),
            mounted: Some(Path::new("/tmp/m")),
            host_points: &points,
            devices: Devices { binds: vec!["/dev/net/tun".into()], flags: vec!["--nv"] },
        };
        arguments(&plan(mode), &parts).iter().map(|a| a.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn only_a_sites_network_is_apptainers_to_make() {
        assert!(line("cni").contains(" --fakeroot --uts --net --network site "));
        let of_root = line_of("cni", Some(&["CAP_SYS_RESOURCE".to_owned()]));
        assert!(of_root.contains(" --drop-caps CAP_SYS_RESOURCE --uts --net --network site "), "{of_root}");
        assert!(!of_root.contains("--fakeroot") && !line_of("cni", Some(&[])).contains("--drop-caps"));
        for mode in ["overlay", "host"] {
            let line = line(mode);
            assert!(!line.contains("--fakeroot") && !line.contains("--net") && !line.contains("--uts"), "{line}");
        }
    }

    #[test]
    fn host_ports_are_for_the_sites_plug_ins() {
        let port = HostPort { protocol: Protocol::Tcp, host_ip: None, host_port: 8080, container_port: 80 };
        let line = line_with("cni", Some(&[]), &HostPorts { given: vec![port], refused: vec![] });
        assert!(line.contains(" --network site --network-args portmap=8080:80/tcp "), "{line}");
        assert!(!self::line("cni").contains("--network-args"));
    }

    #[test]
    fn binds_are_quoted_and_images_read_only() {
        let text = line("overlay");
        assert!(text.contains("--mount type=bind,\"source=/data,1\",destination=/hpk/host/0"), "{text}");
        assert!(text.contains("--mount type=bind,source=/h/images,destination=/hpk/images,ro"), "{text}");
        assert!(text.contains("--mount type=bind,source=/tmp/m,destination=/hpk/mounted,ro"), "{text}");
        assert!(text.ends_with("/opt/share/hpk/pause /hpk-pause --plan /hpk/pod/plan.json"), "{text}");
    }

    #[test]
    fn environment_is_clean() {
        let job = [("APPTAINER_BIND", "/x"), ("SECRET", "s"), ("PATH", "/bin"), ("SLURM_JOB_ID", "7")];
        let env = environment(job.iter().map(|(k, v)| (k.into(), v.into())), &[("HPK_NODE", "c1".into())]);
        assert!(
            line("host")
                .contains("destination=/dev/net/tun --mount type=bind,source=/usr,destination=/usr,ro --nv /opt/")
        );
        let names: Vec<_> = env.iter().map(|(k, _)| k.to_string_lossy().into_owned()).collect();
        assert_eq!(names, ["PATH", "APPTAINERENV_SLURM_JOB_ID", "APPTAINERENV_HPK_NODE"]);
    }
}
