//! What the plan of a pod is made of.

use crate::pods::ids;
use crate::render::downward::Facts;
use crate::render::resolv;
use crate::render::sources::Sources;
use hpk_api::cluster::ClusterConfig;
use hpk_api::net::NetworkPlan;
use hpk_api::plan::{Blocked, ImageRef, PodRef, Settings, UserIds};
use hpk_images::ImageConfig;
use k8s_openapi::api::core::v1::Pod;
use std::collections::BTreeMap;

/// An image in the store, with the part of its configuration that a container needs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Image {
    /// Where it is.
    pub image_ref: ImageRef,
    /// ENTRYPOINT, CMD, ENV, USER, …
    pub config: ImageConfig,
}

/// Everything that a plan is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Input<'a> {
    pub pod: &'a Pod,
    pub who: &'a PodRef,
    /// Objects that it refers to.
    pub sources: &'a Sources,
    /// By container name; Err: the image cannot be had now.
    pub images: &'a BTreeMap<String, Result<Image, Blocked>>,
    /// By volume name: volumes of kind image.
    pub volume_images: &'a BTreeMap<String, ImageRef>,
    /// Addresses and sizes.
    pub facts: &'a Facts,
    pub network: &'a NetworkPlan,
    pub cluster: &'a ClusterConfig,
    /// The node's resolv.conf.
    pub node_resolv: &'a resolv::Resolv,
    /// The node's hosts file, for pods in the node's network.
    pub node_hosts: &'a str,
    /// The login node's /proc/self/mountinfo.
    pub mounts: &'a str,
    /// Whose jobs pods are.
    pub me: ids::Me,
    /// Site-wide numbers.
    pub settings: &'a Settings,
}

impl Input<'_> {
    /// As the pod or the cluster has it; a word that is none has been refused before.
    pub(super) fn user_ids(&self) -> UserIds {
        ids::asked(self.pod).ok().flatten().unwrap_or(self.cluster.user_ids)
    }
}
