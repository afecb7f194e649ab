//! When a pod or a container is restarted: `restartPolicy` and `restartPolicyRules`.

use hpk_api::plan::{ExitCodeOperator, RestartAction, RestartPolicy, RestartRule};
use k8s_openapi::api::core::v1::Container;

/// `Always`, `OnFailure`, `Never`.
#[must_use]
pub(super) fn policy(text: Option<&str>) -> Option<RestartPolicy> {
    match text {
        Some("Always") => Some(RestartPolicy::Always),
        Some("OnFailure") => Some(RestartPolicy::OnFailure),
        Some("Never") => Some(RestartPolicy::Never),
        _ => None,
    }
}

pub(super) fn rules(container: &Container) -> Vec<RestartRule> {
    let given = container.restart_policy_rules.iter().flatten();
    given
        .filter_map(|rule| {
            let codes = rule.exit_codes.as_ref()?;
            Some(RestartRule {
                action: match rule.action.as_str() {
                    "Restart" => RestartAction::Restart,
                    "RestartAllContainers" => RestartAction::RestartAllContainers,
                    _ => return None,
                },
                operator: match codes.operator.as_str() {
                    "In" => ExitCodeOperator::In,
                    "NotIn" => ExitCodeOperator::NotIn,
                    _ => return None,
                },
                values: codes.values.clone().unwrap_or_default(),
            })
        })
        .collect()
}
