//! Argo Workflows with steps that are MPI programs. `make apps` builds it and runs these cases.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a helper that finds nothing fails its case"
)]

use hpk_e2e::{BUSYBOX, MPI, Namespace, eventually, sx};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Once;
use std::time::Duration;

/// For a workflow of some pods, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(900);
const CPUS: [u32; 4] = [2, 4, 8, 16];

/// `hpk install argo` from the bundle that `make apps` has put there, and what Argo wants each namespace to have: its
/// executor reports a step's result as a WorkflowTaskResult, by the pod's own account.
fn argo(case: &str) -> Namespace {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        sx("login", Some("alice"), &["sh", "-c", "hpk install argo --from /site/apps/argo-*"]).ok();
    });
    let ns = Namespace::new(case);
    ns.kubectl(&["create", "role", "executor", "--verb=create,patch", "--resource=workflowtaskresults.argoproj.io"])
        .ok();
    let account = format!("--serviceaccount={}:default", ns.name());
    ns.kubectl(&["create", "rolebinding", "executor", "--role=executor", &account]).ok();
    ns
}

/// The listing: a task for each number of CPUs, each an MPI program of so many ranks.
fn listing(name: &str, container: &Value, retries: Option<&Value>) -> Value {
    let mut template = json!({
        "name": "npb",
        "metadata": {"annotations": {
            "slurm-job.hpk.io/flags": "--ntasks={{inputs.parameters.cpus}}", "slurm-job.hpk.io/mpi-flags": "",
        }},
        "inputs": {"parameters": [{"name": "cpus"}]},
        "container": container,
    });
    if let Some(retries) = retries {
        template["retryStrategy"] = retries.clone();
    }
    json!({
        "apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": {"name": name},
        "spec": {"entrypoint": "npb-with-mpi", "templates": [
            {"name": "npb-with-mpi", "dag": {"tasks": [{
                "name": "A", "template": "npb",
                "arguments": {"parameters": [{"name": "cpus", "value": "{{item}}"}]},
                "withItems": CPUS,
            }]}},
            template,
        ]},
    })
}

fn phase(ns: &Namespace, workflow: &str) -> String {
    ns.get("workflow", workflow)["status"]["phase"].as_str().unwrap_or_default().to_owned()
}

/// Waits for the workflow's end, and says how Argo itself tells it when it is not the wanted one.
fn ends(ns: &Namespace, workflow: &str, wanted: &str) {
    let ended = eventually("the workflow's end", PATIENCE, || {
        Some(phase(ns, workflow)).filter(|phase| ["Succeeded", "Failed", "Error"].contains(&phase.as_str()))
    });
    let told =
        || ns.shell(&format!("KUBECONFIG=~/.hpk/kubeconfig ~/.hpk/apps/argo/bin/argo -n $NS get {workflow}")).stdout;
    assert_eq!(ended, wanted, "{}\n{}", told(), ns.describe());
}

/// Pods of a workflow by the number of ranks.
fn pods(ns: &Namespace, workflow: &str) -> BTreeMap<u32, Vec<Value>> {
    let label = format!("workflows.argoproj.io/workflow={workflow}");
    let list: Value = serde_json::from_str(ns.kubectl(&["get", "pods", "-l", &label, "-o", "json"]).ok()).unwrap();
    let mut found: BTreeMap<u32, Vec<Value>> = BTreeMap::new();
    for pod in list["items"].as_array().unwrap() {
        let flags = pod["metadata"]["annotations"]["slurm-job.hpk.io/flags"].as_str().unwrap_or_default();
        let ranks = flags.trim_start_matches("--ntasks=").parse().unwrap();
        found.entry(ranks).or_default().push(pod.clone());
    }
    found
}

fn name_of(pod: &Value) -> &str {
    pod["metadata"]["name"].as_str().unwrap_or_default()
}

fn job_of(pod: &Value) -> &str {
    pod["metadata"]["labels"]["slurm.hpk.io/job-id"].as_str().unwrap_or_default()
}

/// What accounting says of a job, for the job itself or its MPI step: start, end, tasks.
fn accounted(job: &str, step: Option<&str>, fields: &str) -> Vec<String> {
    let id = step.map_or_else(|| job.to_owned(), |step| format!("{job}.{step}"));
    let format = format!("--format=jobid,{fields}");
    let run = sx("login", Some("alice"), &["sacct", "-j", job, "-n", "-P", "--delimiter=|", &format]);
    let line = run.ok().lines().find_map(|line| line.strip_prefix(&format!("{id}|")));
    line.unwrap_or_else(|| panic!("no {id} in\n{}", run.stdout)).split('|').map(str::to_owned).collect()
}

/// The paper's listing, image name and program aside unchanged.
#[test]
fn the_listing_runs_as_four_jobs_side_by_side() {
    let ns = argo("argo-listing");
    let workflow = listing("npb", &json!({"image": MPI, "command": ["nas-ep", "A"]}), None);
    ns.apply(&workflow.to_string());
    ends(&ns, "npb", "Succeeded");
    let pods = pods(&ns, "npb");
    assert_eq!(pods.keys().copied().collect::<Vec<_>>(), CPUS);
    let mut spans = Vec::new();
    for (ranks, pods) in &pods {
        assert_eq!(pods.len(), 1, "{ranks} ranks");
        let (pod, job) = (name_of(&pods[0]), job_of(&pods[0]));
        let logs = ns.kubectl(&["logs", pod, "-c", "main"]);
        assert!(logs.ok().contains(&format!("EP class A, {ranks} ranks")), "{}", logs.stdout);
        assert!(logs.stdout.contains("verification SUCCESSFUL"), "{}", logs.stdout);
        assert_eq!(accounted(job, Some("0"), "ntasks,state"), [ranks.to_string(), "COMPLETED".to_owned()], "job {job}");
        let span = accounted(job, None, "start,end,state");
        assert_eq!(span[2], "COMPLETED", "job {job}");
        spans.push(span);
    }
    // Times of accounting are text that sorts.
    let last_start = spans.iter().map(|span| &span[0]).max();
    let first_end = spans.iter().map(|span| &span[1]).min();
    assert!(last_start < first_end, "side by side: {spans:?}");
}

/// A job that somebody cancels: the workflow tells it and tries that task again. Before that, a look into the running step.
#[test]
fn a_cancelled_job_is_told_and_tried_again() {
    let ns = argo("argo-retry");
    // Only the first try of the four ranks waits to be cancelled.
    let script =
        "if [ {{retries}} = 0 ] && [ {{inputs.parameters.cpus}} = 4 ]; then exec sleep 3600; fi; exec nas-ep S";
    let container = json!({"image": MPI, "command": ["sh", "-c", script]});
    let retries = json!({"limit": 2, "retryPolicy": "Always"});
    ns.apply(&listing("retry", &container, Some(&retries)).to_string());

    let pod = eventually("the four ranks run", PATIENCE, || {
        let pod = pods(&ns, "retry").get(&4)?.first()?.clone();
        (pod["status"]["phase"] == "Running" && !job_of(&pod).is_empty()).then_some(pod)
    });
    let name = name_of(&pod).to_owned();
    let listed = eventually("four ranks in the container", PATIENCE, || {
        let run = ns.kubectl(&["exec", &name, "-c", "main", "--", "ps", "-e", "-o", "args="]);
        (run.stdout.lines().filter(|line| *line == "sleep 3600").count() == 4).then_some(run.stdout)
    });
    assert!(listed.contains("sleep 3600"));
    sx("login", Some("alice"), &["scancel", job_of(&pod)]).ok();

    ends(&ns, "retry", "Succeeded");
    let status = ns.get("workflow", "retry")["status"].clone();
    let nodes: Vec<Value> = status["nodes"].as_object().unwrap().values().cloned().collect();
    let failed: Vec<&Value> =
        nodes.iter().filter(|node| node["type"] == "Pod" && node["phase"] != "Succeeded").collect();
    assert_eq!(failed.len(), 1, "{failed:?}");
    let message = failed[0]["message"].as_str().unwrap_or_default();
    assert!(message.contains("cancelled"), "the workflow tells why: {message:?}");
    let pods = pods(&ns, "retry");
    let tries: Vec<usize> = CPUS.iter().map(|ranks| pods[ranks].len()).collect();
    assert_eq!(tries, [1, 2, 1, 1]);
    assert!(accounted(job_of(&pod), None, "state")[0].starts_with("CANCELLED"));
    for pods in pods.values() {
        let done = pods.iter().find(|pod| pod["status"]["phase"] == "Succeeded").unwrap();
        let logs = ns.kubectl(&["logs", name_of(done), "-c", "main"]);
        assert!(logs.ok().contains("verification SUCCESSFUL"), "{}", logs.stdout);
    }
}

/// A task on both nodes: what Argo's init container has put into the pod's volume is there on the second one too.
#[test]
fn a_task_runs_on_two_nodes() {
    let ns = argo("argo-nodes");
    let mut workflow = listing("two", &json!({"image": MPI, "command": ["nas-ep", "S"]}), None);
    workflow["spec"]["templates"][1]["metadata"]["annotations"]["slurm-job.hpk.io/flags"] =
        json!("--ntasks={{inputs.parameters.cpus}} --nodes=2");
    ns.apply(&workflow.to_string());
    ends(&ns, "two", "Succeeded");
    let label = "workflows.argoproj.io/workflow=two";
    let logs = ns.kubectl(&["logs", "-l", label, "-c", "main", "--tail=-1", "--max-log-requests=9"]);
    assert_eq!(logs.ok().matches("verification SUCCESSFUL").count(), CPUS.len(), "{}", logs.stdout);
}

/// Results, artifacts between steps excepted: parameters, a loop over them, an exit handler.
#[test]
fn parameters_pass_between_steps() {
    let ns = argo("argo-steps");
    let container = |script: &str| json!({"image": BUSYBOX, "command": ["sh", "-c", script]});
    let workflow = json!({
        "apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": {"name": "steps"},
        "spec": {"entrypoint": "main", "onExit": "bye", "templates": [
            {"name": "main", "steps": [
                [{"name": "make", "template": "make"}],
                [{"name": "use", "template": "use", "withParam": "{{steps.make.outputs.parameters.list}}",
                  "arguments": {"parameters": [{"name": "x", "value": "{{item}}"}]}}],
            ]},
            {"name": "make", "container": container("echo '[\"a\",\"b\"]' > /tmp/list"),
             "outputs": {"parameters": [{"name": "list", "valueFrom": {"path": "/tmp/list"}}]}},
            {"name": "use", "inputs": {"parameters": [{"name": "x"}]},
             "container": container("echo used {{inputs.parameters.x}}")},
            {"name": "bye", "container": container("echo status {{workflow.status}}")},
        ]},
    });
    ns.apply(&workflow.to_string());
    ends(&ns, "steps", "Succeeded");
    let logs = ns.kubectl(&[
        "logs",
        "-l",
        "workflows.argoproj.io/workflow=steps",
        "-c",
        "main",
        "--tail=-1",
        "--max-log-requests=9",
    ]);
    for line in ["used a", "used b", "status Succeeded"] {
        assert!(logs.ok().contains(line), "{line}: {}", logs.stdout);
    }
}
