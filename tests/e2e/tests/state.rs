//! The cluster's state: on this machine's own disk, lost, saved in a file, and taken over by another login node.

use hpk_e2e::{BUSYBOX, Cluster, HOME, PATIENCE, eventually, jobs_of, sx};
use serde_json::json;

fn stored(cluster: &Cluster, name: &str) {
    cluster.kubectl(&["create", "configmap", name, "--from-literal=a=b"]).ok();
}

/// Names of the ConfigMaps that the cases have made.
fn found(cluster: &Cluster) -> String {
    let out = cluster.kubectl(&["get", "configmaps", "-o", "name"]);
    let names =
        out.ok().lines().filter_map(|line| line.strip_prefix("configmap/")).filter(|n| *n != "kube-root-ca.crt");
    names.collect::<Vec<_>>().join(" ")
}

/// Where etcd's data is.
fn data_folder(cluster: &Cluster) -> String {
    let script = format!("jq -r .etcd_data {}/control-plane.json", cluster.home);
    cluster.run(&["bash", "-c", &script]).ok().to_owned()
}

fn snapshots(cluster: &Cluster) -> usize {
    let script = format!("ls {}/etcd-snapshots | grep -c '^etcd-.*[.]db$' || true", cluster.home);
    cluster.run(&["bash", "-c", &script]).ok().parse().unwrap_or_default()
}

#[test]
fn data_on_the_machines_disk_is_not_the_only_one() {
    let cluster = Cluster::up(Some("alice"), &format!("{HOME}/.hpk-state"), &["--no-kubelet"]);
    stored(&cluster, "one");
    assert!(data_folder(&cluster).starts_with(&cluster.home), "the site's home is no network file system");
    let refused = cluster.hpk(&["up", "--no-kubelet", "--etcd-data", "/var/tmp"]).err();
    assert!(refused.contains("--etcd-data") && refused.contains("run hpk down first"), "{refused}");

    // It moves to this machine's disk, with all that it has.
    cluster.hpk(&["down"]).ok();
    cluster.hpk(&["up", "--no-kubelet", "--etcd-data", "/var/tmp"]).ok();
    let folder = data_folder(&cluster);
    assert!(folder.starts_with("/var/tmp/hpk-1000"), "{folder}");
    let private =
        sx("login", None, &["find", "/var/tmp/hpk-1000", &cluster.home, "-perm", "/077", "-not", "-type", "l"]);
    assert_eq!(private.ok(), "", "others can see it");
    assert_eq!(found(&cluster), "one");
    eventually("a first snapshot", PATIENCE, || (snapshots(&cluster) > 0).then_some(()));

    // The last snapshot has what was stored a moment before the end. The disk is lost.
    stored(&cluster, "two");
    cluster.hpk(&["down"]).ok();
    sx("login", Some("alice"), &["rm", "-r", &folder]).ok();
    cluster.hpk(&["up", "--no-kubelet"]).ok();
    assert_eq!(found(&cluster), "one two");
    assert!((1..=3).contains(&snapshots(&cluster)), "old snapshots are removed");

    // Saved, changed, and as it was.
    let file = format!("{HOME}/.hpk-state.tar.gz");
    sx("login", None, &["rm", "-f", &file]).ok();
    cluster.hpk(&["backup", &file]).ok();
    assert_eq!(sx("login", None, &["stat", "-c", "%a", &file]).ok(), "600");
    assert!(cluster.hpk(&["backup", &file]).err().contains("is there already"));
    cluster.kubectl(&["delete", "configmap", "one"]).ok();
    assert!(cluster.hpk(&["restore", &file]).err().contains("run hpk down first"));
    cluster.hpk(&["down"]).ok();
    assert!(cluster.hpk(&["restore", &file]).err().contains("--replace"));
    cluster.hpk(&["restore", "--replace", &file]).ok();
    cluster.hpk(&["up", "--no-kubelet"]).ok();
    assert_eq!(found(&cluster), "one two");

    // An older Kubernetes is kept from data that it may not understand.
    cluster.hpk(&["down"]).ok();
    let older = format!("{}/older", cluster.home);
    let script = format!(
        "mkdir {older}; for p in kube-apiserver kube-controller-manager kube-scheduler etcd coredns; do \
         printf '#!/bin/sh\\necho Kubernetes v1.36.4\\n' > {older}/$p; chmod +x {older}/$p; done"
    );
    cluster.run(&["bash", "-ec", &script]).ok();
    let refused = cluster.hpk(&["up", "--no-kubelet", "--kubernetes-bin", &older]).err();
    assert!(refused.contains("v1.36.4 may not understand"), "{refused}");

    // And home again.
    cluster.hpk(&["up", "--no-kubelet", "--etcd-data", "home"]).ok();
    assert_eq!(found(&cluster), "one two");
    sx("login", Some("alice"), &["test", "!", "-e", &folder]).ok();
    sx("login", None, &["rm", &file]).ok();
}

/// A pod that says in a file how often it has begun.
#[cfg(feature = "site")]
fn worker(cluster: &Cluster) {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "worker"},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "main", "image": BUSYBOX,
            "command": ["sh", "-c", "echo once >> /kept; trap 'exit 0' TERM; while :; do sleep 1; done"]}]},
    });
    cluster.apply(&pod.to_string());
    cluster.wait_ready("worker");
}

#[test]
#[ignore = "waits for a minute that a lease takes to end: make long"]
#[cfg(feature = "site")]
fn another_login_node_takes_over_when_the_first_is_gone() {
    let mut cluster = Cluster::up(Some("alice"), &format!("{HOME}/.hpk-taken"), &["--etcd-data", "/var/tmp"]);
    worker(&cluster);
    let job = cluster.get(&["pod", "worker"])["metadata"]["labels"]["slurm.hpk.io/job-id"].clone();
    // So that the last snapshot has the pod: a crash may cost what came after it.
    cluster.hpk(&["down"]).ok();
    cluster.hpk(&["up"]).ok();

    // While the first one lives, it is refused; also where a lock means nothing from machine to machine.
    cluster.go_to("c1");
    let lock = format!("{}/run/supervisor.lock", cluster.home);
    cluster.run(&["mv", &lock, &format!("{lock}.aside")]).ok();
    let refused = cluster.hpk(&["up"]).err();
    assert!(refused.contains("the control plane runs on login"), "{refused}");
    cluster.run(&["mv", &format!("{lock}.aside"), &lock]).ok();

    // The machine is gone, with its disk.
    let mark = cluster.home.replace('.', "[.]");
    sx("login", None, &["pkill", "-KILL", "-u", "alice", "-f", &mark]).ok();
    let began = std::time::Instant::now();
    let said = cluster.hpk(&["up"]);
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(said.stderr.contains("watching for up to 60 s"), "{}", said.stderr);
    assert!(began.elapsed().as_secs() >= 55, "it did not wait for the first one's end");
    cluster.wait_ready("worker");
    assert_eq!(cluster.get(&["pod", "worker"])["metadata"]["labels"]["slurm.hpk.io/job-id"], job, "the same job");
    let jobs = jobs_of("default").into_iter().filter(|job| job.name == "default/worker").count();
    assert_eq!(jobs, 1, "one job and no other");
    eventually("the pod answers the new one", PATIENCE, || {
        let run = cluster.exec_sh("worker", "cat /kept");
        (run.code == Some(0)).then(|| assert_eq!(run.stdout.trim(), "once"))
    });
}

#[test]
#[ignore = "waits for the end of a job's time: make long"]
#[cfg(feature = "site")]
fn a_control_plane_in_a_job_is_handed_over_before_its_time_ends() {
    let cluster = Cluster::up(Some("alice"), &format!("{HOME}/.hpk-job"), &["--in-job=--time=3"]);
    let first = control_plane_jobs(&cluster).into_iter().find(|(_, state)| state == "RUNNING").map(|(id, _)| id);
    let first = first.unwrap_or_default();
    assert!(cluster.hpk(&["status"]).ok().contains("ready on c"), "asked on the login node");
    stored(&cluster, "one");
    worker(&cluster);
    let uid = cluster.get(&["pod", "worker"])["metadata"]["uid"].clone();

    let next = eventually("another job has the control plane", std::time::Duration::from_secs(240), || {
        let script = format!("jq -r 'select(.ready) | .id' {}/run/job.json", cluster.home);
        let id = cluster.run(&["bash", "-c", &script]).stdout.trim().to_owned();
        (!id.is_empty() && id != first).then_some(id)
    });
    assert!(control_plane_jobs(&cluster).iter().any(|(id, state)| *id == next && state == "RUNNING"));
    assert_eq!(found(&cluster), "one");
    cluster.wait_ready("worker");
    let pod = cluster.get(&["pod", "worker"]);
    assert_eq!((&pod["metadata"]["uid"], &pod["status"]["containerStatuses"][0]["restartCount"]), (&uid, &json!(0)));
    eventually("the pod answers the new one", PATIENCE, || {
        (cluster.exec_sh("worker", "cat /kept").stdout.trim() == "once").then_some(())
    });

    cluster.hpk(&["down", "--pods"]).ok();
    eventually("no job of the control plane is left", PATIENCE, || {
        control_plane_jobs(&cluster).is_empty().then_some(())
    });
}

/// Ids and states of the jobs that are a cluster's control plane, or are to be.
#[cfg(feature = "site")]
fn control_plane_jobs(cluster: &Cluster) -> Vec<(String, String)> {
    let out = cluster.run(&["squeue", "--me", "-h", "-n", "hpk-control-plane", "-o", "%i %T %Z"]);
    let lines = out.ok().lines().map(|line| line.split(' ').map(str::to_owned).collect::<Vec<_>>());
    let ours = lines.filter(|words| words.get(2) == Some(&cluster.home) && words[1] != "COMPLETING");
    ours.map(|words| (words[0].clone(), words[1].clone())).collect()
}
