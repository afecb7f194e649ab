use super::*;
use crate::render::downward::Facts;
use crate::render::sources::Sources;
use hpk_api::cluster::ClusterConfig;
use hpk_api::net::NetworkPlan;
use hpk_api::plan::{Blocked, ImageRef, PodRef, RestartPolicy, VolumePlan};
use hpk_images::ImageConfig;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

pub(crate) fn cluster() -> ClusterConfig {
    serde_json::from_value(json!({"version": 1, "cluster_name": "site", "node_name": "hpk-site", "node_ip": "10.77.0.1",
        "apiserver_url": "https://10.77.0.1:6443", "service_cidr": "10.96.0.0/16", "apiserver_service_ip": "10.96.0.1",
        "dns_service_ip": "10.96.0.10", "dns_addr": "10.77.0.1:5353", "pod_cidr": "10.244.0.0/16", "cluster_domain": "cluster.local",
        "link_addr": "10.77.0.1:7000", "kubelet_addr": "10.77.0.1:10250", "pki_dir": "/x"}))
    .expect("cluster")
}

fn image() -> Image {
    Image {
        image_ref: ImageRef { folder: "sha256-0".into(), id: "busybox@sha256:0".into() },
        config: ImageConfig {
            entrypoint: vec!["/entry".into()],
            cmd: vec!["default".into()],
            env: vec!["PATH=/image/bin".into(), "IMG=1".into()],
            working_dir: "/srv".into(),
            stop_signal: Some("SIGQUIT".into()),
            ..ImageConfig::default()
        },
    }
}

fn make(spec: serde_json::Value) -> Result<Planned, PlanError> {
    let pod: Pod =
        serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns", "uid": "u"}, "spec": spec}))
            .expect("pod");
    let who = PodRef { namespace: "ns".into(), name: "p".into(), uid: "u".into() };
    let names = |list: &[Container]| list.iter().map(|c| c.name.clone()).collect::<Vec<_>>();
    let spec = pod.spec.as_ref().expect("spec");
    let mut all = names(&spec.containers);
    all.extend(names(spec.init_containers.as_deref().unwrap_or_default()));
    let images = all
        .into_iter()
        .map(|n| {
            let blocked = Blocked { reason: "ErrImagePull".into(), message: "no".into() };
            let image = if n.starts_with("bad") { Err(blocked) } else { Ok(image()) };
            (n, image)
        })
        .collect();
    plan(Input {
        pod: &pod,
        who: &who,
        sources: &Sources::default(),
        images: &images,
        volume_images: &BTreeMap::new(),
        facts: &Facts { pod_ips: vec!["10.244.0.9".into()], ..Facts::default() },
        network: &NetworkPlan { pod_ips: vec!["10.244.0.9".parse().expect("ip")], ..NetworkPlan::default() },
        cluster: &cluster(),
        node_resolv: &resolv::Resolv::default(),
        node_hosts: "",
        mounts: "",
        me: ids::Me::default(),
        settings: &Settings::default(),
    })
}

#[test]
fn command_rules() {
    for (container, argv) in [
        (json!({}), vec!["/entry", "default"]),
        (json!({"args": ["x"]}), vec!["/entry", "x"]),
        (json!({"command": ["c"]}), vec!["c"]),
        (json!({"command": ["c"], "args": ["x"]}), vec!["c", "x"]),
        (
            json!({"command": ["$(A)"], "args": ["$(IMG)", "$$(A)"], "env": [{"name": "A", "value": "v"}]}),
            vec!["v", "$(IMG)", "$(A)"],
        ),
    ] {
        let mut value = json!({"name": "c"});
        value.as_object_mut().expect("map").extend(container.as_object().expect("map").clone());
        let planned = make(json!({"containers": [value]})).expect("plan");
        assert_eq!(planned.plan.containers[0].argv, argv, "{container}");
        assert_eq!(planned.plan.containers[0].blocked, None);
    }
}

#[test]
fn whole_plan() {
    let planned = make(json!({
        "restartPolicy": "OnFailure", "terminationGracePeriodSeconds": 5, "hostname": "h",
        "securityContext": {"fsGroup": 7, "supplementalGroups": [8]},
        "initContainers": [{"name": "s", "restartPolicy": "Always"}],
        "containers": [{"name": "c", "volumeMounts": [
            {"name": "d", "mountPath": "/a/b/c", "subPathExpr": "$(POD)/x"}, {"name": "h", "mountPath": "/a", "readOnly": true}],
            "env": [{"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            "lifecycle": {"stopSignal": "SIGUSR1"}}],
        "volumes": [{"name": "d", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}, {"name": "h", "hostPath": {"path": "/data", "type": "Directory"}},
            {"name": "l", "downwardAPI": {"items": [{"path": "ip", "fieldRef": {"fieldPath": "metadata.name"}}]}}],
    }))
    .expect("plan");
    let plan = &planned.plan;
    assert_eq!(plan.hostname, "h");
    assert_eq!(
        (plan.fs_group, plan.supplemental_groups.as_slice(), plan.termination_grace_period_seconds),
        (Some(7), &[8][..], 5)
    );
    assert_eq!(plan.init_containers[0].restart_policy, Some(RestartPolicy::Always));
    let c = &plan.containers[0];
    let paths: Vec<_> = c.mounts.iter().map(|m| (m.path.as_str(), m.sub_path.as_deref(), m.read_only)).collect();
    assert_eq!(paths, [("/a", None, true), ("/a/b/c", Some("p/x"), false)], "outer mounts first");
    assert_eq!((c.stop_signal, c.working_dir.as_deref()), (10, Some("/srv")));
    assert_eq!(plan.init_containers[0].stop_signal, 3);
    assert_eq!(plan.volumes["d"], VolumePlan::EmptyDir { memory: true, shared: false, size_limit: Some(1 << 20) });
    assert_eq!(plan.volumes["h"], VolumePlan::Host { index: 0, read_only: false, group: None, claim: None });
    assert_eq!(plan.host_binds[0].kind, "Directory");
    assert_eq!(planned.payloads["l"]["ip"].data, b"p");
    assert!(plan.etc_hosts.as_deref().expect("hosts").contains("10.244.0.9\th\n"));
    assert!(plan.resolv_conf.as_deref().expect("resolv").contains("nameserver 10.96.0.10"));
}

#[test]
fn trouble_of_one_container_blocks_it_alone() {
    let planned = make(json!({"containers": [{"name": "bad"}, {"name": "c", "env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}, {"name": "ok"}]})).expect("plan");
    let reasons: Vec<_> =
        planned.plan.containers.iter().map(|c| c.blocked.as_ref().map(|b| b.reason.as_str())).collect();
    assert_eq!(reasons, [Some("ErrImagePull"), Some("CreateContainerConfigError"), None]);
    assert!(can_begin(&planned.plan));
    let blocked = make(json!({"initContainers": [{"name": "bad"}], "containers": [{"name": "ok"}]})).expect("plan");
    assert!(!can_begin(&blocked.plan));
}

#[test]
fn what_concerns_the_pod_is_an_error() {
    let missing = make(json!({"containers": [{"name": "c"}], "volumes": [{"name": "v", "configMap": {"name": "no"}}]}))
        .expect_err("error");
    assert_eq!(missing.reason(), "FailedMount");
    let unknown = make(json!({"containers": [{"name": "c", "volumeMounts": [{"name": "x", "mountPath": "/m"}]}]}))
        .expect_err("error");
    assert_eq!(unknown.reason(), "FailedMount");
}
