//! The kubelet behind its HTTPS API: pods as the controller sees them, supervisors through the link.

use crate::controller::context::Context;
use crate::controller::{PodInfo, Pods};
use crate::pods::tally;
use hpk_link::server::OpenError;
use hpk_server::prometheus::{self, Family};
use hpk_server::{Backend, ConnectError, LoopEnded, NodeStats, SupervisorStream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::watch;

/// What the kubelet API serves from.
pub struct Kubelet {
    ctx: Context,
    pods: watch::Receiver<Pods>,
    started_at: Timestamp,
}

impl Kubelet {
    /// A backend that reads the controller's published pods.
    #[must_use]
    pub fn new(ctx: Context, pods: watch::Receiver<Pods>) -> Self {
        Self { ctx, pods, started_at: Timestamp::now() }
    }

    fn all(&self) -> watch::Ref<'_, Pods> {
        self.pods.borrow()
    }
}

/// Every container has ended and none starts again.
fn has_ended(pod: &PodInfo) -> bool {
    matches!(pod.phase(), Some("Succeeded" | "Failed"))
}

impl Backend for Kubelet {
    async fn pods(&self) -> Vec<Arc<Pod>> {
        self.all().iter().map(|info| info.pod().clone()).collect()
    }

    async fn find_pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        self.all().find(namespace, name).map(|info| info.pod().clone())
    }

    async fn open_supervisor(&self, uid: &str) -> Result<SupervisorStream, ConnectError> {
        Ok(Box::new(self.ctx.links.open_supervisor(uid).await?))
    }

    async fn open_session(&self, uid: &str) -> Result<SupervisorStream, ConnectError> {
        let (job, over) = match self.all().get(uid) {
            Some(info) => (info.job().cloned(), has_ended(info)),
            None => (None, false),
        };
        match (self.ctx.links.open_supervisor(uid).await, job) {
            (Ok(stream), _) => Ok(Box::new(stream)),
            // Its supervisor is gone because its work is done: a step of its job would find nobody, and blame the node.
            (Err(OpenError::NoLink { .. }), _) if over => Err(ConnectError::Ended),
            (Err(OpenError::NoLink { .. }), Some(job)) => {
                let carried = self.ctx.carriers.link(&uid.into(), &job, &self.ctx.home.pod(uid)).await;
                carried.map_err(|error| ConnectError::Carrier(error.into()))?;
                self.open_supervisor(uid).await
            }
            (Err(error), _) => Err(error.into()),
        }
    }

    fn log_folder(&self) -> PathBuf {
        self.ctx.home.log()
    }

    fn pod_folder(&self, uid: &str) -> PathBuf {
        self.ctx.folder(uid).inside()
    }

    async fn node_stats(&self) -> NodeStats {
        NodeStats {
            started_at: Some(self.started_at),
            memory_capacity_bytes: self.ctx.node.borrow().part(None).all.memory_mib << 20,
        }
    }

    async fn metrics(&self) -> String {
        let all = self.all();
        let linked = all.iter().filter(|info| info.is_linked()).count();
        let one = |name, help, value: usize| {
            let mut family = Family::gauge(name, help);
            family.sample(&[], value);
            family
        };
        let mut phases = std::collections::BTreeMap::<String, usize>::new();
        for info in all.iter() {
            let phase = info.phase().unwrap_or("Unknown").to_owned();
            *phases.entry(phase).or_default() += 1;
        }
        let mut by_phase = Family::gauge("hpk_kubelet_pods_by_phase", "Pods by phase.");
        phases.iter().for_each(|(phase, count)| by_phase.sample(&[("phase", phase)], count));
        let mut began = Family::gauge(
            "process_start_time_seconds",
            "[ALPHA] Start time of the process since unix epoch in seconds.",
        );
        began.sample(&[], self.started_at.as_second());
        let own = [
            one("hpk_kubelet_pods", "Pods bound to the node.", all.len()),
            one("hpk_kubelet_links", "Pods whose supervisor is linked.", linked),
            by_phase,
            began,
        ];
        let present = tally::present(all.iter().map(|info| info.pod().as_ref()));
        prometheus::text(own.into_iter().chain(present).chain(all.tally().families()))
    }

    async fn healthy(&self) -> Result<(), LoopEnded> {
        // The controller's end of the channel lives exactly as long as its loop.
        self.pods.has_changed().map(drop).map_err(|_| LoopEnded)
    }

    fn configuration(&self) -> serde_json::Value {
        let config = serde_json::json!({
            "kind": "KubeletConfiguration",
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "port": self.ctx.cluster.kubelet_addr.port(),
            "address": self.ctx.cluster.kubelet_addr.ip(),
            "clusterDomain": self.ctx.cluster.cluster_domain,
            "clusterDNS": [self.ctx.cluster.dns_service_ip],
            "maxPods": 2000,
            "containerLogMaxSize": hpk_api::quantity::format(self.ctx.settings.log_max_bytes),
            "containerLogMaxFiles": self.ctx.settings.log_max_files,
            "nodeLeaseDurationSeconds": 40,
            "nodeStatusUpdateFrequency": "10s",
            "nodeStatusReportFrequency": "5m0s",
            "syncFrequency": "1m0s",
            "enableServer": true,
        });
        serde_json::json!({"kubeletconfig": config})
    }
}
