//! Kubeflow's MPI operator, unmodified: ranks in pods of their own that mpirun starts over ssh. HPK knows nothing of it; it needs
//! a network between pods, names of pods, Secrets and ConfigMaps.

use hpk_e2e::{MPI, Namespace, kubectl_with_input, sx};
use serde_json::{Value, json};

/// The operator, as a process of alice's on the login node for one namespace; ended when this is dropped.
struct Operator<'a>(&'a Namespace);

impl<'a> Operator<'a> {
    fn start(ns: &'a Namespace) -> Self {
        let definition = sx("login", Some("alice"), &["cat", ".local/share/mpi-operator/mpijobs.yaml"]);
        let missing = "mpi-operator is not installed: make long does it";
        assert_eq!(definition.code, Some(0), "{missing}");
        kubectl_with_input(&["apply", "--server-side", "-f", "-"], &definition.stdout).ok();
        let served = ["wait", "crd/mpijobs.kubeflow.org", "--for=condition=Established", "--timeout=60s"];
        hpk_e2e::kubectl(&served).ok();
        let start = "setsid mpi-operator --kubeConfig ~/.hpk/kubeconfig --namespace $NS --lock-namespace $NS \
                     >/tmp/$NS.operator 2>&1 </dev/null & echo $! >/tmp/$NS.pid";
        ns.shell(start).ok();
        Self(ns)
    }

    fn log(&self) -> String {
        self.0.shell("tail -n 40 /tmp/$NS.operator").stdout
    }
}

impl Drop for Operator<'_> {
    fn drop(&mut self) {
        self.0.shell("kill $(cat /tmp/$NS.pid); rm -f /tmp/$NS.pid /tmp/$NS.operator");
    }
}

fn replica(script: &str, count: u32) -> Value {
    let trust = "printf 'Host *\\n StrictHostKeyChecking no\\n UserKnownHostsFile /dev/null\\n' >/etc/ssh/ssh_config.d/all.conf";
    json!({"replicas": count, "template": {"spec": {"containers": [{
        "name": "main", "image": MPI, "command": ["sh", "-c", format!("{trust}; {script}")],
        "resources": {"requests": {"cpu": "1", "memory": "256Mi"}}
    }]}}})
}

#[test]
#[ignore = "needs the operator, which takes minutes to build: make long"]
fn an_mpi_job_over_ssh() {
    let ns = Namespace::new("mpi-operator");
    let operator = Operator::start(&ns);
    let run = "for i in $(seq 30); do ssh pi-worker-0.pi true && ssh pi-worker-1.pi true && break; sleep 1; done; \
               exec mpirun --allow-run-as-root --hostfile /etc/mpi/hostfile -n 4 nas-ep S";
    let job = json!({
        "apiVersion": "kubeflow.org/v2beta1", "kind": "MPIJob", "metadata": {"name": "pi"},
        "spec": {
            "slotsPerWorker": 2, "runPolicy": {"cleanPodPolicy": "Running"},
            "mpiReplicaSpecs": {
                "Launcher": replica(run, 1),
                "Worker": replica("mkdir -p /run/sshd; exec /usr/sbin/sshd -De", 2)
            }
        }
    });
    ns.apply(&job.to_string());
    let done = ns.kubectl(&["wait", "mpijob/pi", "--for=condition=Succeeded", "--timeout=240s"]);
    let logs = ns.shell("kubectl -n $NS logs -l training.kubeflow.org/job-role=launcher --tail=-1").stdout;
    assert_eq!(done.code, Some(0), "{}\n{logs}\n{}\n{}", done.stderr, operator.log(), ns.describe());
    assert!(logs.contains("EP class S, 4 ranks") && logs.contains("verification SUCCESSFUL"), "{logs}");
}
