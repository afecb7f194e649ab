//! A node of an MPI step that is lost, or has no PMIx. A test program of its own, for nothing else may want that node meanwhile.

use hpk_e2e::{Namespace, PATIENCE, eventually, four_ranks, processes, sx};
use std::sync::{Mutex, MutexGuard, PoisonError};

static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

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
    let _turn = turn();
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

/// c2 without Slurm's PMIx plug-ins until this is dropped.
struct WithoutPmix;

const PLUG_INS: &str = "for f in $(find /usr/lib -path '*slurm*' -name 'mpi_pmix*.so')";

impl WithoutPmix {
    fn make() -> Self {
        let script = format!("n=0; {PLUG_INS}; do mount --bind /dev/null $f; n=$((n + 1)); done; [ $n -gt 0 ]");
        sx("c2", None, &["sh", "-c", &script]).ok();
        Self
    }
}

impl Drop for WithoutPmix {
    fn drop(&mut self) {
        sx("c2", None, &["sh", "-c", &format!("{PLUG_INS}; do umount $f; done")]);
    }
}

/// A Slurm that answers `--mpi=pmix` with an error: its words are the reason.
#[test]
fn a_node_without_pmix_is_told_in_slurms_words() {
    let _turn = turn();
    let ns = Namespace::new("mpi-no-pmix");
    let _without = WithoutPmix::make();
    ns.apply(&four_ranks("p", "echo began; sleep 2").to_string());
    ns.wait_phase("p", "Failed");
    let pod = ns.get("pod", "p");
    let end = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
    let message = end["message"].as_str().unwrap_or_default();
    assert_eq!(end["reason"], "StartError");
    assert!(message.contains("srun: error: Task launch") && message.contains("failed on node c2"), "{end}");
}
