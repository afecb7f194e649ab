//! Limits of local storage: emptyDir's sizeLimit and the containers' limits of ephemeral-storage. Pure.
//!
//! Upstream measures every ten seconds and evicts (kubelet/eviction, `localStorageEviction`); order and texts are its own.
//! An ordinary user has no project quota, so this is what can be had here too; only a tmpfs is limited by the kernel.

use hpk_api::control::VolumeStats;
use hpk_api::plan::{ContainerPlan, RestartPolicy, SandboxPlan, VolumePlan};
use hpk_api::quantity;
use std::collections::BTreeMap;

/// Seconds that an evicted pod is given (`immediateEvictionGracePeriodSeconds`).
pub const EVICTION_GRACE_SECONDS: u32 = 1;

const RESOURCE: &str = "ephemeral-storage";

/// What a pod has on disk, bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StorageUse {
    /// emptyDir volumes on disk, by name.
    pub volumes: BTreeMap<String, u64>,
    /// By container name.
    pub containers: BTreeMap<String, ContainerUse>,
    /// Volumes of claims, which are not on the node's disk and count for no limit.
    pub claims: Vec<VolumeStats>,
}

/// What a container has on disk, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ContainerUse {
    /// Its writable layer.
    pub rootfs: u64,
    /// Its logs, rotated ones too.
    pub logs: u64,
}

impl ContainerUse {
    fn total(self) -> u64 {
        self.rootfs + self.logs
    }
}

impl StorageUse {
    fn total(&self) -> u64 {
        self.volumes.values().sum::<u64>() + self.containers.values().map(|used| used.total()).sum::<u64>()
    }
}

/// The limits of one pod, bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StorageLimits {
    volumes: Vec<(String, u64)>,
    pod: Option<u64>,
    containers: Vec<(String, u64)>,
}

impl StorageLimits {
    /// None: the pod has none, and need not be measured.
    #[must_use]
    pub fn of(plan: &SandboxPlan) -> Option<Self> {
        let volumes = plan.volumes.iter().filter_map(|(name, volume)| match volume {
            VolumePlan::EmptyDir { memory: false, size_limit, .. } => Some((name.clone(), (*size_limit)?)),
            _ => None,
        });
        let limit = |container: &ContainerPlan| container.resources.limits.get(RESOURCE).copied().filter(|n| *n > 0);
        let sidecar = |container: &&ContainerPlan| container.restart_policy == Some(RestartPolicy::Always);
        let lasting = plan.init_containers.iter().filter(sidecar).chain(&plan.containers);
        let containers: Vec<_> = lasting.filter_map(|c| Some((c.name.clone(), limit(c)?))).collect();
        // As the scheduler sums a pod up: the containers together, or the largest init container with the sidecars before it.
        let sum = containers.iter().map(|(_, bytes)| bytes).sum::<u64>();
        let mut sidecars = 0;
        let mut largest = sum;
        for container in &plan.init_containers {
            let own = limit(container).unwrap_or(0);
            largest = largest.max(sidecars + own);
            sidecars += if sidecar(&container) { own } else { 0 };
        }
        let limits = Self { volumes: volumes.collect(), pod: (largest > 0).then_some(largest), containers };
        (limits != Self::default()).then_some(limits)
    }

    /// Upstream's message when a limit is exceeded.
    #[must_use]
    pub fn exceeded(&self, used: &StorageUse) -> Option<String> {
        let over = |used: Option<u64>, limit: u64| used.is_some_and(|used| used > limit);
        for (name, limit) in &self.volumes {
            if over(used.volumes.get(name).copied(), *limit) {
                return Some(format!(
                    "Usage of EmptyDir volume {name:?} exceeds the limit {:?}. ",
                    quantity::format(*limit)
                ));
            }
        }
        if let Some(limit) = self.pod.filter(|limit| used.total() > *limit) {
            return Some(format!(
                "Pod ephemeral local storage usage exceeds the total limit of containers {}. ",
                quantity::format(limit)
            ));
        }
        self.containers.iter().find(|(name, limit)| over(used.containers.get(name).map(|u| u.total()), *limit)).map(
            |(name, limit)| {
                format!("Container {name} exceeded its local ephemeral storage limit {:?}. ", quantity::format(*limit))
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(extra: serde_json::Value) -> SandboxPlan {
        let mut plan = serde_json::json!({
            "version": 1, "pod": {"namespace": "d", "name": "p", "uid": "u"}, "hostname": "p",
            "restart_policy": "Always", "termination_grace_period_seconds": 30, "network": {"mode": "overlay"},
            "containers": [],
        });
        if let (Some(plan), serde_json::Value::Object(extra)) = (plan.as_object_mut(), extra) {
            plan.extend(extra);
        }
        serde_json::from_value(plan).expect("a plan")
    }

    fn container(name: &str, limit: u64, policy: Option<&str>) -> serde_json::Value {
        serde_json::json!({"name": name, "image": "i", "image_ref": {"folder": "f", "id": "i"}, "argv": ["a"],
            "restart_policy": policy, "resources": {"limits": {RESOURCE: limit}}})
    }

    fn used(volume: u64, a: u64, b: u64) -> StorageUse {
        let of = |rootfs| ContainerUse { rootfs, logs: 5 };
        StorageUse {
            volumes: [("v".to_owned(), volume)].into(),
            containers: [("a".to_owned(), of(a)), ("b".to_owned(), of(b))].into(),
            claims: Vec::new(),
        }
    }

    #[test]
    fn a_pod_without_limits_is_not_measured() {
        assert_eq!(StorageLimits::of(&plan(serde_json::json!({}))), None);
        let memory = serde_json::json!({"volumes": {"v": {"kind": "empty_dir", "memory": true, "size_limit": 1}}});
        assert_eq!(StorageLimits::of(&plan(memory)), None, "the kernel limits a tmpfs");
    }

    #[test]
    fn volumes_come_before_the_pod_and_the_pod_before_containers() {
        let limits = StorageLimits::of(&plan(serde_json::json!({
            "volumes": {"v": {"kind": "empty_dir", "size_limit": 5 << 20}},
            "containers": [container("a", 1000, None), container("b", 1 << 20, None)],
        })));
        let limits = limits.expect("limits");
        assert_eq!(limits.exceeded(&used(0, 995, 0)), None);
        let of = |used| limits.exceeded(&used).expect("too much");
        assert_eq!(of(used((5 << 20) + 1, 9999, 0)), "Usage of EmptyDir volume \"v\" exceeds the limit \"5Mi\". ");
        assert_eq!(
            of(used(1 << 20, 996, 0)),
            "Pod ephemeral local storage usage exceeds the total limit of containers 1049576. "
        );
        assert_eq!(of(used(0, 996, 0)), "Container a exceeded its local ephemeral storage limit \"1k\". ");
    }

    #[test]
    fn a_large_init_container_raises_the_pods_limit() {
        let limits = StorageLimits::of(&plan(serde_json::json!({
            "init_containers": [container("side", 100, Some("Always")), container("init", 1000, None)],
            "containers": [container("a", 500, None)],
        })));
        let limits = limits.expect("limits");
        assert_eq!(limits.pod, Some(1100));
        assert_eq!(limits.containers, [("side".to_owned(), 100), ("a".to_owned(), 500)]);
    }
}
