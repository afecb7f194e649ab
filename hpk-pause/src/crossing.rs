//! Processes of the pod that are in the node's network and reach the pods' all the same (ADR 25).
//!
//! ```text
//!  hostNetwork            containers ask this process (hpk_sys::crossing::Desk), which gets sockets from hpk-netns' outpost
//!  MPI step, own network  ranks ask their hpk-netns rank, which gets sockets from this process: it is in the pod's network
//! ```
//! Each has one thread of its own, which waits for somebody to ask.

use crate::network::Network;
use crate::paths::Paths;
use hpk_api::net::{NetworkMode, NetworkPlan};
use hpk_api::plan::SandboxPlan;
use hpk_api::step;
use hpk_sys::crossing::{Crossing, Desk, Far, Post, Ranges, Unsupported};
use std::io;
use std::os::unix::net::UnixListener;

/// Room for a thread that does no more than read and write a few lines.
const STACK: usize = 128 << 10;

/// Reason of the event.
const REASON: &str = "PodsNotReached";

/// What containers and ranks are given.
#[derive(Debug, Default)]
pub(crate) struct Reach {
    /// For containers in the node's network.
    pub post: Option<Post>,
    /// For ranks.
    pub ranks: Option<step::Crossing>,
}

/// Begins whatever the pod is in need of. What cannot be had is a warning of its network: the pod lives without.
pub(crate) fn begin(plan: &SandboxPlan, paths: &Paths, network: &mut Network) -> Reach {
    let has_step = plan.containers.iter().any(|container| container.step.is_some());
    let mut warn = |who: &str, why: &dyn std::fmt::Display| {
        let text = format!("{who} in the node's network reach no pod, no Service and no name of the cluster: {why}");
        network.warnings.push((REASON.to_owned(), text));
    };
    let mut reach = Reach::default();
    match plan.network.mode {
        NetworkMode::Host if !is_given(&plan.network) => {}
        NetworkMode::Host => match desk(&plan.network, paths) {
            Ok(post) => reach.post = Some(post),
            Err(error) => warn("its containers", &error),
        },
        NetworkMode::Overlay if has_step => {
            match hpk_sys::crossing::check().map(drop).and_then(|()| Ok(give(paths)?)) {
                Ok(()) => {}
                Err(error) => warn("the ranks of its MPI step", &error),
            }
        }
        NetworkMode::Overlay | NetworkMode::Cni => {}
    }
    reach.ranks = ranks(&plan.network).filter(|_| has_step);
    reach
}

/// What ranks are told; each node finds out for itself whether it can.
fn ranks(network: &NetworkPlan) -> Option<step::Crossing> {
    let can = network.mode == NetworkMode::Overlay || network.mode == NetworkMode::Host && is_given(network);
    can.then(|| step::Crossing { ranges: ranges(network) })
}

/// Whether ranks of a step of this pod reach the pods' network on this node.
#[must_use]
pub(crate) fn reaches(network: &NetworkPlan) -> bool {
    ranks(network).is_some() && hpk_sys::crossing::check().is_ok()
}

fn is_given(network: &NetworkPlan) -> bool {
    network.outposts.first().is_some_and(|all| !all.is_empty())
}

fn ranges(network: &NetworkPlan) -> String {
    let both = [&network.pod_cidr, &network.service_cidr];
    both.into_iter().filter(|text| !text.is_empty()).cloned().collect::<Vec<_>>().join(",")
}

/// Answers for containers.
fn desk(network: &NetworkPlan, paths: &Paths) -> Result<Post, Unsupported> {
    let inside = hpk_api::net::ranges(&ranges(network)).unwrap_or_default();
    let ranges = Ranges { inside, node: hpk_sys::crossing::own_networks() };
    let (desk, post) = Desk::new(Crossing::new(ranges, Far::new(paths.crossing()))?)?;
    thread(move || desk.run())?;
    Ok(post)
}

/// Gives sockets of the pod's network to ranks on this node.
fn give(paths: &Paths) -> io::Result<()> {
    let listener = UnixListener::bind(paths.crossing())?;
    thread(move || hpk_sys::crossing::serve(&listener))
}

fn thread(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name("crossing".to_owned()).stack_size(STACK).spawn(work).map(drop)
}
