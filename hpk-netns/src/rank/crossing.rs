//! Ranks, and commands beside them, that reach the pods' network: their own process answers for them.

use super::place::Place;
use hpk_api::step;
use hpk_sys::crossing::{Crossing, Desk, Far, Ranges};
use hpk_sys::launch::Security;

/// Has the connections of a command ask the desk. None: they do not; the pod's events say why, and on a further node this
/// process's own words.
pub(super) fn desk(crossing: Option<&step::Crossing>, place: &Place, security: &mut Security) -> Option<Desk> {
    let crossing = crossing?;
    let ranges = Ranges {
        inside: hpk_api::net::ranges(&crossing.ranges).unwrap_or_default(),
        node: hpk_sys::crossing::own_networks(),
    };
    // On the pod's first node its own supervisor or hpk-netns gives sockets out.
    let of_node = place.folder.join(hpk_layout::node::CROSSING_SOCK);
    let path = if of_node.exists() { of_node } else { place.layout.run.join(hpk_layout::node::CROSSING_SOCK) };
    let made = Crossing::new(ranges, Far::new(path)).map_err(|error| error.to_string());
    match made.and_then(|crossing| Desk::new(crossing).map_err(|error| error.to_string())) {
        Ok((desk, post)) => {
            security.crossing = Some(post);
            Some(desk)
        }
        Err(error) => {
            hpk_api::say!("hpk: ranks on this node reach no pod and no Service: {error}");
            None
        }
    }
}
