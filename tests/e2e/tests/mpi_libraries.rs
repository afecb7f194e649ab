//! MPI libraries and programs that others have written, in the image `mpi:1` and out of the host.

use hpk_e2e::{BUSYBOX, HOME, MPI, Namespace, four_ranks, ranks, sorted, sx};
use serde_json::{Value, json};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Ranks that wait for each other spin: one pod of them at a time, or small machines do nothing else.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A pod of ranks in the image with the MPI libraries.
fn judged(name: &str, count: u32, command: &[&str]) -> Value {
    let mut pod = ranks(name, count, command);
    pod["spec"]["containers"][0]["image"] = json!(MPI);
    pod
}

/// mpi4py with three families: how their ranks find each other is chosen by the library that they would load.
#[test]
fn three_families_of_mpi() {
    let _alone = alone();
    let ns = Namespace::new("mpi-families");
    let families = [("openmpi", "Open MPI v5"), ("mpich", "MPICH Version"), ("intel", "Intel(R) MPI Library")];
    for (family, version) in families {
        let mut pod = judged(family, 4, &["python3", "/opt/hello.py"]);
        let folder = format!("/opt/{family}/lib");
        pod["spec"]["containers"][0]["env"] = json!([{"name": "LD_LIBRARY_PATH", "value": folder}]);
        ns.apply(&pod.to_string());
        ns.wait_phase(family, "Succeeded");
        let logs = ns.kubectl(&["logs", family]);
        let lines = sorted(logs.ok());
        assert_eq!(lines.len(), 4, "{family}: {lines:?}");
        for (rank, line) in lines.iter().enumerate() {
            let node = if rank < 2 { "c1" } else { "c2" };
            assert!(line.starts_with(&format!("rank {rank} of 4 on {node}")), "{family}: {line}");
            assert!(line.contains(" sum 6 by ") && line.contains(version), "{family}: {line}");
        }
    }
}

/// The quiet mistake is named where its user looks.
#[test]
fn another_pmi_than_the_librarys_is_told() {
    let _alone = alone();
    let ns = Namespace::new("mpi-wrong");
    let mut pod = four_ranks("alone", "exec mpi-ring");
    pod["metadata"]["annotations"]["slurm-job.hpk.io/mpi-flags"] = json!("--mpi=pmi2");
    ns.apply(&pod.to_string());
    ns.wait_phase("alone", "Succeeded");
    let logs = ns.kubectl(&["logs", "alone"]);
    assert!(logs.ok().contains("Open MPI finds its ranks by PMIx"), "{}", logs.stdout);
}

fn verified(ns: &Namespace, class: &str, counts: &[u32], patience: Duration) {
    for count in counts {
        let pod = format!("ep-{}-{count}", class.to_lowercase());
        ns.apply(&judged(&pod, *count, &["nas-ep", class]).to_string());
        ns.until_pod(&pod, patience, |pod| pod["status"]["phase"] == "Succeeded");
        let logs = ns.kubectl(&["logs", &pod]);
        assert!(logs.ok().contains(&format!("EP class {class}, {count} ranks")), "{}", logs.stdout);
        assert!(logs.stdout.contains("verification SUCCESSFUL"), "{}", logs.stdout);
    }
}

/// The sums that NASA has published, by any number of ranks.
#[test]
fn nas_ep_of_classes_s_and_w() {
    let _alone = alone();
    let ns = Namespace::new("mpi-ep");
    verified(&ns, "S", &[2, 4, 8, 16], Duration::from_secs(120));
    verified(&ns, "W", &[2, 4, 8, 16], Duration::from_secs(120));
}

#[test]
#[ignore = "a minute of CPU: make long"]
fn nas_ep_of_class_a() {
    let _alone = alone();
    let ns = Namespace::new("mpi-ep-a");
    verified(&ns, "A", &[2, 4, 8, 16], Duration::from_secs(600));
}

/// HPC Challenge judges its own results.
#[test]
#[ignore = "a minute of CPU: make long"]
fn hpcc_passes_its_own_tests() {
    let _alone = alone();
    let ns = Namespace::new("mpi-hpcc");
    let input = include_str!("mpi_libraries/hpccinf.txt");
    let input =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "hpcc"}, "data": {"hpccinf.txt": input}});
    ns.apply(&input.to_string());
    let script = "cd $(mktemp -d) && cp /in/hpccinf.txt . && hpcc && [ $SLURM_PROCID != 0 ] || cat hpccoutf.txt";
    let mut pod = judged("hpcc", 4, &["sh", "-c", script]);
    let main = &mut pod["spec"]["containers"][0];
    main["volumeMounts"] = json!([{"name": "in", "mountPath": "/in"}]);
    main["resources"] = json!({"requests": {"cpu": "1", "memory": "512Mi"}});
    pod["spec"]["volumes"] = json!([{"name": "in", "configMap": {"name": "hpcc"}}]);
    ns.apply(&pod.to_string());
    ns.until_pod("hpcc", Duration::from_secs(600), |pod| pod["status"]["phase"] == "Succeeded");
    let logs = ns.kubectl(&["logs", "hpcc"]).ok().to_owned();
    assert!(logs.contains("Success=1"), "{logs}");
    assert!(logs.contains("0 tests completed and failed residual checks"), "{logs}");
}

/// The node's own MPI, bound in: the image has none, nor a C library.
#[test]
fn the_hosts_mpi_in_an_image_without_one() {
    let _alone = alone();
    let ns = Namespace::new("mpi-host");
    let source = include_str!("../../../images/toolbox/mpi-ring.c");
    let program = format!("ring-of-{}", ns.name());
    let compile = format!("cat >/tmp/$$.c <<'E'\n{source}\nE\nmpicc -O1 -o ~/{program} /tmp/$$.c && rm /tmp/$$.c");
    sx("login", Some("alice"), &["sh", "-c", &compile]).ok();
    // The loader in /lib64 is a link into the second of them.
    let libraries = ["/usr/lib/x86_64-linux-gnu", "/lib/x86_64-linux-gnu", "/lib64"];
    let folders = libraries.into_iter().chain(["/usr/share/openmpi", "/etc/openmpi"]);
    let mut pod = ranks("bound", 4, &[&format!("/program/{program}")]);
    let (mut mounts, mut volumes) = (vec![json!({"name": "program", "mountPath": "/program"})], Vec::new());
    volumes.push(json!({"name": "program", "hostPath": {"path": HOME}}));
    for (number, folder) in folders.enumerate() {
        let name = format!("host-{number}");
        mounts.push(json!({"name": name, "mountPath": folder, "readOnly": true}));
        volumes.push(json!({"name": name, "hostPath": {"path": folder}}));
    }
    let main = &mut pod["spec"]["containers"][0];
    main["image"] = json!(BUSYBOX);
    main["volumeMounts"] = json!(mounts);
    pod["spec"]["volumes"] = json!(volumes);
    ns.apply(&pod.to_string());
    ns.wait_phase("bound", "Succeeded");
    sx("login", Some("alice"), &["rm", &format!("{HOME}/{program}")]).ok();
    assert!(ns.kubectl(&["logs", "bound"]).ok().contains("the token passed 4 ranks"));
}
