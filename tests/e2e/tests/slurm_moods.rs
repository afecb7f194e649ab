//! What Slurm, its administrators and its policies do with jobs that are pods: reservations, holds, suspensions, limits, plug-ins.

use hpk_e2e::{HOME, Job, Namespace, PATIENCE, eventually, job_of, sx};
use serde_json::{Value, json};

/// As the site's administrator.
#[track_caller]
fn admin(args: &[&str]) -> String {
    sx("login", None, args).ok().to_owned()
}

#[track_caller]
fn alice(args: &[&str]) -> String {
    sx("login", Some("alice"), args).ok().to_owned()
}

fn job(ns: &Namespace, pod: &str) -> Job {
    eventually("the pod has a job", PATIENCE, || job_of(ns.name(), pod))
}

/// A pod with these flags of sbatch.
fn flagged(ns: &Namespace, pod: &str, flags: &str) -> Value {
    let mut pod = ns.script_pod(pod, "Never", "exec sleep 600");
    pod["metadata"]["annotations"] = json!({"slurm-job.hpk.io/flags": flags});
    pod
}

fn condition<'a>(pod: &'a Value, kind: &str) -> &'a Value {
    let all = pod["status"]["conditions"].as_array().into_iter().flatten();
    all.into_iter().find(|condition| condition["type"] == kind).unwrap_or(&Value::Null)
}

/// Has the job of a pod begin now, whatever it waited for.
fn begin(ns: &Namespace, pod: &str) {
    let now = [&format!("jobid={}", job(ns, pod).id), "starttime=now"].map(str::to_owned);
    eventually("it runs", PATIENCE, || {
        sx("login", Some("alice"), &["scontrol", "update", &now[0], &now[1]]);
        job_of(ns.name(), pod).filter(|job| job.state == "RUNNING").map(drop)
    });
}

/// Something of the site's that is removed with this.
struct Made(Vec<String>);

impl Made {
    #[track_caller]
    fn make(make: &[&str], remove: &[&str]) -> Self {
        admin(make);
        Self(remove.iter().map(|word| (*word).to_owned()).collect())
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let words: Vec<&str> = self.0.iter().map(String::as_str).collect();
        sx("login", None, &words);
    }
}

/// Maintenance of c2 in an hour: what has no time limit does not begin there.
#[test]
fn a_maintenance_reservation_is_told_with_its_end() {
    let ns = Namespace::new("maintenance");
    let name = ns.name().replace('-', "");
    let with_name = format!("reservationname={name}");
    let make = ["starttime=now+1hour", "duration=60", "users=root", "flags=maint,ignore_jobs", "nodes=c2"];
    let make: Vec<&str> = ["scontrol", "create", "reservation", &with_name].into_iter().chain(make).collect();
    let maintenance = Made::make(&make, &["scontrol", "delete", &with_name]);
    ns.apply(&flagged(&ns, "endless", "--nodelist=c2").to_string());
    ns.apply(&flagged(&ns, "short", "--nodelist=c2 --time=10").to_string());
    let told = ns.until_event("endless", "SlurmPending", &format!("reservation {name} (maintenance) has c2 from "));
    let end = admin(&["scontrol", "-o", "show", "reservation", &name]);
    let end = end.split_whitespace().find_map(|word| word.strip_prefix("EndTime=")).expect("an end").to_owned();
    assert!(told.contains(&format!(" to {end}Z: ")) && told.contains("with a time limit, which ends before"), "{told}");
    let pod = ns.get("pod", "endless");
    let started = condition(&pod, "slurm.hpk.io/JobStarted");
    assert_eq!((&started["status"], &started["reason"]), (&json!("False"), &json!("ReqNodeNotAvail")));
    assert!(started["message"].as_str().is_some_and(|message| message.contains(&end)), "{started}");
    ns.wait_ready("short");
    drop(maintenance);
    ns.wait_ready("endless");
}

#[test]
fn a_job_that_is_held_and_released_is_told() {
    let ns = Namespace::new("held");
    ns.apply(&flagged(&ns, "pod", "--begin=now+1hour").to_string());
    ns.until_event("pod", "SlurmPending", "its begin time has not come");
    let id = job(&ns, "pod").id;
    alice(&["scontrol", "hold", &id]);
    ns.until_event("pod", "SlurmPending", "it is held: scontrol release lets it go");
    alice(&["scontrol", "release", &id]);
    begin(&ns, "pod");
    ns.wait_ready("pod");
}

/// Only an administrator can.
#[test]
fn a_suspended_pod_is_not_ready_and_goes_on() {
    let ns = Namespace::new("suspended");
    for name in ["pod", "goes"] {
        let mut pod = ns.script_pod(name, "Always", "exec sleep 600");
        pod["spec"]["terminationGracePeriodSeconds"] = json!(12);
        ns.apply(&pod.to_string());
    }
    for pod in ["pod", "goes"] {
        ns.wait_ready(pod);
        admin(&["scontrol", "suspend", &job(&ns, pod).id]);
    }
    let id = job(&ns, "pod").id;
    ns.until_event("pod", "SlurmSuspended", "nothing of the pod runs until it is resumed");
    let ready = |pod: &Value, status: &str| condition(pod, "Ready")["status"] == status;
    let pod = ns.until_pod("pod", PATIENCE, |pod| ready(pod, "False"));
    assert_eq!(condition(&pod, "Ready")["reason"], "SlurmSuspended", "{}", pod["status"]);
    // Nothing answers there, and it can be deleted all the same.
    ns.delete("pod", "goes");
    assert_eq!(job_of(ns.name(), "goes"), None);
    admin(&["scontrol", "resume", &id]);
    ns.until_event("pod", "SlurmResumed", "goes on");
    let pod = ns.until_pod("pod", PATIENCE, |pod| ready(pod, "True"));
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0, "{}", pod["status"]);
    let ran = ns.kubectl(&["exec", "pod", "--", "echo", "there"]);
    assert_eq!(ran.ok(), "there");
}

/// A line in a file of alice's home for each start: what has succeeded is not run again, unless it wrote to the node's disk.
#[test]
fn a_requeued_pod_does_not_repeat_what_had_succeeded() {
    let ns = Namespace::new("requeued");
    let folder = format!("{HOME}/{}", ns.name());
    let mut pod = flagged(&ns, "pod", "--requeue");
    let container = |name: &str, script: &str, on_node: bool| {
        let mut mounts = vec![json!({"name": "home", "mountPath": "/home-of-mine"})];
        mounts.extend(on_node.then(|| json!({"name": "node", "mountPath": "/node"})));
        let script = format!("echo {name} >> /home-of-mine/starts; {script}");
        json!({"name": name, "image": hpk_e2e::BUSYBOX, "command": ["sh", "-c", script], "volumeMounts": mounts,
            "resources": {"requests": {"memory": "64Mi"}}})
    };
    pod["spec"]["restartPolicy"] = json!("OnFailure");
    pod["spec"]["volumes"] = json!([{"name": "node", "emptyDir": {}},
        {"name": "home", "hostPath": {"path": folder, "type": "DirectoryOrCreate"}}]);
    pod["spec"]["initContainers"] =
        json!([container("fetch", "true", false), container("unpack", "touch /node/x", true)]);
    pod["spec"]["containers"] =
        json!([container("done", "true", false), container("runs", "cat /node/x; exec sleep 600", true)]);
    ns.apply(&pod.to_string());
    let is = |pod: &Value, name: &str, state: &str| {
        let all = pod["status"]["containerStatuses"].as_array().into_iter().flatten();
        all.into_iter().any(|status| status["name"] == name && status["state"][state].is_object())
    };
    ns.until_pod("pod", PATIENCE, |pod| is(pod, "done", "terminated") && is(pod, "runs", "running"));
    let id = job(&ns, "pod").id;
    alice(&["scontrol", "requeuehold", &id]);
    ns.until_event("pod", "SlurmRequeued", &id);
    ns.until_event("pod", "SlurmPending", "it is held");
    let waits = ns.until_pod("pod", PATIENCE, |pod| pod["status"]["phase"] == "Pending");
    assert!(is(&waits, "done", "terminated"), "the API takes no end back: {}", waits["status"]);
    alice(&["scontrol", "release", &id]);
    begin(&ns, "pod");
    let runs = ns.until_pod("pod", PATIENCE, |pod| pod["status"]["phase"] == "Running" && is(pod, "runs", "running"));
    assert!(is(&runs, "done", "terminated"), "{}", runs["status"]);
    let starts = alice(&["cat", &format!("{folder}/starts")]);
    let count = |name: &str| starts.lines().filter(|line| *line == name).count();
    assert_eq!(["fetch", "unpack", "done", "runs"].map(count), [1, 2, 1, 2], "{starts}");
    alice(&["rm", "-r", &folder]);
}

/// Without `--requeue` among its flags a pod's job is not one that Slurm may run again.
#[test]
fn a_pod_that_is_not_to_be_requeued_goes_on() {
    let ns = Namespace::new("norequeue");
    ns.apply(&flagged(&ns, "pod", "--nodelist=c1").to_string());
    ns.wait_ready("pod");
    sx("login", Some("alice"), &["scontrol", "requeue", &job(&ns, "pod").id]).err();
    let ran = ns.kubectl(&["exec", "pod", "--", "echo", "there"]);
    assert_eq!(ran.ok(), "there");
}

#[test]
fn limits_of_a_qos_are_told() {
    let ns = Namespace::new("qos");
    let qos = ns.name().replace('-', "");
    let limits = ["MaxWall=10", "GrpJobs=1"];
    let make: Vec<&str> = ["sacctmgr", "-i", "add", "qos", &qos, "set"].into_iter().chain(limits).collect();
    let _qos = Made::make(&make, &["sacctmgr", "-i", "delete", "qos", &qos]);
    admin(&["sacctmgr", "-i", "modify", "user", "alice", "set", &format!("qos+={qos}")]);
    ns.apply(&flagged(&ns, "long", &format!("--qos={qos} --time=20")).to_string());
    ns.until_event("long", "SlurmPending", "and never begins: ask for other resources or another time");
    ns.delete("pod", "long");
    ns.apply(&flagged(&ns, "first", &format!("--qos={qos} --time=5")).to_string());
    ns.wait_ready("first");
    ns.apply(&flagged(&ns, "second", &format!("--qos={qos} --time=5")).to_string());
    ns.until_event("second", "SlurmPending", "a limit of the account or QOS is reached: it begins when other jobs end");
    ns.delete("pod", "first");
    ns.wait_ready("second");
}

/// Rules of tests/site/conf/job_submit.lua.
#[test]
fn a_submit_plug_in_that_refuses_and_one_that_changes() {
    let ns = Namespace::new("plugin");
    ns.apply(&flagged(&ns, "refused", "--extra=refuse").to_string());
    ns.until_event("refused", "FailedSubmit", "this site wants a project: give --account");
    let pod = ns.until_pod("refused", PATIENCE, |pod| {
        pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "SlurmSubmitFailed"
    });
    assert_eq!(pod["status"]["phase"], "Pending");
    ns.delete("pod", "refused");

    ns.apply(&flagged(&ns, "changed", "--extra=change").to_string());
    ns.until_event("changed", "SlurmSubmitted", "your job was moved to partition spare, for 30 minutes");
    ns.wait_ready("changed");
    // The pod's job is known by its folder: the plug-in has taken its comment.
    let found = job(&ns, "changed");
    assert_eq!(found.comment, "the site's own");
    ns.until_pod("changed", PATIENCE, |pod| pod["metadata"]["labels"]["slurm.hpk.io/partition"] == "spare");
    ns.delete("pod", "changed");
    assert_eq!(job_of(ns.name(), "changed"), None);
}

#[test]
fn a_waiting_pod_is_resized() {
    let ns = Namespace::new("resized");
    ns.apply(&flagged(&ns, "pod", "--begin=now+1hour").to_string());
    let before = job(&ns, "pod");
    assert_eq!((before.cpus.as_str(), before.memory.as_str()), ("1", "128M"));
    let resources = json!({"requests": {"cpu": "3", "memory": "300Mi"}});
    let patch = json!({"spec": {"containers": [{"name": "main", "resources": resources}]}});
    ns.kubectl(&["patch", "pod", "pod", "--subresource", "resize", "-p", &patch.to_string()]).ok();
    ns.until_event("pod", "ResizeCompleted", "--cpus-per-task=3 --mem=364M");
    let after = job(&ns, "pod");
    assert_eq!((after.id, after.cpus.as_str(), after.memory.as_str()), (before.id, "3", "364M"));
    let pod = ns.until_pod("pod", PATIENCE, |pod| {
        let requested = &pod["metadata"]["annotations"]["slurm-job.hpk.io/requested"];
        requested.as_str().is_some_and(|text| text.contains("--mem=364M"))
    });
    assert!(condition(&pod, "PodResizePending").is_null(), "{}", pod["status"]);
    begin(&ns, "pod");
    ns.wait_ready("pod");
    let runs = ns.get("pod", "pod");
    assert_eq!(runs["status"]["containerStatuses"][0]["allocatedResources"]["cpu"], "3", "{}", runs["status"]);
    assert_eq!(job(&ns, "pod").memory, "364M");
}
