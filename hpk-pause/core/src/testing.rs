//! Plans for tests.

use hpk_api::net::NetworkPlan;
use hpk_api::plan::{ContainerPlan, PodRef, RestartPolicy, SandboxPlan};

/// A container with every field at its default.
pub(crate) fn container(name: &str) -> ContainerPlan {
    ContainerPlan {
        name: name.to_owned(),
        image: "busybox:1".to_owned(),
        image_ref: hpk_api::plan::ImageRef::default(),
        argv: vec!["/bin/true".to_owned()],
        env: Vec::new(),
        file_keys: Vec::new(),
        working_dir: None,
        mounts: Vec::new(),
        security: hpk_api::plan::SecurityPlan::default(),
        gpus: None,
        restart_policy: None,
        restart_rules: Vec::new(),
        probes: hpk_api::probe::Probes::default(),
        lifecycle: hpk_api::probe::Lifecycle::default(),
        stop_signal: 15,
        stdin: false,
        stdin_once: false,
        tty: false,
        termination_message_path: "/dev/termination-log".to_owned(),
        termination_message_policy: hpk_api::plan::TerminationMessagePolicy::File,
        resources: hpk_api::plan::Resources::default(),
        target: None,
        step: None,
        blocked: None,
    }
}

/// A pod of these containers.
pub(crate) fn pod(policy: RestartPolicy, init: Vec<ContainerPlan>, main: Vec<ContainerPlan>) -> SandboxPlan {
    SandboxPlan {
        version: hpk_api::VERSION,
        pod: PodRef { namespace: "ns".to_owned(), name: "p".to_owned(), uid: "u-1".to_owned() },
        hostname: "p".to_owned(),
        restart_policy: policy,
        user_ids: hpk_api::plan::UserIds::default(),
        termination_grace_period_seconds: 30,
        active_deadline_seconds: None,
        share_process_namespace: false,
        network: NetworkPlan::default(),
        init_containers: init,
        containers: main,
        volumes: std::collections::BTreeMap::new(),
        host_binds: Vec::new(),
        etc_hosts: None,
        resolv_conf: None,
        sysctls: std::collections::BTreeMap::new(),
        supplemental_groups: Vec::new(),
        fs_group: None,
        settings: hpk_api::plan::Settings::default(),
    }
}
