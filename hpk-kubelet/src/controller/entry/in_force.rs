//! What a pod's job was begun with and what its supervisor was told since: plan, images, ephemeral containers.

use crate::pods::plan::Image;
use hpk_api::net::NetworkMode;
use hpk_api::plan::SandboxPlan;
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub(crate) struct InForce {
    plan: Option<Box<SandboxPlan>>,
    /// By container.
    images: BTreeMap<String, Image>,
    /// Ephemeral containers that the supervisor was told of.
    told: Vec<String>,
}

impl InForce {
    /// None: there is no job, or an earlier kubelet's plan has not been read.
    pub(crate) fn plan(&self) -> Option<&SandboxPlan> {
        self.plan.as_deref()
    }

    /// Its network, as its job was begun.
    pub(crate) fn network_mode(&self) -> Option<NetworkMode> {
        self.plan.as_ref().map(|plan| plan.network.mode)
    }

    pub(crate) fn images(&self) -> &BTreeMap<String, Image> {
        &self.images
    }

    pub(crate) fn told(&self) -> &[String] {
        &self.told
    }

    /// A job begins with these, or an earlier kubelet began one with them.
    pub(crate) fn begin(&mut self, plan: Option<Box<SandboxPlan>>, images: BTreeMap<String, Image>) {
        self.plan = plan;
        self.images = images;
    }

    /// The supervisor knows these ephemeral containers, whoever told it.
    pub(crate) fn tell(&mut self, ephemeral: impl IntoIterator<Item = String>) {
        self.told.extend(ephemeral);
    }

    /// The supervisor was told of what has changed; `plan`: the new one, where it differs.
    pub(crate) fn change(&mut self, plan: Option<Box<SandboxPlan>>, images: BTreeMap<String, Image>) {
        if plan.is_some() {
            self.plan = plan;
        }
        self.images = images;
    }
}
