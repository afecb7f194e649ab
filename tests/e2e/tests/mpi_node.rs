//! A node of an MPI step that is lost. A test program of its own, for nothing else may want that node meanwhile.

use hpk_e2e::{Namespace, PATIENCE, eventually, four_ranks, processes, sx};

/// c2, cut off and held for lost by Slurm until this is dropped.
struct Lost;

fn device(state: &str) {
    let script = format!("ip link set $(ip -o -4 addr show to 10.77.0.0/24 | awk '{{print $2}}') {state}");
    sx("c2", None, &["bash", "-c", &script]).ok();
}

impl Lost {
    fn make() -> Self {
        let lost = Self;
        device("down");
        // Slurm would find out by itself, in minutes.
        sx("login", None, &["scontrol", "update", "nodename=c2", "state=down", "reason=lost in a case"]).ok();
        lost
    }
}

impl Drop for Lost {
    fn drop(&mut self) {
        device("up");
        sx("login", None, &["scontrol", "update", "nodename=c2", "state=resume"]);
    }
}

#[test]
fn a_node_that_fails_is_told_by_name() {
    let ns = Namespace::new("mpi-node");
    ns.apply(&four_ranks("split", "exec sleep 600").to_string());
    ns.wait_ready("split");
    let end = {
        let _lost = Lost::make();
        ns.until_pod("split", PATIENCE, |pod| pod["status"]["phase"] == "Failed")
    };
    assert_eq!(end["status"]["reason"], "NodeLost", "{}", end["status"]);
    let message = end["status"]["message"].as_str().unwrap();
    assert!(message.contains("c2") && !message.contains("c1"), "{message}");
    let target = end["status"]["conditions"].as_array().into_iter().flatten();
    assert_eq!(target.filter(|condition| condition["type"] == "DisruptionTarget").count(), 1, "{}", end["status"]);
    let uid = end["metadata"]["uid"].as_str().unwrap();
    eventually("nothing is left on the node that lives", PATIENCE, || processes("c1", uid).is_empty().then_some(()));
}
