//! May a container that ended be started again?
//!
//! Upstream: `podutil.ContainerShouldRestart` and `FindMatchingContainerRestartRule` (pkg/api/v1/pod/util.go),
//! and `computeInitContainerActions` for init containers. Container-level rules come first (KEP-5307), then the
//! container's own policy, then the pod's.

use hpk_api::plan::{ContainerPlan, ExitCodeOperator, RestartAction, RestartPolicy};

/// What a container is in its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Runs to its end before the next one starts.
    Init,
    /// Init container with restartPolicy Always (KEP-753).
    Sidecar,
    Main,
    /// Added to a running pod, never restarted.
    Ephemeral,
}

/// Verdict on an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It has ended for good.
    Done,
    /// Start it again, after its back-off.
    Restart,
    /// Start the whole pod again in place (KEP-5532).
    RestartAll,
}

/// Decides by exit code; the pod is not being stopped.
#[must_use]
pub(crate) fn verdict(role: Role, plan: &ContainerPlan, pod: RestartPolicy, exit_code: i32) -> Verdict {
    if role == Role::Ephemeral {
        return Verdict::Done;
    }
    let rule = matching_rule(plan, exit_code);
    if rule == Some(RestartAction::RestartAllContainers) {
        return Verdict::RestartAll;
    }
    let again = match role {
        Role::Sidecar => true,
        // An init container that succeeded is done, whatever a rule or policy says of its code.
        Role::Init if exit_code == 0 => false,
        _ => rule == Some(RestartAction::Restart) || by_policy(plan.restart_policy.unwrap_or(pod), exit_code),
    };
    if again { Verdict::Restart } else { Verdict::Done }
}

/// Is a container that a probe kills meant to come back? Rules are not asked: there is no exit code yet.
#[must_use]
pub(crate) fn comes_back_after_probe(role: Role, plan: &ContainerPlan, pod: RestartPolicy) -> bool {
    match role {
        Role::Sidecar => true,
        Role::Ephemeral => false,
        Role::Init | Role::Main => plan.restart_policy.unwrap_or(pod) != RestartPolicy::Never,
    }
}

fn matching_rule(plan: &ContainerPlan, exit_code: i32) -> Option<RestartAction> {
    plan.restart_rules
        .iter()
        .find(|rule| rule.values.contains(&exit_code) == (rule.operator == ExitCodeOperator::In))
        .map(|rule| rule.action)
}

fn by_policy(policy: RestartPolicy, exit_code: i32) -> bool {
    match policy {
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => exit_code != 0,
        RestartPolicy::Never => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::container;
    use RestartPolicy::{Always, Never, OnFailure};
    use Verdict::{Done, Restart, RestartAll};
    use hpk_api::plan::RestartRule;

    #[test]
    fn pod_and_container_policies() {
        for (role, own, pod, code, expect) in [
            (Role::Main, None, Always, 0, Restart),
            (Role::Main, None, Always, 1, Restart),
            (Role::Main, None, OnFailure, 0, Done),
            (Role::Main, None, OnFailure, 1, Restart),
            (Role::Main, None, Never, 1, Done),
            (Role::Main, Some(Always), Never, 0, Restart),
            (Role::Main, Some(OnFailure), Never, 1, Restart),
            (Role::Main, Some(OnFailure), Always, 0, Done),
            (Role::Main, Some(Never), Always, 1, Done),
            (Role::Init, None, Always, 0, Done),
            (Role::Init, None, Always, 1, Restart),
            (Role::Init, None, OnFailure, 1, Restart),
            (Role::Init, None, Never, 1, Done),
            (Role::Init, Some(OnFailure), Never, 1, Restart),
            (Role::Init, Some(Never), Always, 1, Done),
            (Role::Sidecar, Some(Always), Never, 0, Restart),
            (Role::Sidecar, Some(Always), Never, 1, Restart),
            (Role::Ephemeral, None, Always, 1, Done),
        ] {
            let mut plan = container("c");
            plan.restart_policy = own;
            assert_eq!(verdict(role, &plan, pod, code), expect, "{role:?} {own:?} {pod:?} {code}");
        }
    }

    fn rule(action: RestartAction, operator: ExitCodeOperator, values: &[i32]) -> RestartRule {
        RestartRule { action, operator, values: values.to_vec() }
    }

    #[test]
    fn rules_come_first_and_the_first_match_wins() {
        use ExitCodeOperator::{In, NotIn};
        let again = RestartAction::Restart;
        let all = RestartAction::RestartAllContainers;
        for (rules, role, own, code, expect) in [
            (vec![rule(again, In, &[42])], Role::Main, Never, 42, Restart),
            (vec![rule(again, In, &[42])], Role::Main, Never, 1, Done),
            (vec![rule(again, NotIn, &[42])], Role::Main, Never, 1, Restart),
            (vec![rule(again, NotIn, &[42])], Role::Main, Never, 42, Done),
            (vec![rule(again, In, &[0])], Role::Main, OnFailure, 0, Restart),
            (vec![rule(again, In, &[0])], Role::Init, OnFailure, 0, Done),
            (vec![rule(all, In, &[42])], Role::Main, Never, 42, RestartAll),
            (vec![rule(all, In, &[42])], Role::Sidecar, Always, 42, RestartAll),
            (vec![rule(all, In, &[0])], Role::Init, Never, 0, RestartAll),
            (vec![rule(again, In, &[1]), rule(all, NotIn, &[2])], Role::Main, Never, 1, Restart),
            (vec![rule(again, In, &[1]), rule(all, NotIn, &[2])], Role::Main, Never, 3, RestartAll),
        ] {
            let mut plan = container("c");
            plan.restart_policy = Some(own);
            plan.restart_rules = rules;
            assert_eq!(verdict(role, &plan, Always, code), expect, "{role:?} {own:?} {code} {:?}", plan.restart_rules);
        }
    }

    #[test]
    fn after_a_probe_kill_only_policies_count() {
        for (role, own, pod, expect) in [
            (Role::Main, None, Always, true),
            (Role::Main, None, OnFailure, true),
            (Role::Main, None, Never, false),
            (Role::Main, Some(Never), Always, false),
            (Role::Main, Some(OnFailure), Never, true),
            (Role::Sidecar, Some(Always), Never, true),
        ] {
            let mut plan = container("c");
            plan.restart_policy = own;
            plan.restart_rules = vec![rule(RestartAction::Restart, ExitCodeOperator::NotIn, &[])];
            assert_eq!(comes_back_after_probe(role, &plan, pod), expect, "{role:?} {own:?} {pod:?}");
        }
    }
}
