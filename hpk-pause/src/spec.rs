//! From a container's plan to a launch specification: volumes to paths, names to ids, placeholders to addresses.
//!
//! Pure but for two kinds of files. The images' passwd and group files are read by [`users`] before the first start, off
//! the event loop; only a container that comes later has its own read at its start. Files of variables
//! ([`crate::env_files`]) are on the node's own disk, small, and read at each start.

use crate::crossing::Reach;
use crate::env_files::FileValues;
use crate::gpus::{self, Gpus, says};
use crate::paths::Paths;
use hpk_api::plan::{
    ContainerPlan, HOST_IP_PLACEHOLDER, HOST_IPS_PLACEHOLDER, POD_IP_PLACEHOLDER, POD_IPS_PLACEHOLDER, SandboxPlan,
    Seccomp, VolumePlan,
};
use hpk_api::state::ContainerUser;
use hpk_core::LaunchFailure;
use hpk_sys::caps::CapSet;
use hpk_sys::ids::Ids;
use hpk_sys::launch::{LaunchSpec, Mount, PidNamespace, Propagation, Security};
use hpk_sys::seccomp::Filter;
use hpk_sys::users::User;
use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

/// A launch, ready to be made.
#[derive(Clone, Debug)]
pub(crate) struct Prepared {
    /// For the launcher.
    pub spec: LaunchSpec,
    /// For the status.
    pub user: ContainerUser,
    /// The file behind terminationMessagePath.
    pub message_file: PathBuf,
    /// Variables of its environment that are Slurm's word on GPUs. Ranks of an MPI step hear each their own.
    pub by_slurm: Vec<String>,
}

/// Users by image folder and name or number.
pub(crate) type Users = HashMap<(String, String), Result<User, String>>;

/// Who each container of the pod runs as. Blocking: the images are on the shared file system.
#[must_use]
pub(crate) fn users(pod: &SandboxPlan, paths: &Paths) -> Users {
    let all = pod.all();
    all.map(user_key).map(|key| (key.clone(), resolve(paths, &key))).collect()
}

fn user_key(container: &ContainerPlan) -> (String, String) {
    let security = &container.security;
    let asked = security.user_name.clone().unwrap_or_else(|| security.uid.to_string());
    (container.image_ref.folder.clone(), asked)
}

fn resolve(paths: &Paths, (image, user): &(String, String)) -> Result<User, String> {
    hpk_sys::users::resolve(&paths.rootfs(image), user).map_err(|e| e.to_string())
}

/// What specifications of one pod have in common.
#[derive(Debug)]
pub(crate) struct Specs {
    paths: Paths,
    pod_ips: Vec<IpAddr>,
    host_ips: Vec<IpAddr>,
    users: Users,
    seccomp: Option<Arc<Filter>>,
    gpus: Gpus,
    reach: Reach,
}

/// Name in the pod, plan field, file.
const ETC: [(&str, &str); 3] =
    [("/etc/hosts", "hosts"), ("/etc/resolv.conf", "resolv.conf"), ("/etc/hostname", "hostname")];

impl Specs {
    /// Nothing is read yet.
    #[must_use]
    pub(crate) fn new(paths: Paths) -> Self {
        let devices = std::fs::read_dir("/dev").into_iter().flatten().flatten();
        let gpus =
            Gpus::of(|name| std::env::var(name).ok(), devices.filter_map(|entry| entry.file_name().into_string().ok()));
        Self {
            paths,
            pod_ips: Vec::new(),
            host_ips: host_ips(),
            users: HashMap::new(),
            seccomp: None,
            gpus,
            reach: Reach::default(),
        }
    }

    /// The pod's addresses and users are known, and how those in the node's network reach the pods'.
    pub(crate) fn sandbox_made(&mut self, ips: Vec<IpAddr>, users: Users, reach: Reach) {
        self.pod_ips = ips;
        self.users = users;
        self.reach = reach;
    }

    /// For the ranks of a step.
    #[must_use]
    pub(crate) fn crossing_of_ranks(&self) -> Option<&hpk_api::step::Crossing> {
        self.reach.ranks.as_ref()
    }

    /// The compute node's addresses are these.
    pub(crate) fn host_is(&mut self, ips: Vec<IpAddr>) {
        self.host_ips = ips;
    }

    /// Addresses of the pod.
    #[must_use]
    pub(crate) fn pod_ips(&self) -> &[IpAddr] {
        &self.pod_ips
    }

    /// Resolves one container.
    ///
    /// # Errors
    /// The kubelet's words for what cannot be.
    pub(crate) fn prepare(
        &mut self,
        pod: &SandboxPlan,
        container: &ContainerPlan,
        instance: u32,
        pid: PidNamespace,
    ) -> Result<Prepared, LaunchFailure> {
        if container.argv.is_empty() {
            return Err(LaunchFailure::Create("no command specified".to_owned()));
        }
        let user = self.user(pod, container)?;
        let security = self.security(pod, container, &user)?;
        let folder = self.paths.instance(&container.name, instance);
        let message_file = folder.join("termination-log");
        let writable = folder.join("rw");
        let share = gpus::shares(pod).remove(&container.name);
        let seen = self.gpus.seen(share.as_ref());
        let files = FileValues::read(&container.file_keys, &self.paths)
            .map_err(|error| LaunchFailure::Config(error.to_string()))?;
        let fill = |text: &str| files.fill(self.fill(text));
        let by_slurm = seen.env.iter().map(|(name, _)| name).filter(|name| !says(container, name)).cloned().collect();
        let spec = LaunchSpec {
            name: container.name.clone(),
            rootfs: self.paths.rootfs(&container.image_ref.folder),
            upper: writable,
            argv: container.argv.iter().map(|a| fill(a)).collect(),
            env: self.env(pod, container, &files, seen.env),
            working_dir: container.working_dir.as_deref().map(|dir| self.fill(dir)),
            mounts: self.mounts(pod, container, &files, &message_file)?,
            shown: Vec::new(),
            hidden_devices: seen.hidden,
            shm: Some(self.paths.shm()),
            security,
            pid,
            stdin: container.stdin,
            tty: container.tty,
            rlimits: Vec::new(),
            oom_score_adj: Some(oom_score_adj(container)),
            keeper: None,
            identity: crate::keep::own(pod),
        };
        // Runtimes tell the primary group among the others, first.
        let groups = std::iter::once(spec.security.gid).chain(spec.security.groups.iter().copied()).collect();
        let user = ContainerUser { uid: spec.security.uid, gid: spec.security.gid, groups };
        Ok(Prepared { spec, user, message_file, by_slurm })
    }

    /// The container's own, and what Slurm says of its GPUs (`gpus`) where it does not say so itself ([`says`]). A pod in the node's network has the node's name.
    fn env(
        &self,
        pod: &SandboxPlan,
        container: &ContainerPlan,
        files: &FileValues,
        gpus: Vec<(String, String)>,
    ) -> Vec<(String, String)> {
        let counts = |name: &str| says(container, name) || !gpus.iter().any(|(slurm, _)| slurm == name);
        let own = container.env.iter().filter(|(k, v)| counts(k) && !files.leaves_out(v));
        let own = own.map(|(k, v)| (k.clone(), files.fill(self.fill(v))));
        let own: Vec<(String, String)> = own.collect();
        let free = |name: &str| !own.iter().any(|(own, _)| own == name);
        let name = (pod.hostname.is_empty() && free("HOSTNAME")).then(nix::unistd::gethostname).and_then(Result::ok);
        let name = name.map(|name| ("HOSTNAME".to_owned(), name.to_string_lossy().into_owned()));
        let more: Vec<(String, String)> = gpus.into_iter().filter(|(name, _)| free(name)).chain(name).collect();
        own.into_iter().chain(more).collect()
    }

    /// Puts the pod's addresses where the plan could not know them.
    #[must_use]
    pub(crate) fn fill(&self, text: &str) -> String {
        fill(text, &self.pod_ips, &self.host_ips)
    }

    fn user(&mut self, pod: &SandboxPlan, container: &ContainerPlan) -> Result<User, LaunchFailure> {
        let security = &container.security;
        let paths = &self.paths;
        let resolved = self.users.entry(user_key(container)).or_insert_with_key(|key| resolve(paths, key));
        let mut user = resolved.clone().map_err(LaunchFailure::Create)?;
        if security.user_name.is_none() {
            user.uid = security.uid;
            user.gid = security.gid;
        }
        let user = crate::keep::user(user, security, crate::keep::own(pod));
        if security.non_root && user.uid == 0 {
            let of = format!("{}_{}({})", pod.pod.name, pod.pod.namespace, pod.pod.uid);
            return Err(LaunchFailure::Config(format!(
                "container has runAsNonRoot and image will run as root (pod: {of:?}, container: {})",
                container.name
            )));
        }
        Ok(user)
    }

    fn security(
        &mut self,
        pod: &SandboxPlan,
        container: &ContainerPlan,
        user: &User,
    ) -> Result<Security, LaunchFailure> {
        let plan = &container.security;
        let caps = if plan.privileged {
            CapSet::all()
        } else {
            CapSet::resolve(&plan.cap_add, &plan.cap_drop).map_err(|e| LaunchFailure::Config(e.to_string()))?
        };
        let keep_groups = crate::keep::keeps_groups(pod, user, Ids::has_more_groups());
        let mut groups = if keep_groups { Vec::new() } else { user.groups.clone() };
        groups.extend(&pod.supplemental_groups);
        groups.extend(pod.fs_group);
        groups.sort_unstable();
        groups.dedup();
        groups.retain(|&g| g != user.gid);
        let seccomp = match plan.seccomp {
            Seccomp::RuntimeDefault if !plan.privileged => Some(self.filter()?),
            Seccomp::RuntimeDefault | Seccomp::Unconfined => None,
        };
        Ok(Security {
            uid: user.uid,
            gid: user.gid,
            groups,
            keep_groups,
            home: user.home.clone(),
            caps,
            no_new_privs: !plan.allow_privilege_escalation,
            seccomp,
            crossing: self.reach.post.clone(),
            read_only_rootfs: plan.read_only_rootfs,
            unmasked: plan.privileged || plan.unmasked_proc,
            writable_sys: plan.privileged,
        })
    }

    fn filter(&mut self) -> Result<Arc<Filter>, LaunchFailure> {
        if let Some(filter) = &self.seccomp {
            return Ok(Arc::clone(filter));
        }
        let filter = hpk_sys::seccomp::runtime_default().map_err(|e| {
            LaunchFailure::Config(format!(
                "securityContext.seccompProfile: RuntimeDefault cannot be had on this node: {e}"
            ))
        })?;
        Ok(Arc::clone(self.seccomp.insert(Arc::new(filter))))
    }

    fn mounts(
        &self,
        pod: &SandboxPlan,
        container: &ContainerPlan,
        files: &FileValues,
        message_file: &std::path::Path,
    ) -> Result<Vec<Mount>, LaunchFailure> {
        let mut mounts = Vec::with_capacity(container.mounts.len() + 4);
        for mount in &container.mounts {
            let volume = pod.volumes.get(&mount.volume).ok_or_else(|| {
                LaunchFailure::Config(format!("volumeMounts {}: there is no volume {:?}", mount.path, mount.volume))
            })?;
            let (source, read_only) = self.source(&mount.volume, volume);
            mounts.push(Mount {
                sub_path: mount.sub_path.as_deref().filter(|p| !p.is_empty()).map(|p| files.fill(self.fill(p))),
                read_only: mount.read_only || read_only,
                recursive_read_only: mount.recursive_read_only,
                propagation: match mount.propagation.as_deref() {
                    Some("HostToContainer") => Propagation::Slave,
                    Some("Bidirectional") => Propagation::Shared,
                    _ => Propagation::Private,
                },
                ..Mount::new(source, self.fill(&mount.path))
            });
        }
        let free = |path: &str| !container.mounts.iter().any(|m| m.path == path);
        for (path, file) in ETC {
            let known = match file {
                "hosts" => pod.etc_hosts.is_some(),
                _ => true,
            };
            if known && free(path) {
                let source = match (&container.step, path) {
                    (Some(_), "/etc/hosts" | "/etc/resolv.conf") => self.paths.step_etc(file),
                    _ => self.paths.etc(file),
                };
                let read_only = container.security.read_only_rootfs;
                mounts.push(Mount { read_only, ..Mount::new(source, path) });
            }
        }
        let target = &container.termination_message_path;
        if !target.is_empty() && free(target) {
            mounts.push(Mount { create_file: Some(0o666), ..Mount::new(message_file, target.clone()) });
        }
        Ok(mounts)
    }

    /// Where a volume is, and whether it is read-only by its kind.
    fn source(&self, name: &str, volume: &VolumePlan) -> (PathBuf, bool) {
        match volume {
            VolumePlan::EmptyDir { .. } => (self.paths.empty_dir(name), false),
            VolumePlan::Kubelet { folder, read_only } => (self.paths.kubelet_volume(folder), *read_only),
            VolumePlan::Host { index, read_only, .. } => (self.paths.host.join(index.to_string()), *read_only),
            VolumePlan::Image { image_ref } => (self.paths.rootfs(&image_ref.folder), true),
        }
    }
}

/// The compute node's addresses, at most one of each family: hpk-netns has found them, and nothing that a pod can do changes them.
#[must_use]
pub(crate) fn host_ips() -> Vec<IpAddr> {
    let told = std::env::var("HPK_HOST_IPS").unwrap_or_default();
    told.split(',').filter_map(|ip| ip.parse().ok()).collect()
}

/// Replaces the placeholders of the plan.
#[must_use]
pub(crate) fn fill(text: &str, pod_ips: &[IpAddr], host_ips: &[IpAddr]) -> String {
    if !text.contains('\0') {
        return text.to_owned();
    }
    let first = |ips: &[IpAddr]| ips.first().map(ToString::to_string).unwrap_or_default();
    let all = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let text = text.replace(POD_IPS_PLACEHOLDER, &all(pod_ips)).replace(POD_IP_PLACEHOLDER, &first(pod_ips));
    text.replace(HOST_IPS_PLACEHOLDER, &all(host_ips)).replace(HOST_IP_PLACEHOLDER, &first(host_ips))
}

/// By QoS as upstream, as far as an ordinary user can: values below the job's own cannot be had, and the supervisor is
/// to outlive its containers, so that somebody can tell of their end.
fn oom_score_adj(container: &ContainerPlan) -> i32 {
    let r = &container.resources;
    match (r.requests.get("memory"), r.limits.get("memory")) {
        (None, None) if r.requests.is_empty() && r.limits.is_empty() => 1000,
        (Some(request), Some(limit)) if request == limit => 100,
        _ => 500,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_become_addresses() {
        let ips: Vec<IpAddr> = vec!["10.244.0.7".parse().unwrap(), "fd00::7".parse().unwrap()];
        assert_eq!(fill("plain", &ips, &[]), "plain");
        assert_eq!(fill(&format!("http://{POD_IP_PLACEHOLDER}:80"), &ips, &[]), "http://10.244.0.7:80");
        assert_eq!(fill(POD_IPS_PLACEHOLDER, &ips, &[]), "10.244.0.7,fd00::7");
        assert_eq!(fill(POD_IP_PLACEHOLDER, &[], &[]), "");
        let host: Vec<IpAddr> = vec!["10.77.0.11".parse().unwrap(), "fd00:77::11".parse().unwrap()];
        assert_eq!(fill(&format!("{HOST_IP_PLACEHOLDER}:8125"), &ips, &host), "10.77.0.11:8125");
        assert_eq!(fill(HOST_IPS_PLACEHOLDER, &ips, &host), "10.77.0.11,fd00:77::11");
        assert_eq!(fill(HOST_IPS_PLACEHOLDER, &ips, &[]), "");
    }
}
