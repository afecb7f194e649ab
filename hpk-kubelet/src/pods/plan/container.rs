//! The plan of one container. What goes wrong here blocks this container alone.

use super::input::{Image, Input};
use super::{command, mounts, restart, stop_signal};
use crate::pods::{probes, security};
use crate::quantity::amounts;
use crate::render::{env, hosts};
use hpk_api::plan::{Blocked, ContainerPlan, ImageRef, Resources, SecurityPlan, TerminationMessagePolicy, UserIds};
use k8s_openapi::api::core::v1::Container;
use thiserror::Error;

/// The container cannot be made of what its pod says: reason CreateContainerConfigError.
#[derive(Debug, Error)]
enum ConfigError {
    #[error(transparent)]
    Environment(#[from] env::EnvError),
    #[error(transparent)]
    Security(#[from] security::SecurityError),
    #[error(transparent)]
    SubPath(#[from] mounts::SubPathError),
    #[error("no command: neither the container's command nor the image's ENTRYPOINT or CMD is set in {image}")]
    NoCommand { image: String },
}

/// The plan of one container; trouble of its own blocks it.
pub(super) fn container(
    input: &Input<'_>,
    container: &Container,
    warnings: &mut Vec<(&'static str, String)>,
) -> ContainerPlan {
    let mut plan = skeleton(container);
    let image = match input.images.get(&container.name) {
        Some(Ok(image)) => image,
        Some(Err(blocked)) => {
            plan.blocked = Some(blocked.clone());
            return plan;
        }
        None => {
            let message = format!("image {:?} has not been pulled", plan.image);
            plan.blocked = Some(Blocked { reason: "ErrImagePull".to_owned(), message });
            return plan;
        }
    };
    plan.image_ref = image.image_ref.clone();
    if let Err(error) = fill(input, container, image, &mut plan, warnings) {
        plan.blocked = Some(Blocked { reason: "CreateContainerConfigError".to_owned(), message: error.to_string() });
    }
    plan
}

/// What needs no image and cannot fail.
fn skeleton(container: &Container) -> ContainerPlan {
    let resources = container.resources.as_ref();
    ContainerPlan {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        image_ref: ImageRef::default(),
        argv: Vec::new(),
        env: Vec::new(),
        file_keys: Vec::new(),
        working_dir: None,
        mounts: Vec::new(),
        security: SecurityPlan { allow_privilege_escalation: true, ..Default::default() },
        restart_policy: restart::policy(container.restart_policy.as_deref()),
        restart_rules: restart::rules(container),
        probes: probes::probes(container),
        lifecycle: probes::lifecycle(container),
        stop_signal: stop_signal::USUAL,
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        tty: container.tty == Some(true),
        termination_message_path: container
            .termination_message_path
            .clone()
            .filter(|p| !p.is_empty())
            .unwrap_or_else(|| "/dev/termination-log".to_owned()),
        termination_message_policy: match container.termination_message_policy.as_deref() {
            Some("FallbackToLogsOnError") => TerminationMessagePolicy::FallbackToLogsOnError,
            _ => TerminationMessagePolicy::File,
        },
        resources: Resources {
            requests: amounts(resources.and_then(|r| r.requests.as_ref())),
            limits: amounts(resources.and_then(|r| r.limits.as_ref())),
        },
        gpus: None,
        target: None,
        step: None,
        blocked: None,
    }
}

fn fill(
    input: &Input<'_>,
    container: &Container,
    image: &Image,
    plan: &mut ContainerPlan,
    warnings: &mut Vec<(&'static str, String)>,
) -> Result<(), ConfigError> {
    let image_env: Vec<(String, String)> = image
        .config
        .env
        .iter()
        .map(|e| e.split_once('=').unwrap_or((e, "")))
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect();
    let environment = env::environment(input.pod, container, &image_env, input.sources, input.facts)?;
    warnings.extend(environment.warnings.iter().map(|w| ("InvalidEnvironmentVariableNames", w.clone())));
    let keep = input.user_ids() == UserIds::Keep;
    plan.security = security::security(input.pod, container, &image.config.user, keep)?;
    plan.argv = command::argv(container, &image.config, &environment, input.sources);
    if plan.argv.is_empty() {
        return Err(ConfigError::NoCommand { image: plan.image.clone() });
    }
    plan.working_dir = container
        .working_dir
        .clone()
        .filter(|d| !d.is_empty())
        .or_else(|| Some(image.config.working_dir.clone()).filter(|d| !d.is_empty()));
    plan.mounts = mounts::mounts(container, &environment)?;
    plan.stop_signal = stop_signal::of(container, &image.config);
    plan.env = environment.variables;
    plan.file_keys = environment.file_keys;
    if !plan.env.iter().any(|(name, _)| name == "PATH") {
        plan.env.insert(0, ("PATH".to_owned(), DEFAULT_PATH.to_owned()));
    }
    plan.env.retain(|(name, _)| name != "HOSTNAME" || declares(container, "HOSTNAME"));
    if !plan.env.iter().any(|(name, _)| name == "HOSTNAME") {
        let hostname = hosts::hostname(input.pod, &input.cluster.cluster_domain).unwrap_or_default();
        // In the node's network it is the node's name, which the supervisor knows.
        plan.env.extend(Some(("HOSTNAME".to_owned(), hostname)).filter(|(_, name)| !name.is_empty()));
    }
    Ok(())
}

/// What container runtimes set when an image says nothing.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn declares(container: &Container, name: &str) -> bool {
    container.env.iter().flatten().any(|e| e.name == name)
}
