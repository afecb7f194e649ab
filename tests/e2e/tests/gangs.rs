//! Gangs: pods that begin together, in one Slurm job with a step for each. The cases take turns, for one of them fills the
//! cluster.

use hpk_e2e::{BUSYBOX, Filler, Namespace, PATIENCE, eventually, job_of, jobs_of, sx};
use serde_json::{Value, json};
use std::sync::{Mutex, MutexGuard, PoisonError};

static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn pod_group(ns: &Namespace, name: &str, min: u32) {
    ns.apply(
        &json!({
            "apiVersion": "scheduling.k8s.io/v1beta1", "kind": "PodGroup", "metadata": {"name": name},
            "spec": {"schedulingPolicy": {"gang": {"minCount": min}}},
        })
        .to_string(),
    );
}

fn member(ns: &Namespace, group: &str, name: &str, cpus: &str) -> Value {
    let mut pod = ns.script_pod(name, "Never", "echo I am $HOSTNAME; trap 'exit 0' TERM; sleep 600 & wait");
    pod["spec"]["schedulingGroup"] = json!({"podGroupName": group});
    pod["spec"]["containers"][0]["resources"]["requests"]["cpu"] = json!(cpus);
    pod
}

/// A Job of `pods` pods, of which `gang` are a gang.
fn job(name: &str, pods: u32, gang: u32, script: &str) -> Value {
    json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name},
        "spec": {
            "completions": pods, "parallelism": pods, "completionMode": "Indexed", "backoffLimit": 6,
            "template": {
                "metadata": {"annotations": {"slurm-job.hpk.io/gang": gang.to_string()}},
                "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 5, "containers": [{
                    "name": "main", "image": BUSYBOX, "command": ["sh", "-c", script],
                    "resources": {"requests": {"cpu": "1", "memory": "64Mi"}},
                }]},
            },
        },
    })
}

fn pods_of(ns: &Namespace, job: &str) -> Vec<Value> {
    let run = ns.kubectl(&["get", "pods", "-l", &format!("batch.kubernetes.io/job-name={job}"), "-o", "json"]);
    let list: Value = serde_json::from_str(run.ok()).unwrap_or_default();
    list["items"].as_array().cloned().unwrap_or_default()
}

fn name_of(pod: &Value) -> String {
    pod["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

fn waiting_message(pod: &Value) -> String {
    let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
    format!("{}: {}", waiting["reason"].as_str().unwrap_or_default(), waiting["message"].as_str().unwrap_or_default())
}

/// Of a full cluster: no member begins before all can, and they are one row in squeue. Then each is a pod like any other.
#[test]
fn a_gang_begins_as_a_whole_on_a_full_cluster() {
    let _turn = turn();
    let ns = Namespace::new("gang");
    // Two members could begin, four cannot.
    let filler = Filler::but_two_cpus_on_each_node();

    pod_group(&ns, "four", 4);
    let names = ["g0", "g1", "g2", "g3"];
    for name in &names[..2] {
        ns.apply(&member(&ns, "four", name, "2").to_string());
    }
    // A pod that came later is bound: the scheduler has seen the half gang, and keeps it from the Node.
    ns.run_script("later", "Never", "true");
    ns.wait_phase("later", "Succeeded");
    ns.delete("pod", "later");
    for name in &names[..2] {
        let pod = ns.get("pod", name);
        assert_eq!((&pod["status"]["phase"], &pod["spec"]["nodeName"]), (&json!("Pending"), &Value::Null), "{name}");
    }
    assert!(jobs_of(ns.name()).is_empty(), "half a gang is in Slurm's queue");
    for name in &names[2..] {
        ns.apply(&member(&ns, "four", name, "2").to_string());
    }
    for name in names {
        let pod = ns.until_pod(name, PATIENCE, |pod| {
            let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
            conditions
                .iter()
                .any(|c| c["type"] == "slurm.hpk.io/JobStarted" && c["status"] == "False" && c["reason"] == "Resources")
        });
        assert_eq!(pod["status"]["phase"], "Pending", "{name} began before all could");
    }
    let queued = jobs_of(ns.name());
    assert_eq!(queued.len(), 1, "one row in squeue: {queued:?}");
    let row = &queued[0];
    assert_eq!(
        (row.name.as_str(), row.state.as_str(), row.cpus.as_str()),
        (&*format!("{}/four", ns.name()), "PENDING", "8")
    );

    drop(filler);
    for name in names {
        ns.wait_ready(name);
        assert_eq!(ns.kubectl(&["logs", name]).ok(), format!("I am {name}"));
        assert_eq!(ns.kubectl(&["exec", name, "--", "hostname"]).ok(), name);
    }
    let running = jobs_of(ns.name());
    assert_eq!((running.len(), running[0].state.as_str()), (1, "RUNNING"), "{running:?}");

    // One goes, the others stay; with the last one the allocation ends.
    ns.delete("pod", "g1");
    for name in ["g0", "g2", "g3"] {
        let pod = ns.get("pod", name);
        assert_eq!(pod["status"]["phase"], "Running", "{name}");
        assert_eq!(ns.kubectl(&["exec", name, "--", "echo", "here"]).ok(), "here");
    }
    assert_eq!(jobs_of(ns.name()).len(), 1);
    for name in ["g0", "g2", "g3"] {
        ns.delete("pod", name);
    }
    eventually("the allocation ends with its last member", PATIENCE, || jobs_of(ns.name()).is_empty().then_some(()));
}

/// Members that are bound wait at the kubelet until there are enough, and say how many are missing. When they are there, an
/// Indexed Job runs as one job of Slurm's to its end.
#[test]
fn half_a_gang_waits_and_an_indexed_job_is_one_job() {
    let _turn = turn();
    let ns = Namespace::new("gang-job");
    ns.apply(&job("half", 2, 4, "echo $JOB_COMPLETION_INDEX of 4; sleep 3").to_string());
    eventually("two pods that wait", PATIENCE, || {
        let pods = pods_of(&ns, "half");
        let text = format!("WaitingForGang: Job {}/half", ns.name());
        let waits = |pod: &Value| {
            let told = waiting_message(pod);
            told.starts_with(&text) && told.ends_with("2 of 4 members are there")
        };
        (pods.len() == 2 && pods.iter().all(waits)).then_some(())
    });
    assert!(jobs_of(ns.name()).is_empty());
    let more = json!({"spec": {"completions": 4, "parallelism": 4}}).to_string();
    ns.kubectl(&["patch", "job", "half", "-p", &more]).ok();
    let row = eventually("one job in the queue", PATIENCE, || job_of(ns.name(), "half"));
    ns.wait(&["job", "half"], "--for=condition=Complete");
    assert!(jobs_of(ns.name()).iter().all(|job| job.id == row.id), "{:?}", jobs_of(ns.name()));
    let mut said: Vec<String> =
        pods_of(&ns, "half").iter().map(|pod| ns.kubectl(&["logs", &name_of(pod)]).ok().to_owned()).collect();
    said.sort();
    assert_eq!(said, ["0 of 4", "1 of 4", "2 of 4", "3 of 4"]);
}

/// The pod that a Job makes in place of a deleted one gets its place in the allocation.
#[test]
fn a_replacement_takes_the_place_that_was_left() {
    let _turn = turn();
    let ns = Namespace::new("gang-again");
    // One that ends well would count as done, and the Job would make no other.
    ns.apply(&job("team", 3, 3, "trap 'exit 7' TERM; sleep 600 & wait").to_string());
    let ready = |count: usize| {
        let pods = pods_of(&ns, "team");
        let running =
            |pod: &&Value| pod["status"]["phase"] == "Running" && pod["metadata"]["deletionTimestamp"].is_null();
        let all: Vec<Value> = pods.iter().filter(running).cloned().collect();
        (all.len() == count).then_some(all)
    };
    let first = eventually("three run", PATIENCE, || ready(3));
    let row = job_of(ns.name(), "team").expect("its job");
    let gone = name_of(&first[0]);
    ns.delete("pod", &gone);
    let second =
        eventually("three run again", PATIENCE, || ready(3).filter(|pods| pods.iter().all(|pod| name_of(pod) != gone)));
    assert_eq!(second.len(), 3);
    let rows = jobs_of(ns.name());
    assert_eq!((rows.len(), &rows[0].id), (1, &row.id), "the same allocation: {rows:?}");
}

/// A kubelet that is killed finds its gangs again, and can end a member of theirs.
#[test]
fn a_killed_kubelet_finds_its_gangs_again() {
    let _turn = turn();
    let ns = Namespace::new("gang-kill");
    pod_group(&ns, "pair", 2);
    for name in ["a", "b"] {
        ns.apply(&member(&ns, "pair", name, "1").to_string());
    }
    for name in ["a", "b"] {
        ns.wait_ready(name);
    }
    let row = job_of(ns.name(), "pair").expect("its job");
    sx("login", Some("alice"), &["pkill", "-KILL", "-x", "hpk-kubelet"]).ok();
    eventually("exec works again", PATIENCE, || {
        (ns.kubectl(&["exec", "a", "--", "echo", "here"]).stdout.trim() == "here").then_some(())
    });
    ns.delete("pod", "a");
    assert_eq!(ns.kubectl(&["exec", "b", "--", "echo", "here"]).ok(), "here");
    let rows = jobs_of(ns.name());
    assert_eq!((rows.len(), &rows[0].id, rows[0].state.as_str()), (1, &row.id, "RUNNING"), "{rows:?}");
    ns.delete("pod", "b");
    eventually("the allocation ends", PATIENCE, || jobs_of(ns.name()).is_empty().then_some(()));
}

/// One large member and three small ones are one heterogeneous job: the small ones could begin on the full cluster, and do not
/// before the large one can. Then each is a pod like any other, a killed kubelet finds them again, and a small pod that comes
/// later gets the place that a small one has left.
#[test]
fn unlike_members_are_one_heterogeneous_job() {
    let _turn = turn();
    let ns = Namespace::new("gang-het");
    let filler = Filler::but_two_cpus_on_each_node();
    pod_group(&ns, "het", 4);
    let names = ["server", "c0", "c1", "c2"];
    for name in names {
        ns.apply(&member(&ns, "het", name, if name == "server" { "8" } else { "1" }).to_string());
    }
    for name in names {
        let pod = ns.until_pod(name, PATIENCE, |pod| {
            let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
            conditions
                .iter()
                .any(|c| c["type"] == "slurm.hpk.io/JobStarted" && c["status"] == "False" && c["reason"] == "Resources")
        });
        assert_eq!(pod["status"]["phase"], "Pending", "{name} began before all could");
    }
    // The components of one job, N+0 and N+1.
    let rows = |state: &str| {
        let rows = jobs_of(ns.name());
        let mut short: Vec<(String, String)> = rows.iter().map(|row| (row.id.clone(), row.cpus.clone())).collect();
        short.sort();
        assert!(rows.iter().all(|row| row.state == state && row.comment == rows[0].comment), "{rows:?}");
        short
    };
    let queued = rows("PENDING");
    let whole = queued[0].0.trim_end_matches("+0").to_owned();
    let want = [(format!("{whole}+0"), "8".to_owned()), (format!("{whole}+1"), "3".to_owned())];
    assert_eq!(queued, want, "a component of one large place, and one of three small ones");

    drop(filler);
    for name in names {
        ns.wait_ready(name);
        assert_eq!(ns.kubectl(&["logs", name]).ok(), format!("I am {name}"));
        assert_eq!(ns.kubectl(&["exec", name, "--", "hostname"]).ok(), name);
    }
    assert_eq!(rows("RUNNING"), want);
    sx("login", Some("alice"), &["pkill", "-KILL", "-x", "hpk-kubelet"]).ok();
    eventually("exec works again", PATIENCE, || {
        (ns.kubectl(&["exec", "c0", "--", "echo", "here"]).stdout.trim() == "here").then_some(())
    });
    ns.delete("pod", "c1");
    ns.apply(&member(&ns, "het", "again", "1").to_string());
    ns.wait_ready("again");
    for name in ["server", "c0", "c2", "again"] {
        assert_eq!(ns.kubectl(&["exec", name, "--", "echo", "here"]).ok(), "here", "{name}");
        let job = ns.get("pod", name)["metadata"]["labels"]["slurm.hpk.io/job-id"].as_str().map(str::to_owned);
        assert_eq!(job.as_ref(), Some(&whole), "{name}");
    }
    assert_eq!(rows("RUNNING"), want, "the same allocation");
    for name in ["server", "c0", "c2", "again"] {
        ns.delete("pod", name);
    }
    eventually("all components end with the last member", PATIENCE, || jobs_of(ns.name()).is_empty().then_some(()));
}

/// Ends of members in different components are each pod's own, also when all is over.
#[test]
fn members_of_a_heterogeneous_job_end_by_themselves() {
    let _turn = turn();
    let ns = Namespace::new("gang-ends");
    pod_group(&ns, "ends", 3);
    for (name, cpus, script) in [("server", "4", "sleep 4"), ("good", "1", "sleep 1"), ("bad", "1", "sleep 2; exit 7")]
    {
        let mut pod = member(&ns, "ends", name, cpus);
        pod["spec"]["containers"][0]["command"] = json!(["sh", "-c", script]);
        ns.apply(&pod.to_string());
    }
    let ended = |name: &str| {
        let pod = ns.get("pod", name);
        let state = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
        (pod["status"]["phase"].clone(), state["exitCode"].clone())
    };
    for (name, phase, code) in [("bad", "Failed", 7), ("good", "Succeeded", 0), ("server", "Succeeded", 0)] {
        ns.wait_phase(name, phase);
        assert_eq!(ended(name), (json!(phase), json!(code)), "{name}");
    }
    eventually("the allocation ends", PATIENCE, || jobs_of(ns.name()).is_empty().then_some(()));
    assert_eq!(ended("bad"), (json!("Failed"), json!(7)));
}

/// What Slurm refuses is told to each member, with what was asked for.
#[test]
fn members_that_slurm_refuses_are_told_so() {
    let _turn = turn();
    let ns = Namespace::new("gang-odd");
    pod_group(&ns, "odd", 2);
    ns.apply(&member(&ns, "odd", "small", "1").to_string());
    // More than any node has.
    ns.apply(&member(&ns, "odd", "large", "70").to_string());
    for name in ["small", "large"] {
        ns.until_event(name, "FailedSubmit", "a heterogeneous job of 2 components was asked for");
    }
    assert!(jobs_of(ns.name()).is_empty());

    let mut lost = ns.script_pod("lost", "Never", "true");
    lost["metadata"]["annotations"] = json!({"slurm-job.hpk.io/gang": "2"});
    ns.apply(&lost.to_string());
    ns.until_event("lost", "FailedSubmit", "the pod is none of a Job's, a JobSet's or a LeaderWorkerSet's");
}

/// Members with GPUs on one node have each its own.
#[test]
fn members_see_their_own_gpus() {
    let _turn = turn();
    let ns = Namespace::new("gang-gpus");
    pod_group(&ns, "gpus", 3);
    let see = "echo gpu $(ls /dev | grep -x 'nvidia[0-9]*' | xargs); sleep 3";
    for (name, gpus) in [("a", "1"), ("b", "1"), ("none", "0")] {
        let mut pod = member(&ns, "gpus", name, "1");
        pod["metadata"]["annotations"] = json!({"slurm-job.hpk.io/gpu-type": "a100"});
        pod["spec"]["containers"][0]["command"] = json!(["sh", "-c", see]);
        if gpus != "0" {
            pod["spec"]["containers"][0]["resources"]["limits"] = json!({"nvidia.com/gpu": gpus});
        }
        ns.apply(&pod.to_string());
    }
    let seen = ["a", "b", "none"].map(|name| {
        ns.wait_phase(name, "Succeeded");
        ns.kubectl(&["logs", name]).ok().to_owned()
    });
    let mut of_two = [seen[0].as_str(), seen[1].as_str()];
    of_two.sort_unstable();
    assert_eq!((of_two, seen[2].as_str()), (["gpu nvidia0", "gpu nvidia1"], "gpu"));
}
