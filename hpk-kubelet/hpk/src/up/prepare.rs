//! Decides and writes everything that the control plane's supervisor and its programs read.

use super::{asked, version};
use crate::cli::{self, DefaultMemory, DefaultTime, Scratch};
use crate::components::{self, Layout};
use crate::decide::{self, ControlPlane, Families, Programs};
use crate::gates;
use crate::home::{self, replace_file};
use crate::json::{read_json, write_json};
use crate::kubeconfig::{self, Kubeconfig};
use crate::pki;
use crate::progress::Progress;
use crate::site;
use crate::state::place;
use anyhow::{Context, Result, bail};
use hpk_api::cluster::ExecutorKind;
use hpk_api::net::NetworkMode;
use hpk_layout::pki as names;
use hpk_layout::{Home, Install};
use hpk_sys::ports::Hold;
use std::path::Path;
use std::time::SystemTime;

/// Apptainer takes paths in lists separated by these.
const NOT_IN_A_PATH: [char; 2] = [',', ':'];

/// Decides and writes everything that the supervisor reads.
pub(super) fn prepare(home: &Home, args: &cli::Up, host: &str, progress: &Progress) -> Result<(Layout, Vec<Hold>)> {
    if home.root().display().to_string().contains(NOT_IN_A_PATH) {
        bail!("HPK_HOME {}: its path must not contain a comma or a colon", home.root().display());
    }
    let install = home::install()?;
    let former: Option<ControlPlane> = match read_json(&home.control_plane_json()) {
        Ok(former) => former,
        Err(error) => {
            progress.done(&format!("{error:#}: ports are chosen anew"));
            None
        }
    };
    let programs = programs(args, &install)?;
    version::check(home, &programs, progress)?;
    let kubelet = if args.no_kubelet {
        None
    } else {
        let path = install.kubelet();
        if !path.exists() {
            bail!(
                "hpk-kubelet is not installed at {}: install it, or start without it by --no-kubelet",
                path.display()
            );
        }
        Some(path)
    };
    // What the user has set in cluster.json (the network's mode) stays.
    let before = asked::choices(home, progress)?;
    let executor = asked::executor(args, home, before.as_ref())?;
    let cluster_name = match &args.cluster_name {
        Some(name) => name.clone(),
        // A machine's name may change.
        None if executor == ExecutorKind::Local => {
            before.as_ref().map_or_else(|| host.to_owned(), |cluster| cluster.cluster_name.clone())
        }
        None => site::cluster_name()?,
    };
    let node_ip = site::node_ip(args.node_ip, executor)?;
    let uid = nix::unistd::geteuid().as_raw();
    let (ports, held) = decide::ports(former.as_ref().map(|f| &f.ports), node_ip, uid)?;
    let families = Families::decide(args.ip_families, before.as_ref());
    let node_ip_too = if families == Families::Dual { site::beside(node_ip) } else { None };
    let mut cluster = decide::cluster(&cluster_name, (node_ip, node_ip_too), families, &ports, &home.pki());
    cluster.executor = executor;
    if let Some(former) = before {
        if former.node_name != cluster.node_name {
            bail!(
                "{} is the home of cluster {}, this is {}: set HPK_HOME to another folder for this cluster",
                home.root().display(),
                former.cluster_name,
                cluster.cluster_name
            );
        }
        if families == Families::Ipv4 && Families::decide(None, Some(&former)) == Families::Dual {
            bail!(
                "--ip-families ipv4: this cluster has both, and Kubernetes takes no family of Services back: \
                 begin a new one in another HPK_HOME"
            );
        }
        cluster.local_cpus = former.local_cpus;
        cluster.network_mode = former.network_mode;
        cluster.cni_network = former.cni_network;
        cluster.plaintext = former.plaintext;
        cluster.container_logs = former.container_logs;
        cluster.pod_flags = former.pod_flags;
        cluster.user_ids = former.user_ids;
        cluster.default_memory = former.default_memory;
        cluster.default_time = former.default_time;
        cluster.priority_classes = former.priority_classes;
        cluster.images = former.images;
        cluster.partitions = former.partitions;
        cluster.scratch = former.scratch;
        cluster.gpu_vendor = former.gpu_vendor;
        cluster.feature_gates = former.feature_gates;
    }
    cluster.partitions = asked::partitions(args, &cluster.partitions);
    cluster.gpu_vendor = args.gpu_vendor.map_or(cluster.gpu_vendor, Into::into);
    asked::find_partitions(&mut cluster)?;
    cluster.local_cpus = args.local_cpus.or(cluster.local_cpus);
    cluster.container_logs = asked::container_logs(args, cluster.container_logs);
    if let Err(why) = cluster.container_logs.check() {
        bail!("cluster.json: container_logs: {why}: give --container-log-max-size and --container-log-max-files");
    }
    if let Some(encryption) = args.encryption {
        cluster.plaintext = encryption == cli::Encryption::Off;
    }
    cluster.priority_classes = asked::priority_classes(args, cluster.priority_classes);
    if let Some(DefaultMemory(bytes)) = args.default_memory {
        cluster.default_memory = bytes;
    }
    if let Some(DefaultTime(minutes)) = args.default_time {
        cluster.default_time = minutes;
    }
    cluster.images = asked::images(args, &cluster.images)?;
    if let Some(Scratch(folder)) = &args.scratch {
        cluster.scratch = asked::scratch(folder.as_deref())?;
    }
    if let Some(gates) = &args.feature_gates {
        cluster.feature_gates.clone_from(&gates.0);
    }
    if let Some(choice) = args.pod_flags {
        cluster.pod_flags = choice.into();
    }
    if let Some(choice) = args.user_ids {
        cluster.user_ids = choice.into();
    }
    if let Some(network) = &args.network {
        cluster.network_mode = network.mode;
        cluster.cni_network.clone_from(&network.name);
    }
    if cluster.network_mode == NetworkMode::Cni && cluster.cni_network.is_none() {
        bail!("cluster.json: network_mode is cni without cni_network: give hpk up --network cni:NAME");
    }
    let etcd_base = place::choose(home, args.etcd_data.as_ref())?;
    let etcd_data = place::folder(home, etcd_base.as_deref())?;
    if etcd_base.is_some() {
        progress.done(&format!(
            "etcd's data is in {}, snapshots in {}",
            etcd_data.display(),
            home.etcd_snapshots().display()
        ));
    }
    let resolv = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let control_plane = ControlPlane {
        ports,
        programs,
        kubelet,
        egress: decide::socket(home.egress_socket()),
        nameservers: decide::nameservers(&resolv),
        dns_sign: decide::DnsSign::new(random()?),
        apiserver_flags: args.apiserver_flag.clone(),
        etcd_base,
        etcd_data,
    };
    let layout = Layout { home: home.clone(), cluster, control_plane };
    if !layout.cluster.feature_gates.is_empty() {
        gates::check(&layout.control_plane.programs, &layout.cluster)?;
    }
    if let Some(text) = gates::without(&layout.cluster) {
        progress.done(&text);
    }

    let leaves = pki::spec::leaves(&pki::spec::Subject {
        node_name: &layout.cluster.node_name,
        node_ip,
        hostname: host,
        apiserver_service_ip: layout.cluster.apiserver_service_ip,
        domain: &layout.cluster.cluster_domain,
    });
    let ensured = pki::store::ensure(&home.pki(), &leaves, SystemTime::now())?;
    if !ensured.made.is_empty() {
        progress.done(&format!("{} keys and certificates made", ensured.made.len()));
    }
    write_kubeconfigs(&layout)?;
    for (name, content) in components::config_files(&layout) {
        replace_file(&home.config().join(name), content.as_bytes())?;
    }
    write_json(&home.control_plane_json(), &layout.control_plane)?;
    write_json(&home.cluster_json(), &layout.cluster)?;
    write_json(&home.cluster_copy(), &layout.cluster)?;
    Ok((layout, held))
}

fn programs(args: &cli::Up, install: &Install) -> Result<Programs> {
    if let Some(dir) = &args.kubernetes_bin {
        let path = dir.canonicalize().with_context(|| format!("--kubernetes-bin {}", dir.display()))?;
        for name in ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "etcd", "coredns"] {
            if !path.join(name).exists() {
                bail!(
                    "--kubernetes-bin {}: no {name} in it (images/control-plane/build.sh --kubernetes-bin DIR adds what is missing)",
                    path.display()
                );
            }
        }
        return Ok(Programs::Folder { path });
    }
    let given = args.image.clone().unwrap_or_else(|| install.image());
    let image = given.canonicalize().with_context(|| {
        format!("control plane image {}: install it, or give --image or --kubernetes-bin", given.display())
    })?;
    let apptainer = which::which("apptainer")
        .context("no apptainer command: load the site's module for it, or give --kubernetes-bin")?;
    Ok(Programs::Image { apptainer, image })
}

/// What nobody can guess.
pub(super) fn random() -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    let source = rustls::crypto::ring::default_provider().secure_random;
    source.fill(&mut bytes).map_err(|_| anyhow::anyhow!("the kernel gives no random bytes"))?;
    Ok(bytes)
}

/// The kubeconfigs of the components, beside their keys, and the user's.
fn write_kubeconfigs(layout: &Layout) -> Result<()> {
    let folder = layout.home.pki();
    let read = |path: &Path| std::fs::read(path).with_context(|| path.display().to_string());
    let ca = read(&names::certificate(&folder, names::CA))?;
    let user = layout.home.kubeconfig();
    let files = [
        (names::ADMIN, user),
        (names::CONTROLLER_MANAGER, names::kubeconfig(&folder, names::CONTROLLER_MANAGER)),
        (names::SCHEDULER, names::kubeconfig(&folder, names::SCHEDULER)),
        (names::COREDNS, names::kubeconfig(&folder, names::COREDNS)),
        (names::KUBELET, names::kubeconfig(&folder, names::KUBELET)),
    ];
    for (name, path) in files {
        let key_path = names::key(&folder, name);
        let key = String::from_utf8(read(&key_path)?)
            .ok()
            .and_then(|pem| kubeconfig::sec1(&rcgen::KeyPair::from_pem(&pem).ok()?))
            .with_context(|| format!("{}: not a key of the curve P-256", key_path.display()))?;
        let text = Kubeconfig {
            server: &layout.cluster.apiserver_url,
            cluster: &layout.cluster.node_name,
            user: name,
            ca: &ca,
            cert: &read(&names::certificate(&folder, name))?,
            key: key.as_bytes(),
        }
        .render();
        replace_file(&path, text.as_bytes())?;
    }
    Ok(())
}
