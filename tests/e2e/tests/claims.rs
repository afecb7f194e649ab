//! Claims: volumes that the provisioner makes, and what pods do with them.

use hpk_e2e::{HPK_HOME, Namespace, PATIENCE, eventually, sx};
use serde_json::{Value, json};

fn claim(name: &str, mode: &str, more: &Value) -> Value {
    let mut claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
        "spec": {"accessModes": [mode], "resources": {"requests": {"storage": "16Mi"}}}});
    for (key, value) in more.as_object().into_iter().flatten() {
        claim["spec"][key] = value.clone();
    }
    claim
}

/// A pod that has the claim at /data.
fn user(ns: &Namespace, pod: &str, claim: &str, script: &str) -> Value {
    let mut pod = ns.script_pod(pod, "Never", script);
    pod["spec"]["volumes"] = json!([{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    pod
}

/// Where the claim's volume is.
fn folder(ns: &Namespace, claim: &str) -> String {
    ns.wait(&["pvc", claim], "--for=jsonpath={.status.phase}=Bound");
    let volume = ns.get("pvc", claim)["spec"]["volumeName"].as_str().unwrap_or_default().to_owned();
    ns.get("pv", &volume)["spec"]["hostPath"]["path"].as_str().unwrap_or_default().to_owned()
}

fn login(script: &str) -> hpk_e2e::Run {
    sx("login", Some("alice"), &["sh", "-c", script])
}

#[test]
fn a_stateful_set_keeps_its_claims_over_both_nodes() {
    let ns = Namespace::new("claims-set");
    let script = "echo $HOSTNAME $SLURMD_NODENAME >> /data/log; exec sleep 600";
    let mut template = ns.script_pod("x", "Always", script);
    // One of them fills most of a node, so the others are on the next one.
    template["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "24", "memory": "64Mi"}});
    template["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    let set = json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"}, "spec": {
        "replicas": 3, "serviceName": "db", "podManagementPolicy": "Parallel",
        "selector": {"matchLabels": {"app": "db"}},
        "template": {"metadata": {"labels": {"app": "db"}}, "spec": template["spec"]},
        "volumeClaimTemplates": [claim("data", "ReadWriteOnce", &json!({}))]}});
    ns.apply(&set.to_string());
    ns.wait(&["statefulset", "db"], "--for=jsonpath={.status.readyReplicas}=3");
    let nodes = ns.kubectl(&["exec", "db-0", "--", "cat", "/data/log"]);
    assert!(nodes.ok().starts_with("db-0"), "{}", nodes.stdout);
    let jobs: std::collections::BTreeSet<_> =
        (0..3).filter_map(|n| Some(hpk_e2e::job_of(ns.name(), &format!("db-{n}"))?.node)).collect();
    assert_eq!(jobs.len(), 2, "{jobs:?}");
    ns.kubectl(&["scale", "statefulset", "db", "--replicas=1"]).ok();
    ns.wait(&["pod", "db-2"], "--for=delete");
    ns.delete("pod", "db-0");
    ns.kubectl(&["scale", "statefulset", "db", "--replicas=3"]).ok();
    ns.wait(&["statefulset", "db"], "--for=jsonpath={.status.readyReplicas}=3");
    for pod in ["db-0", "db-2"] {
        let log = ns.kubectl(&["exec", pod, "--", "cat", "/data/log"]);
        assert_eq!(log.ok().lines().count(), 2, "{pod}: {}", log.stdout);
    }
}

#[test]
fn pods_of_two_nodes_write_the_same_claim() {
    let ns = Namespace::new("claims-shared");
    ns.apply(&claim("shared", "ReadWriteMany", &json!({})).to_string());
    for node in ["c1", "c2"] {
        let script = format!("echo {node} > /data/{node}; until [ -e /data/c1 -a -e /data/c2 ]; do sleep 0.1; done");
        let mut pod = user(&ns, node, "shared", &script);
        pod["metadata"]["annotations"] = json!({"slurm-job.hpk.io/flags": format!("--nodelist={node}")});
        ns.apply(&pod.to_string());
    }
    for node in ["c1", "c2"] {
        ns.wait_phase(node, "Succeeded");
    }
    let path = folder(&ns, "shared");
    assert!(path.starts_with(&format!("{HPK_HOME}/volumes/{}/shared-", ns.name())), "{path}");
    assert_eq!(login(&format!("cat {path}/c1 {path}/c2")).ok(), "c1\nc2");
}

#[test]
fn a_claim_deleted_by_mistake_comes_back() {
    let ns = Namespace::new("claims-restore");
    ns.apply(&claim("data", "ReadWriteOnce", &json!({})).to_string());
    // Another user of the container's owns the folder and its file.
    let script = "echo precious > /data/file; chown -R 1000:1000 /data; chmod 700 /data";
    ns.apply(&user(&ns, "writer", "data", script).to_string());
    ns.wait_phase("writer", "Succeeded");
    let path = folder(&ns, "data");
    ns.kubectl(&["delete", "pvc", "data", "--wait=false"]).ok();
    // kubernetes.io/pvc-protection: it is used until its pod has ended, and has ended here.
    ns.delete("pod", "writer");
    let deleted = format!("{HPK_HOME}/volumes/.deleted/{}", ns.name());
    let name = eventually("the folder is put aside", PATIENCE, || {
        let listed = login(&format!("ls {deleted}"));
        listed.stdout.trim().starts_with("data-").then(|| listed.stdout.trim().to_owned())
    });
    assert_ne!(login(&format!("test -e {path}")).code, Some(0));
    let mut again = claim("data", "ReadWriteOnce", &json!({}));
    again["metadata"]["annotations"] = json!({"volumes.hpk.io/restore": name});
    ns.apply(&again.to_string());
    ns.apply(&user(&ns, "reader", "data", "cat /data/file; stat -c %u /data").to_string());
    ns.wait_phase("reader", "Succeeded");
    assert_eq!(ns.kubectl(&["logs", "reader"]).ok(), "precious\n1000");
}

#[test]
fn a_pod_waits_for_its_claim_and_block_is_refused() {
    let ns = Namespace::new("claims-wait");
    ns.apply(&user(&ns, "early", "late", "echo here > /data/x").to_string());
    ns.apply(&claim("block", "ReadWriteOnce", &json!({"volumeMode": "Block"})).to_string());
    ns.until_event("block", "ProvisioningFailed", "volumeMode Block");
    assert_eq!(ns.get("pod", "early")["status"]["phase"], "Pending");
    ns.until_event("early", "FailedScheduling", "late");
    ns.apply(&claim("late", "ReadWriteOnce", &json!({})).to_string());
    ns.wait_phase("early", "Succeeded");
}

#[test]
fn a_claim_of_one_pod_is_kept_from_another() {
    let ns = Namespace::new("claims-one-pod");
    ns.apply(&claim("own", "ReadWriteOncePod", &json!({})).to_string());
    ns.apply(&user(&ns, "first", "own", "exec sleep 600").to_string());
    ns.wait_ready("first");
    let mut second = user(&ns, "second", "own", "true");
    // Past the scheduler, which would keep it back.
    second["spec"]["nodeName"] = ns.get("pod", "first")["spec"]["nodeName"].clone();
    ns.apply(&second.to_string());
    ns.until_event("second", "FailedMount", "already in use by another pod");
    ns.delete("pod", "first");
    ns.wait_phase("second", "Succeeded");
}

#[test]
fn a_claim_grows_is_copied_and_fits_its_group() {
    let ns = Namespace::new("claims-more");
    ns.apply(&claim("first", "ReadWriteOnce", &json!({})).to_string());
    let mut writer = user(&ns, "writer", "first", "echo copied > /data/file; id -G; stat -c '%g %a' /data");
    writer["spec"]["securityContext"] = json!({"runAsUser": 1234, "runAsGroup": 1234, "fsGroup": 2000,
        "fsGroupChangePolicy": "OnRootMismatch"});
    ns.apply(&writer.to_string());
    ns.wait_phase("writer", "Succeeded");
    assert_eq!(ns.kubectl(&["logs", "writer"]).ok(), "1234 2000\n2000 2777");
    let size = r#"{"spec": {"resources": {"requests": {"storage": "32Mi"}}}}"#;
    ns.kubectl(&["patch", "pvc", "first", "-p", size]).ok();
    ns.wait(&["pvc", "first"], "--for=jsonpath={.status.capacity.storage}=32Mi");
    let source = json!({"dataSource": {"kind": "PersistentVolumeClaim", "name": "first"},
        "resources": {"requests": {"storage": "32Mi"}}});
    ns.apply(&claim("second", "ReadWriteOnce", &source).to_string());
    let mut reader = user(&ns, "reader", "second", "cat /data/file");
    reader["spec"]["volumes"][0]["persistentVolumeClaim"]["readOnly"] = json!(true);
    reader["spec"]["containers"][0]["command"][2] = json!("cat /data/file; echo x > /data/x || echo read-only");
    ns.apply(&reader.to_string());
    ns.wait_phase("reader", "Succeeded");
    assert!(ns.kubectl(&["logs", "reader"]).ok().contains("copied"));
    assert!(ns.kubectl(&["logs", "reader"]).ok().ends_with("read-only"));
}

#[test]
fn an_ephemeral_volume_goes_with_its_pod() {
    let ns = Namespace::new("claims-ephemeral");
    let mut pod = user(&ns, "pod", "none", "echo x > /data/x; exec sleep 600");
    let template = claim("x", "ReadWriteOnce", &json!({}))["spec"].clone();
    pod["spec"]["volumes"] = json!([{"name": "data", "ephemeral": {"volumeClaimTemplate": {"spec": template}}}]);
    ns.apply(&pod.to_string());
    ns.wait_ready("pod");
    let path = folder(&ns, "pod-data");
    assert_eq!(login(&format!("cat {path}/x")).ok(), "x");
    ns.delete("pod", "pod");
    eventually("its folder is put aside", PATIENCE, || {
        (login(&format!("test -e {path}")).code != Some(0)).then_some(())
    });
}
