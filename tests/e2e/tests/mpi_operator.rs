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

fn replica(script: &str, count: u32, port: u16) -> Value {
    let settings = format!("Host *\\n StrictHostKeyChecking no\\n UserKnownHostsFile /dev/null\\n Port {port}\\n");
    let trust = format!("printf '{settings}' >/etc/ssh/ssh_config.d/all.conf");
    json!({"replicas": count, "template": {"spec": {"containers": [{
        "name": "main", "image": MPI, "command": ["sh", "-c", format!("{trust}; {script}")],
        "resources": {"requests": {"cpu": "1", "memory": "256Mi"}}
    }]}}})
}

/// NAS EP by four ranks of two workers; `change` is made to the pods of launcher and workers.
fn runs(ns: &Namespace, port: u16, mpirun: &str, change: impl Fn(&str, &mut Value)) {
    let operator = Operator::start(ns);
    let run = format!(
        "for i in $(seq 60); do ssh pi-worker-0.pi true && ssh pi-worker-1.pi true && break; sleep 1; done; \
         exec mpirun --allow-run-as-root {mpirun} --hostfile /etc/mpi/hostfile -n 4 nas-ep S"
    );
    let sshd = format!("mkdir -p /run/sshd; exec /usr/sbin/sshd -De -p {port}");
    let (mut launcher, mut worker) = (replica(&run, 1, port), replica(&sshd, 2, port));
    change("launcher", &mut launcher["template"]["spec"]);
    change("worker", &mut worker["template"]["spec"]);
    let job = json!({
        "apiVersion": "kubeflow.org/v2beta1", "kind": "MPIJob", "metadata": {"name": "pi"},
        "spec": {
            "slotsPerWorker": 2, "runPolicy": {"cleanPodPolicy": "None"},
            "mpiReplicaSpecs": {"Launcher": launcher, "Worker": worker}
        }
    });
    ns.apply(&job.to_string());
    let done = ns.kubectl(&["wait", "mpijob/pi", "--for=condition=Succeeded", "--timeout=240s"]);
    let logs = ns.shell("kubectl -n $NS logs -l training.kubeflow.org/job-role=launcher --tail=-1").stdout;
    assert_eq!(done.code, Some(0), "{}\n{logs}\n{}\n{}", done.stderr, operator.log(), ns.describe());
    assert!(logs.contains("EP class S, 4 ranks") && logs.contains("verification SUCCESSFUL"), "{logs}");
}

#[test]
#[ignore = "needs the operator, which takes minutes to build: make long"]
fn an_mpi_job_over_ssh() {
    let ns = Namespace::new("mpi-operator");
    runs(&ns, 22, "", |_, _| ());
}

/// All pods in their nodes' network, a worker on each node: sshd has a port of the user's own there.
#[test]
#[ignore = "needs the operator, which takes minutes to build: make long"]
fn an_mpi_job_over_ssh_in_the_nodes_network() {
    let ns = Namespace::new("mpi-operator-host");
    // c1 has no IPv6, and c2 has: see docs/guide/mpi.md.
    runs(&ns, 22022, "--mca btl_tcp_disable_family 6", |role, pod| {
        pod["hostNetwork"] = json!(true);
        pod["dnsPolicy"] = json!("ClusterFirstWithHostNet");
        if role == "worker" {
            // More than half of a node's 64: two workers share none, nor its ports.
            pod["containers"][0]["resources"]["requests"]["cpu"] = json!("33");
        }
    });
    let list = ns.kubectl(&["get", "pods", "-l", "training.kubeflow.org/job-role=worker", "-o", "json"]);
    let list: Value = serde_json::from_str(list.ok()).expect("pods");
    let node = |pod: &Value| pod["metadata"]["labels"]["slurm.hpk.io/node"].as_str().unwrap_or_default().to_owned();
    let mut nodes: Vec<String> = list["items"].as_array().into_iter().flatten().map(node).collect();
    nodes.sort();
    assert_eq!(nodes, ["c1", "c2"]);
}
