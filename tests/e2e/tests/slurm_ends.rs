//! Slurm, or the node, ends the job of a pod: the pod ends in order where it can, and says why.

use hpk_e2e::{Job, Namespace, PATIENCE, eventually, job_of, sx};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

fn terminated(pod: &Value) -> &Value {
    &pod["status"]["containerStatuses"][0]["state"]["terminated"]
}

/// A pod that tells of each step of its end, and has a minute for it.
fn talkative(ns: &Namespace, pod: &str) -> Value {
    let script = "trap 'echo got TERM; exit 0' TERM; echo up; while :; do sleep 0.1; done";
    let mut pod = ns.script_pod(pod, "Always", script);
    pod["spec"]["terminationGracePeriodSeconds"] = json!(60);
    pod["spec"]["containers"][0]["lifecycle"] =
        json!({"preStop": {"exec": {"command": ["sh", "-c", "echo hook > /proc/1/fd/1; sleep 1"]}}});
    pod
}

fn job(ns: &Namespace, pod: &str) -> Job {
    eventually("the pod has a job", PATIENCE, || job_of(ns.name(), pod))
}

#[test]
fn scancel_ends_the_pod_in_order() {
    let ns = Namespace::new("scancel");
    ns.apply(&talkative(&ns, "cancelled").to_string());
    ns.wait_ready("cancelled");
    sx("login", Some("alice"), &["scancel", &job(&ns, "cancelled").id]).ok();
    let end = ns.until_pod("cancelled", PATIENCE, |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(end["status"]["reason"], "SlurmJobCancelled");
    assert_eq!(terminated(&end)["exitCode"], 0, "it ended by itself: {}", terminated(&end));
    assert_eq!(ns.kubectl(&["logs", "cancelled"]).ok(), "up\nhook\ngot TERM");
    ns.until_event("cancelled", "SlurmTerminates", "the pod ends in order");
}

/// A job of a higher partition wants the GPUs that the pod has.
#[test]
fn preemption_ends_the_pod_in_order_and_is_told_as_a_disruption() {
    let ns = Namespace::new("preempted");
    let mut pod = talkative(&ns, "spare");
    let flags = "--partition=spare --nodelist=c1 --gres=gpu:2";
    pod["metadata"]["annotations"] = json!({"slurm-job.hpk.io/flags": flags});
    ns.apply(&pod.to_string());
    ns.wait_ready("spare");
    let urgent =
        ["--partition=urgent", "--nodelist=c1", "--gres=gpu:2", "--mem=64M", "--output=/dev/null", "--wrap=true"];
    sx("login", Some("alice"), &[&["sbatch", "--parsable"], &urgent[..]].concat()).ok();
    let end = ns.until_pod("spare", PATIENCE, |pod| pod["status"]["phase"] == "Failed");
    let target = end["status"]["conditions"].as_array().into_iter().flatten();
    let target = target.filter(|condition| condition["type"] == "DisruptionTarget").collect::<Vec<_>>();
    assert_eq!(target.len(), 1, "{}", end["status"]);
    assert_eq!((&target[0]["status"], &target[0]["reason"]), (&json!("True"), &json!("TerminationByKubelet")));
    assert_eq!(end["status"]["reason"], "Preempted", "{}", end["status"]);
    assert_eq!(terminated(&end)["exitCode"], 0, "it ended by itself: {}", terminated(&end));
    assert_eq!(ns.kubectl(&["logs", "spare"]).ok(), "up\nhook\ngot TERM");
    ns.until_event("spare", "SlurmTerminates", "the pod ends in order");
}

/// A hook that is longer than Slurm's KillWait (10 s on this site) is cut off in time, so that the container still
/// gets its TERM and the supervisor its last word.
#[test]
fn scancel_leaves_time_for_the_last_word() {
    let ns = Namespace::new("scancelslow");
    let mut pod = talkative(&ns, "slow");
    pod["spec"]["containers"][0]["lifecycle"] =
        json!({"preStop": {"exec": {"command": ["sh", "-c", "echo hook > /proc/1/fd/1; sleep 50"]}}});
    ns.apply(&pod.to_string());
    ns.wait_ready("slow");
    sx("login", Some("alice"), &["scancel", &job(&ns, "slow").id]).ok();
    let end = ns.until_pod("slow", PATIENCE, |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(terminated(&end)["exitCode"], 0, "TERM came before Slurm's KILL: {}", terminated(&end));
    assert_eq!(ns.kubectl(&["logs", "slow"]).ok(), "up\nhook\ngot TERM");
}

/// The supervisor knows the limit that its job began with, Slurm the one that holds.
#[test]
fn a_time_limit_that_is_lowered_is_a_deadline() {
    let ns = Namespace::new("lowered");
    let mut pod = talkative(&ns, "lowered");
    pod["metadata"]["annotations"] = json!({"slurm-job.hpk.io/flags": "--time=60"});
    ns.apply(&pod.to_string());
    ns.wait_ready("lowered");
    let job = job(&ns, "lowered");
    sx("login", Some("alice"), &["scontrol", "update", &format!("JobId={}", job.id), "TimeLimit=1"]).ok();
    let end = ns.until_pod("lowered", Duration::from_secs(150), |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(end["status"]["reason"], "DeadlineExceeded", "{}", end["status"]["message"]);
    assert_eq!(terminated(&end)["exitCode"], 0, "it ended by itself: {}", terminated(&end));
    assert_eq!(ns.kubectl(&["logs", "lowered"]).ok(), "up\nhook\ngot TERM");
}

/// What the kubelet does for a deletion when it has no link to the supervisor: a signal that Slurm follows by no KILL.
#[test]
fn usr1_through_slurm_leaves_all_of_the_grace_period() {
    let ns = Namespace::new("usr1");
    let mut pod = talkative(&ns, "slow");
    // Longer than KillWait, 10 s on this site.
    pod["spec"]["containers"][0]["lifecycle"] = json!({"preStop": {"exec": {"command": ["sh", "-c", "echo hook > /proc/1/fd/1; sleep 12; echo hook ends > /proc/1/fd/1"]}}});
    ns.apply(&pod.to_string());
    ns.wait_ready("slow");
    sx("login", Some("alice"), &["scancel", "--batch", "--signal=USR1", &job(&ns, "slow").id]).ok();
    let end = ns.until_pod("slow", PATIENCE, |pod| terminated(pod).is_object());
    assert_eq!(terminated(&end)["exitCode"], 0, "{}", terminated(&end));
    assert_eq!(ns.kubectl(&["logs", "slow"]).ok(), "up\nhook\nhook ends\ngot TERM");
}

#[test]
fn killed_supervisor_ends_the_job_and_the_pod_says_so() {
    let ns = Namespace::new("nosupervisor");
    ns.run_script("orphan", "Always", "exec sleep 600");
    ns.wait_ready("orphan");
    let job = job(&ns, "orphan");
    let pids = sx(&job.node, None, &["scontrol", "listpids", &job.id]);
    let pids = pids.ok().lines().skip(1).filter_map(|line| line.split_whitespace().next());
    let supervisor = pids
        .map(str::to_owned)
        .find(|pid| sx(&job.node, None, &["cat", &format!("/proc/{pid}/comm")]).stdout.trim() == "hpk-pause")
        .expect("a supervisor in the job");
    let begun = Instant::now();
    sx(&job.node, None, &["kill", "-KILL", &supervisor]).ok();
    let end = ns.until_pod("orphan", PATIENCE, |pod| pod["status"]["phase"] == "Failed");
    assert!(begun.elapsed() < Duration::from_secs(30), "at once, not {:?}", begun.elapsed());
    assert_eq!(end["status"]["reason"], "SlurmJobFailed");
    let message = end["status"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("supervisor ended with code 137"), "{message}");
    assert_eq!(terminated(&end)["reason"], "ContainerStatusUnknown");
    eventually("the job is gone", PATIENCE, || job_of(ns.name(), "orphan").is_none().then_some(()));
    assert_eq!(hpk_e2e::processes(&job.node, "sleep 600 "), Vec::<String>::new());
}

#[test]
#[ignore = "Slurm's shortest time limit is a minute: make long"]
fn time_limit_runs_the_hook_and_ends_in_order() {
    let ns = Namespace::new("limit");
    let mut pod = talkative(&ns, "limited");
    pod["spec"]["terminationGracePeriodSeconds"] = json!(20);
    pod["metadata"]["annotations"] = json!({"slurm-job.hpk.io/flags": "--time=2"});
    ns.apply(&pod.to_string());
    ns.wait_ready("limited");
    let end = ns.until_pod("limited", Duration::from_secs(200), |pod| pod["status"]["phase"] == "Failed");
    assert_eq!(end["status"]["reason"], "DeadlineExceeded");
    assert_eq!(terminated(&end)["exitCode"], 0, "it ended by itself: {}", terminated(&end));
    assert_eq!(ns.kubectl(&["logs", "limited"]).ok(), "up\nhook\ngot TERM");
    ns.until_event("limited", "SlurmTimeLimit", "within 20 s");
}
