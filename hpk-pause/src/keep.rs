//! Pods in whose containers the user has the same numbers as on the nodes ([`UserIds::Keep`]), and whose groups a container has.
//!
//! The containers' user namespace has these numbers ([`hpk_sys::ids::Ids::with_own`]); who a container runs as, and which
//! number a group has for the supervisor, which is above it, is decided here.

use hpk_api::plan::{SandboxPlan, SecurityPlan, UserIds};
use hpk_sys::ids::Ids;
use hpk_sys::users::User;

/// The user's numbers in the pod's containers, where they are not 0.
pub(crate) fn own(plan: &SandboxPlan) -> Option<(u32, u32)> {
    // Of root they are.
    (plan.user_ids == UserIds::Keep).then(Ids::outside).flatten().filter(|own| *own != (0, 0))
}

/// Who a container runs as: the user, where neither the pod nor the image names another than root. The user's files are of the
/// user's group, unless the pod names one.
pub(crate) fn user(user: User, asked: &SecurityPlan, own: Option<(u32, u32)>) -> User {
    let Some((uid, gid)) = own else { return user };
    let nobody_named = !asked.user_asked && user.uid == 0;
    let uid = if nobody_named { uid } else { user.uid };
    let own_group = !asked.group_asked && (nobody_named || (Some(uid) == own.map(|own| own.0) && user.gid == 0));
    let groups = if nobody_named { Vec::new() } else { user.groups };
    User { uid, gid: if own_group { gid } else { user.gid }, groups, home: user.home }
}

/// Whether a container has the groups that the user has on the node: those that are set take their place, so only where the pod
/// names none. Groups of the image give root nothing.
pub(crate) fn keeps_groups(plan: &SandboxPlan, user: &User, has_more: bool) -> bool {
    let named = !plan.supplemental_groups.is_empty() || plan.fs_group.is_some();
    has_more && !named && (user.uid == 0 || user.groups.is_empty())
}

/// Which group of the supervisor's namespace is spec.securityContext.fsGroup.
pub(crate) fn fs_group(plan: &SandboxPlan) -> Option<u32> {
    plan.fs_group.map(|group| own(plan).map_or(group, |own| Ids::group_above(own, group)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(uid: u32, gid: u32, groups: &[u32]) -> User {
        User { uid, gid, groups: groups.to_vec(), home: Some("/h".to_owned()) }
    }

    #[test]
    fn who_a_container_runs_as() {
        let asked = |user_asked, group_asked| SecurityPlan { user_asked, group_asked, ..SecurityPlan::default() };
        let own = Some((1000, 1001));
        for (before, security, own, after) in [
            (of(0, 0, &[1, 2]), asked(false, false), None, of(0, 0, &[1, 2])),
            (of(0, 0, &[1, 2]), asked(false, false), own, of(1000, 1001, &[])),
            (of(0, 7, &[]), asked(false, true), own, of(1000, 7, &[])),
            (of(0, 0, &[1]), asked(true, false), own, of(0, 0, &[1])),
            (of(1000, 0, &[]), asked(true, false), own, of(1000, 1001, &[])),
            (of(1000, 0, &[]), asked(true, true), own, of(1000, 0, &[])),
            (of(1000, 50, &[3]), asked(true, false), own, of(1000, 50, &[3])),
            (of(33, 33, &[44]), asked(false, false), own, of(33, 33, &[44])),
            (of(33, 0, &[]), asked(false, false), own, of(33, 0, &[])),
        ] {
            assert_eq!(user(before.clone(), &security, own), after, "{before:?} {security:?}");
        }
    }
}
