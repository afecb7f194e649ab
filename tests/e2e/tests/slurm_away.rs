//! slurmctld does not answer for a while. In a file of its own: nothing else can be submitted meanwhile.

use hpk_e2e::{HOME, HPK_HOME, Namespace, PATIENCE, eventually, jobs, sx};
use serde_json::json;
use std::time::Duration;

/// slurmctld, stopped until this is dropped.
struct Stopped;

impl Stopped {
    fn signal(name: &str) -> Option<i32> {
        sx("login", None, &["sh", "-c", &format!("kill -{name} $(cat /run/slurm/slurmctld.pid)")]).code
    }

    fn make() -> Self {
        assert_eq!(Self::signal("STOP"), Some(0));
        Self
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        Self::signal("CONT");
    }
}

/// sbatch gives up (MessageTimeout is 30 s on this site) on a request that slurmctld carries out later.
#[test]
#[ignore = "holds slurmctld for longer than MessageTimeout: make long"]
fn a_slow_slurmctld_makes_no_second_job() {
    let ns = Namespace::new("slow-slurm");
    let mut pod = ns.script_pod("once", "Never", "echo run >> /mine/runs; exec sleep 600");
    let folder = format!("{HOME}/{}", ns.name());
    pod["spec"]["volumes"] = json!([{"name": "mine", "hostPath": {"path": folder, "type": "DirectoryOrCreate"}}]);
    pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "mine", "mountPath": "/mine"}]);
    let stopped = Stopped::make();
    ns.apply(&pod.to_string());
    let patience = Duration::from_secs(120);
    eventually("sbatch gives up", patience, || {
        ns.kubectl(&["get", "events"]).stdout.contains("Slurm may have made a job").then_some(())
    });
    drop(stopped);
    ns.until_pod("once", patience, |pod| pod["status"]["phase"] == "Running");
    let uid = ns.get("pod", "once")["metadata"]["uid"].as_str().expect("a uid").to_owned();
    // A pod that comes later is submitted after anything that is still to be submitted for this one.
    ns.run_script("next", "Never", "true");
    ns.until_pod("next", patience, |pod| pod["status"]["phase"] == "Succeeded");
    let of_pod: Vec<_> = jobs().into_iter().filter(|job| job.comment == uid).collect();
    assert_eq!(of_pod.len(), 1, "{of_pod:?}");
    let runs = sx("login", Some("alice"), &["cat", &format!("{folder}/runs")]);
    assert_eq!(runs.ok(), "run");
    sx("login", Some("alice"), &["rm", "-r", &folder]).ok();
}

/// A second job of a pod on its node, however it came about, leaves the first one alone and ends.
#[test]
fn a_second_job_of_a_pod_ends_and_the_first_goes_on() {
    let ns = Namespace::new("second");
    let mut pod = ns.script_pod("pod", "Always", "touch /written; exec sleep 600");
    pod["metadata"]["annotations"] = json!({"slurm-job.hpk.io/flags": "--nodelist=c1"});
    ns.apply(&pod.to_string());
    ns.wait_ready("pod");
    let uid = ns.get("pod", "pod")["metadata"]["uid"].as_str().expect("a uid").to_owned();
    let folder = format!("{HPK_HOME}/pods/{uid}");
    let output = format!("{HOME}/{}.out", ns.name());
    let sbatch = ["sbatch", "--wait", "--nodelist=c1", "--mem=64M", "--output"];
    let second = sx("login", Some("alice"), &[&sbatch[..], &[&output, &format!("{folder}/job.sh")]].concat());
    assert_eq!(second.code, Some(75), "{second:?}");
    let said = sx("login", Some("alice"), &["cat", &output]);
    assert!(said.ok().contains("another job of this pod runs on this node"), "{said:?}");
    sx("login", Some("alice"), &["rm", &output]).ok();
    assert_eq!(ns.kubectl(&["exec", "pod", "--", "ls", "/written"]).ok(), "/written");
    let pod = ns.get("pod", "pod");
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0, "{}", pod["status"]);
    eventually("one job is left", PATIENCE, || {
        (jobs().iter().filter(|job| job.name == format!("{}/pod", ns.name())).count() == 1).then_some(())
    });
}
