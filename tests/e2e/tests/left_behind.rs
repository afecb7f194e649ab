//! What a job leaves on its node that is killed as a whole, so that nothing of it can clear up. In a file of its own: files
//! run one after the other, so no pod begins meanwhile that would clear up in any case.

use hpk_e2e::{NODE_FOLDER, Namespace, eventually, sx};
use serde_json::json;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn a_pod_that_lives_on_the_node_removes_what_a_killed_job_left() {
    for host_network in [false, true] {
        let ns = Namespace::new(if host_network { "left-host" } else { "left" });
        for name in ["neighbour", "killed"] {
            let mut pod = ns.script_pod(name, "Never", "touch /written; exec sleep 600");
            pod["metadata"]["annotations"] = json!({"slurm-job.hpk.io/flags": "--nodelist=c1"});
            pod["spec"]["hostNetwork"] = json!(host_network);
            ns.apply(&pod.to_string());
            ns.wait_ready(name);
        }
        let uid = ns.get("pod", "killed")["metadata"]["uid"].as_str().expect("a uid").to_owned();
        let folder = format!("{NODE_FOLDER}/{uid}");
        sx("c1", Some("alice"), &["test", "-d", &folder]).ok();
        // The group of the job's first process is all that is ours of the job, hpk-pause included.
        let all = hpk_e2e::processes("c1", "hpk-netns run");
        let first = all.iter().find(|line| line.contains(&uid)).and_then(|line| line.split_whitespace().next());
        let group = format!("-{}", first.expect("the job's first process"));
        sx("c1", Some("alice"), &["kill", "-KILL", "--", &group]).ok();
        ns.until_pod("killed", PATIENCE, |pod| pod["status"]["phase"] == "Failed");
        eventually(&format!("{folder} is removed"), PATIENCE, || {
            (sx("c1", None, &["test", "-e", &folder]).code != Some(0)).then_some(())
        });
        if !host_network {
            let own = |name| format!("{}.dp", ns.get("pod", name)["status"]["podIP"].as_str().expect("an address"));
            eventually("of both datapaths' sockets, one is left", PATIENCE, || {
                let found = sx("c1", None, &["find", NODE_FOLDER, "-name", "*.dp"]);
                let has = |name| found.stdout.contains(&format!("/{}", own(name)));
                (has("neighbour") && !has("killed")).then_some(())
            });
        }
        assert_eq!(hpk_e2e::processes("c1", &uid), Vec::<String>::new());
        assert_eq!(ns.get("pod", "neighbour")["status"]["phase"], "Running");
    }
}
