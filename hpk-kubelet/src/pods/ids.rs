//! Which number the user has in a pod's containers, where the pod says so by annotation, and what of that cannot be had.

use hpk_api::plan::{SandboxPlan, UserIds, VolumePlan};
use hpk_api::subids::SubIds;
use k8s_openapi::api::core::v1::Pod;

/// `root` or `keep`; without it the cluster's setting holds (`hpk up --user-ids`).
pub(crate) const ANNOTATION: &str = "runtime.hpk.io/user-ids";

/// Reason of the events.
pub(crate) const REASON: &str = "UserIds";

/// What the pod asks for; Err: neither of both.
///
/// # Errors
/// The annotation's value.
pub(crate) fn asked(pod: &Pod) -> Result<Option<UserIds>, &str> {
    let value = pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(ANNOTATION));
    value.map(|value| UserIds::parse(value).ok_or(value.as_str())).transpose()
}

/// The user on the login node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Me {
    pub uid: u32,
    pub gid: u32,
    /// None: pods have the user's own id alone.
    pub more: Option<SubIds>,
    /// Whether there are groups beside the own one.
    pub more_groups: bool,
}

impl Me {
    /// Of this process.
    pub(crate) fn look() -> Self {
        Self {
            uid: nix::unistd::getuid().as_raw(),
            gid: nix::unistd::getgid().as_raw(),
            more: hpk_sys::userns::own_subids().filter(|_| hpk_sys::userns::has_mappers()),
            more_groups: hpk_sys::ids::Ids::has_more_groups(),
        }
    }
}

/// Which user of the namespace above the containers' own, where 0 is the user, is `user` in them.
pub(crate) fn above(user_ids: UserIds, me: Me, user: u32) -> u32 {
    match user_ids {
        UserIds::Root => user,
        UserIds::Keep => hpk_sys::ids::Ids::user_above((me.uid, me.gid), user),
    }
}

/// What of a plan cannot be had as it looks, for events.
pub(crate) fn warnings(plan: &SandboxPlan, me: Me) -> Vec<String> {
    let mut list = Vec::new();
    if me.uid != 0 && me.more.is_none() {
        let own = if plan.user_ids == UserIds::Keep { me.uid } else { 0 };
        let others = plan.all().filter(|c| c.security.user_asked && c.security.uid != own);
        for container in others.filter(|c| c.step.is_none()) {
            let uid = container.security.uid;
            list.push(format!(
                "container {} asks for user {uid}, and this account has no subordinate ids (/etc/subuid, /etc/subgid): the pod has \
                 user {own} alone, which is you. {} Or ask the administrator for a range of subordinate ids",
                container.name,
                match (plan.user_ids, uid == me.uid) {
                    (UserIds::Root, true) => format!("Write the annotation {ANNOTATION}: keep, with which you are {uid}."),
                    (UserIds::Keep, _) if uid == 0 => format!("Write the annotation {ANNOTATION}: root, with which you are 0."),
                    _ => "Leave runAsUser out.".to_owned(),
                }
            ));
        }
    } else if me.uid != 0 && plan.user_ids == UserIds::Root {
        let own = plan.all().find(|c| c.security.user_asked && c.security.uid == me.uid);
        let host = |c: &&hpk_api::plan::ContainerPlan| {
            c.mounts.iter().any(|m| matches!(plan.volumes.get(&m.volume), Some(VolumePlan::Host { claim: None, .. })))
        };
        if let Some(container) = own.filter(|c| c.step.is_none()).filter(host) {
            list.push(format!(
                "container {} runs as user {}, which is a subordinate id of yours on the nodes, and has a hostPath: write the \
                 annotation {ANNOTATION}: keep for your own id there",
                container.name, me.uid
            ));
        }
    }
    let host_paths = plan.volumes.values().any(|volume| matches!(volume, VolumePlan::Host { claim: None, .. }));
    let named = plan.fs_group.is_some() || !plan.supplemental_groups.is_empty();
    if host_paths && named && me.more_groups {
        list.push(
            "the pod has a hostPath and names groups (securityContext.fsGroup or supplementalGroups), which take the place of your \
             own groups on the nodes: leave them out where the path is open to a project's group alone"
                .to_owned(),
        );
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;
    use hpk_api::plan::{ContainerPlan, MountPlan, SecurityPlan};
    use serde_json::json;

    #[test]
    fn the_annotation() {
        for (annotations, expected) in [
            (json!({}), Ok(None)),
            (json!({ANNOTATION: "root"}), Ok(Some(UserIds::Root))),
            (json!({ANNOTATION: "keep"}), Ok(Some(UserIds::Keep))),
            (json!({ANNOTATION: "Keep"}), Err("Keep")),
        ] {
            let pod: Pod = serde_json::from_value(json!({"metadata": {"annotations": annotations}})).expect("pod");
            assert_eq!(asked(&pod), expected);
        }
    }

    fn plan(user_ids: UserIds, uid: Option<u32>, host_path: bool, fs_group: Option<u32>) -> SandboxPlan {
        let mount = json!({"volume": "v", "path": "/v"});
        let container = json!({"name": "c", "image": "i", "image_ref": {"folder": "f", "id": "i"}, "argv": ["x"]});
        let plan = json!({"version": 1, "pod": {"namespace": "n", "name": "p", "uid": "u"}, "hostname": "h",
            "restart_policy": "Always", "termination_grace_period_seconds": 30, "network": hpk_api::net::NetworkPlan::default(), "containers": []});
        let mut plan: SandboxPlan = serde_json::from_value(plan).expect("a plan");
        let mut container: ContainerPlan = serde_json::from_value(container).expect("a container");
        container.security =
            SecurityPlan { uid: uid.unwrap_or(0), user_asked: uid.is_some(), ..SecurityPlan::default() };
        if host_path {
            container.mounts = vec![serde_json::from_value::<MountPlan>(mount).expect("a mount")];
            let volume = VolumePlan::Host { index: 0, read_only: false, group: None, claim: None };
            plan.volumes.insert("v".to_owned(), volume);
        }
        plan.containers = vec![container];
        SandboxPlan { user_ids, fs_group, ..plan }
    }

    #[test]
    fn users_by_their_numbers_above() {
        let me = Me { uid: 1000, gid: 1000, ..Me::default() };
        for (user_ids, user, expected) in [
            (UserIds::Root, 1000, 1000),
            (UserIds::Keep, 1000, 0),
            (UserIds::Keep, 0, 1),
            (UserIds::Keep, 33, 34),
            (UserIds::Keep, 1001, 1001),
        ] {
            assert_eq!(above(user_ids, me, user), expected, "{user}");
        }
    }

    #[test]
    fn what_cannot_be_had_is_told_with_a_remedy() {
        use UserIds::{Keep, Root};
        let more = Some(SubIds { uids: (100_000, 65_536), gids: (100_000, 65_536) });
        let alice = Me { uid: 1000, gid: 1000, more, more_groups: true };
        let alone = Me { more: None, more_groups: false, ..alice };
        for (plan, me, part) in [
            (plan(Root, None, true, None), alice, None),
            (plan(Root, Some(1000), false, None), alice, None),
            (plan(Root, Some(33), true, None), alice, None),
            (
                plan(Root, Some(1000), true, None),
                alice,
                Some("a subordinate id of yours on the nodes, and has a hostPath"),
            ),
            (plan(Keep, Some(1000), true, None), alice, None),
            (plan(Root, None, true, Some(5)), alice, Some("take the place of your own groups")),
            (plan(Root, None, false, Some(5)), alice, None),
            (plan(Root, Some(0), true, None), alone, None),
            (plan(Root, Some(1000), true, None), alone, Some("runtime.hpk.io/user-ids: keep, with which you are 1000")),
            (plan(Root, Some(33), false, None), alone, Some("Leave runAsUser out.")),
            (plan(Keep, Some(1000), true, None), alone, None),
            (plan(Keep, Some(0), true, None), alone, Some("runtime.hpk.io/user-ids: root, with which you are 0")),
            (plan(Root, Some(33), true, None), Me::default(), None),
        ] {
            let told = warnings(&plan, me);
            match part {
                None => assert_eq!(told, Vec::<String>::new(), "{plan:?}"),
                Some(part) => assert!(told.len() == 1 && told[0].contains(part), "{told:?}"),
            }
        }
    }
}
