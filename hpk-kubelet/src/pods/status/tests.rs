use super::*;
use crate::executor::run::RunPhase;
use crate::pods::resize;
use hpk_api::state::{self as api, RunState, Termination};
use serde_json::json;

fn pod(spec: serde_json::Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u", "generation": 1}, "spec": spec,
        "status": {"phase": "Pending", "qosClass": "BestEffort", "conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"},
            {"type": "example.com/gate", "status": "True"}]}}))
    .expect("pod")
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("time")
}

struct Case {
    pod: Pod,
    report: Option<PodState>,
    job: Option<Run>,
    launch: Option<LaunchReport>,
    held: BTreeMap<String, Waiting>,
    granted: Granted,
    refused: Option<Refusal>,
    previous: Option<PodStatus>,
    put_back: bool,
    silent: bool,
}

impl Case {
    fn new(spec: serde_json::Value) -> Self {
        Self {
            pod: pod(spec),
            report: None,
            job: None,
            launch: None,
            held: BTreeMap::new(),
            granted: Granted::new(),
            refused: None,
            previous: None,
            put_back: false,
            silent: false,
        }
    }

    fn status(&self) -> PodStatus {
        let base = self.pod.status.clone().unwrap_or_default();
        let images = [("a".to_owned(), ImageRef { folder: "f".into(), id: "busybox@sha256:0".into() })].into();
        status(Input {
            pod: &self.pod,
            previous: self.previous.as_ref().unwrap_or(&base),
            report: self.report.as_ref(),
            job: self.job.as_ref(),
            launch: self.launch.as_ref(),
            held: &self.held,
            images: &images,
            granted: &self.granted,
            refused: self.refused.as_ref(),
            submit_error: None,
            put_back: self.put_back,
            is_being_resized: false,
            silent: self.silent,
            again: false,
            host_ip: "10.77.0.1".parse().expect("ip"),
            seen_at: at(1000),
            now: at(2000),
        })
    }
}

fn running(name: &str, ready: bool) -> api::ContainerState {
    api::ContainerState {
        name: name.to_owned(),
        state: RunState::Running { started_at: at(1500) },
        started: true,
        ready,
        container_id: "hpk://1".into(),
        ..api::ContainerState::default()
    }
}

fn ended(name: &str, code: i32) -> api::ContainerState {
    api::ContainerState {
        state: RunState::Terminated(Termination {
            exit_code: code,
            signal: None,
            reason: if code == 0 { "Completed" } else { "Error" }.into(),
            message: String::new(),
            started_at: Some(at(1500)),
            finished_at: at(1600),
            container_id: "hpk://1".into(),
        }),
        ..running(name, false)
    }
}

fn report(containers: Vec<api::ContainerState>) -> PodState {
    PodState {
        sandbox_ready: true,
        pod_ips: vec!["10.244.0.5".parse().expect("ip")],
        containers,
        ..PodState::default()
    }
}

fn condition<'a>(status: &'a PodStatus, kind: &str) -> (&'a str, Option<&'a str>, Option<&'a str>) {
    let list = status.conditions.as_ref().expect("conditions");
    let c = list.iter().find(|c| c.type_ == kind).unwrap_or_else(|| panic!("condition {kind}"));
    (&c.status, c.reason.as_deref(), c.message.as_deref())
}

#[test]
fn before_the_start() {
    let case = Case::new(json!({"containers": [{"name": "b"}, {"name": "a"}]}));
    let status = case.status();
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    let names: Vec<_> = status.container_statuses.iter().flatten().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["a", "b"], "sorted by name");
    let waiting =
        status.container_statuses.as_ref().expect("statuses")[0].state.as_ref().expect("state").waiting.clone();
    assert_eq!(waiting.expect("waiting").reason.as_deref(), Some("ContainerCreating"));
    assert_eq!(
        condition(&status, "Ready"),
        ("False", Some("ContainersNotReady"), Some("containers with unready status: [b a]"))
    );
    assert_eq!(condition(&status, "Initialized"), ("True", None, None));
    assert_eq!(condition(&status, "example.com/gate").0, "True", "conditions of others are kept");
    assert_eq!(condition(&status, "PodScheduled").0, "True");
    let scheduled = status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled").expect("condition");
    assert_eq!(
        scheduled.last_transition_time,
        Some(Time("2026-01-01T00:00:00Z".parse().expect("time"))),
        "unchanged, so its time is kept"
    );
}

#[test]
fn refused() {
    let mut case = Case::new(json!({"initContainers": [{"name": "i"}], "containers": [{"name": "a"}]}));
    case.refused = Some(Refusal { reason: "NodePorts", message: "no port".into() });
    let status = case.status();
    assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some("Failed"), Some("NodePorts")));
    assert_eq!(status.message.as_deref(), Some("Pod was rejected: no port"));
    assert_eq!((status.container_statuses, status.init_container_statuses), (None, None));
}

#[test]
fn a_resize_that_slurm_cannot_do() {
    let spec = |cpu: &str| json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": cpu}}}]});
    let mut case = Case::new(spec("1"));
    case.granted = resize::asked(&case.pod);
    case.report = Some(report(vec![running("a", true)]));
    let before = case.status();
    assert!(before.conditions.iter().flatten().all(|c| c.type_ != "PodResizePending"));
    case.pod = pod(spec("90"));
    let resized = case.status();
    assert_eq!(condition(&resized, "PodResizePending").1, Some("Infeasible"));
    // What it has is what it had.
    let allocated = |s: &PodStatus| s.container_statuses.as_ref().unwrap()[0].allocated_resources.clone();
    assert_eq!(allocated(&resized), allocated(&before));
    // Taken back, it is gone from the API too.
    let gone = patch(&case.pod, &resized, &before, None).unwrap();
    let list = gone["status"]["conditions"].as_array().unwrap();
    assert!(list.contains(&json!({"type": "PodResizePending", "$patch": "delete"})), "{list:?}");
}

#[test]
fn pending_in_slurm() {
    let mut case = Case::new(json!({"containers": [{"name": "a"}]}));
    case.job = Some(Run {
        phase: RunPhase::Pending,
        reason: "Resources".into(),
        why: "Resources: waits for free resources".into(),
        ..Run::lost("7", "u")
    });
    let status = case.status();
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    assert_eq!(
        condition(&status, JOB_STARTED),
        ("False", Some("Resources"), Some("Slurm job 7 is pending: Resources: waits for free resources"))
    );
}

#[test]
fn what_is_suspended_is_not_ready() {
    let mut case = Case::new(json!({"containers": [{"name": "a"}]}));
    case.report = Some(report(vec![running("a", true)]));
    let job = Run { phase: RunPhase::Running, ..Run::lost("7", "u") };
    case.job = Some(Run { suspended: true, ..job.clone() });
    // Nothing is heard of it either.
    case.silent = true;
    let status = case.status();
    assert_eq!(condition(&status, "Ready"), ("False", Some("SlurmSuspended"), Some("Slurm job 7 is suspended")));
    (case.job, case.silent) = (Some(job), false);
    assert_eq!(condition(&case.status(), "Ready").0, "True");
}

/// The API takes no end of a container back that is for good, and would refuse all of the status.
#[test]
fn ends_for_good_stay_when_a_job_begins_again() {
    for (policy, code, stays) in
        [("Never", 0, true), ("OnFailure", 0, true), ("OnFailure", 1, false), ("Always", 0, false)]
    {
        let spec = json!({"restartPolicy": policy, "initContainers": [{"name": "i"}], "containers": [{"name": "a"}, {"name": "b"}]});
        let mut case = Case::new(spec);
        let mut first = report(vec![ended("a", code), running("b", true)]);
        first.init_containers = vec![ended("i", 0)];
        case.report = Some(first);
        case.previous = Some(case.status());
        let waits = |name: &str| api::ContainerState {
            state: RunState::Waiting { reason: "ContainerCreating".to_owned(), message: String::new() },
            ..running(name, false)
        };
        let mut again = report(vec![waits("a"), waits("b")]);
        again.init_containers = vec![waits("i")];
        (case.report, case.put_back) = (Some(again), true);
        let status = case.status();
        let ended = |list: &Option<Vec<ContainerStatus>>, n: usize| {
            list.as_ref().unwrap()[n].state.as_ref().unwrap().terminated.is_some()
        };
        assert_eq!(ended(&status.container_statuses, 0), stays, "{policy} {code}");
        assert_eq!(ended(&status.init_container_statuses, 0), policy != "Always", "{policy} {code}");
        assert!(!ended(&status.container_statuses, 1));
        assert_eq!(status.phase.as_deref(), Some("Pending"), "it begins again");
    }
}

#[test]
fn running_and_ready() {
    let mut case =
        Case::new(json!({"containers": [{"name": "a"}], "readinessGates": [{"conditionType": "example.com/gate"}]}));
    case.report = Some(report(vec![running("a", true)]));
    let status = case.status();
    assert_eq!(status.phase.as_deref(), Some("Running"));
    assert_eq!(status.pod_ip.as_deref(), Some("10.244.0.5"));
    assert_eq!(condition(&status, "Ready"), ("True", None, None));
    assert_eq!(condition(&status, "PodReadyToStartContainers").0, "True");
    let container = &status.container_statuses.as_ref().expect("statuses")[0];
    assert_eq!(
        (container.ready, container.started, container.image_id.as_str()),
        (true, Some(true), "busybox@sha256:0")
    );
}

#[test]
fn missing_gate() {
    let mut case = Case::new(json!({"containers": [{"name": "a"}], "readinessGates": [{"conditionType": "x/y"}]}));
    case.report = Some(report(vec![running("a", true)]));
    assert_eq!(
        condition(&case.status(), "Ready"),
        (
            "False",
            Some("ReadinessGatesNotReady"),
            Some("corresponding condition of pod readiness gate \"x/y\" does not exist.")
        )
    );
}

#[test]
fn completed() {
    let mut case = Case::new(json!({"restartPolicy": "Never", "containers": [{"name": "a"}]}));
    case.report = Some(PodState { finished: true, ..report(vec![ended("a", 0)]) });
    let status = case.status();
    assert_eq!(status.phase.as_deref(), Some("Succeeded"));
    assert_eq!(condition(&status, "Ready"), ("False", Some("PodCompleted"), None));
    assert_eq!(condition(&status, "Initialized"), ("True", Some("PodCompleted"), None));
    assert_eq!(condition(&status, "PodReadyToStartContainers").0, "False");
}

#[test]
fn all_containers_restart() {
    let rule = json!({"action": "RestartAllContainers", "exitCodes": {"operator": "In", "values": [42]}});
    let source = json!({"name": "a", "restartPolicy": "Never", "restartPolicyRules": [rule]});
    let mut case = Case::new(json!({"restartPolicy": "Never", "containers": [source, {"name": "b"}]}));
    let kind = "AllContainersRestarting";
    assert_eq!(condition(&case.status(), kind), ("False", None, None));
    let report = report(vec![ended("a", 42), running("b", true)]);
    case.report = Some(PodState { restarting_all: true, ..report.clone() });
    let (status, why) = (case.status(), "container exited with restart policy rule");
    assert_eq!(condition(&status, kind), ("True", Some("RestartAllContainersStarted"), Some(why)));
    assert_eq!(status.phase.as_deref(), Some("Running"));
    case.report = Some(PodState { finished: true, ..report });
    case.report.as_mut().expect("report").containers = vec![ended("a", 1), ended("b", 0)];
    assert_eq!(condition(&case.status(), kind), ("False", Some("PodFailed"), None));

    let other = Case::new(json!({"containers": [{"name": "a"}]}));
    assert!(!other.status().conditions.iter().flatten().any(|c| c.type_ == kind), "only where a rule may do it");
}

#[test]
fn a_pod_that_slurm_told_to_end_is_not_over_before_slurm_says_so() {
    for policy in ["Never", "Always"] {
        let mut case = Case::new(json!({"restartPolicy": policy, "containers": [{"name": "a"}]}));
        case.report = Some(report(vec![running("a", true)]));
        case.job = Some(Run { phase: RunPhase::Running, ..Run::lost("7", "u") });
        case.previous = Some(case.status());
        let stopping = Some(StopCause::Signal);
        case.report = Some(PodState { finished: true, stopping, ..report(vec![ended("a", 137)]) });
        let status = case.status();
        let container = &status.container_statuses.as_ref().expect("statuses")[0];
        let runs = container.state.as_ref().is_some_and(|s| s.running.is_some());
        // It may go back into the queue, and the API would take no terminated container of policy Never back.
        assert_eq!((status.phase.as_deref(), runs, container.ready), (Some("Running"), true, false), "{policy}");
        case.job = Some(Run { phase: RunPhase::Cancelled, ..Run::lost("7", "u") });
        let status = case.status();
        assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some("Failed"), Some("SlurmJobCancelled")));
        let state = status.container_statuses.as_ref().and_then(|all| all[0].state.as_ref()).expect("a state");
        assert_eq!(state.terminated.as_ref().map(|t| t.exit_code), Some(137));
    }
}

#[test]
fn lost_node() {
    let mut case = Case::new(json!({"containers": [{"name": "a"}]}));
    case.report = Some(report(vec![running("a", true)]));
    case.job =
        Some(Run { phase: RunPhase::NodeFail, nodes: "c1".into(), started_at: Some(at(1400)), ..Run::lost("7", "u") });
    let status = case.status();
    assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some("Failed"), Some("NodeLost")));
    let ended = status.container_statuses.as_ref().expect("statuses")[0]
        .state
        .as_ref()
        .expect("state")
        .terminated
        .clone()
        .expect("terminated");
    assert_eq!((ended.exit_code, ended.reason.as_deref()), (137, Some("ContainerStatusUnknown")));
    assert_eq!(condition(&status, "DisruptionTarget").0, "True");

    // A later report does not bring it back.
    case.previous = Some(status.clone());
    case.job = None;
    let again = case.status();
    assert_eq!((again.phase.as_deref(), again.reason.as_deref()), (Some("Failed"), Some("NodeLost")));
}

#[test]
fn what_never_started_waits() {
    let mut case = Case::new(json!({"initContainers": [{"name": "i"}], "containers": [{"name": "a"}]}));
    case.job = Some(Run { phase: RunPhase::Failed, started_at: Some(at(1400)), ..Run::lost("7", "u") });
    case.launch = Some(LaunchReport { step: "apptainer".into(), message: "no".into(), ..LaunchReport::default() });
    let status = case.status();
    assert_eq!((status.phase.as_deref(), status.reason.as_deref()), (Some("Failed"), Some("SlurmJobFailed")));
    let all = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    for container in all {
        let waiting = container.state.as_ref().and_then(|s| s.waiting.as_ref());
        assert_eq!(waiting.and_then(|w| w.reason.as_deref()), Some("PodInitializing"), "{}", container.name);
    }
    assert_eq!(condition(&status, "Initialized").0, "False");
}

#[test]
fn a_pod_that_is_put_back_is_pending_whatever_its_policy() {
    for policy in ["Never", "OnFailure", "Always"] {
        for name in ["i", "a"] {
            let mut case = Case::new(
                json!({"restartPolicy": policy, "initContainers": [{"name": "i"}], "containers": [{"name": "a"}]}),
            );
            let mut again = ended(name, 137);
            let RunState::Terminated(end) = again.state.clone() else { panic!("it ended") };
            again.last_termination = Some(end);
            again.state = RunState::Waiting { reason: "ContainerCreating".into(), message: String::new() };
            let mut word = report(vec![again.clone()]);
            if name == "i" {
                word = PodState { init_containers: vec![again], ..report(vec![]) };
            }
            case.report = Some(word);
            case.job = Some(Run { phase: RunPhase::Pending, ..Run::lost("7", "u") });
            case.put_back = true;
            assert_eq!(case.status().phase.as_deref(), Some("Pending"), "{policy} {name}");
            // Its next supervisor has spoken, and has not started it yet.
            case.put_back = false;
            case.job = Some(Run { phase: RunPhase::Running, ..Run::lost("7", "u") });
            let phase = case.status().phase;
            assert!(matches!(phase.as_deref(), Some("Pending" | "Running")), "{policy} {name}: {phase:?}");
        }
    }
}

#[test]
fn a_pod_of_a_silent_node_is_not_ready() {
    let mut case = Case::new(json!({"containers": [{"name": "a"}]}));
    case.report = Some(report(vec![running("a", true)]));
    case.job = Some(Run { phase: RunPhase::Running, nodes: "c1".into(), ..Run::lost("7", "u") });
    assert!(condition(&case.status(), "Ready").0 == "True" && !is_silent(&case.status()));
    case.silent = true;
    let status = case.status();
    let (ready, reason, message) = condition(&status, "Ready");
    assert_eq!((ready, reason), ("False", Some("NodeNotReady")));
    assert!(message.is_some_and(|m| m.contains("node c1")) && is_silent(&status));
    assert_eq!((status.phase.as_deref(), condition(&status, "ContainersReady").0), (Some("Running"), "True"));
}

#[test]
fn cancelled_while_pending() {
    let mut case = Case::new(json!({"containers": [{"name": "a"}]}));
    case.job = Some(Run { phase: RunPhase::Cancelled, killed_by: Some("root".into()), ..Run::lost("7", "u") });
    let status = case.status();
    assert_eq!(
        (status.phase.as_deref(), status.reason.as_deref(), status.message.as_deref()),
        (Some("Failed"), Some("SlurmJobCancelled"), Some("Slurm job 7 was cancelled by root"))
    );
    assert!(
        status.container_statuses.as_ref().expect("statuses")[0].state.as_ref().expect("state").waiting.is_some(),
        "it never ran"
    );
}

#[test]
fn held_image() {
    let mut case = Case::new(json!({"initContainers": [{"name": "i"}], "containers": [{"name": "a"}]}));
    case.held.insert(
        "i".into(),
        Waiting { reason: "ImagePullBackOff".into(), message: "Back-off pulling image \"x\"".into() },
    );
    let status = case.status();
    let reason = |s: &ContainerStatus| s.state.as_ref().and_then(|s| s.waiting.as_ref()).and_then(|w| w.reason.clone());
    assert_eq!(reason(&status.init_container_statuses.as_ref().expect("init")[0]).as_deref(), Some("ImagePullBackOff"));
    assert_eq!(reason(&status.container_statuses.as_ref().expect("main")[0]).as_deref(), Some("PodInitializing"));
    assert_eq!(
        condition(&status, "Initialized"),
        ("False", Some("ContainersNotInitialized"), Some("containers with incomplete status: [i]"))
    );
}

#[test]
fn patches_say_only_what_changed() {
    let mut case = Case::new(json!({"containers": [{"name": "a"}]}));
    let first = case.status();
    assert_eq!(patch(&case.pod, &first, &first, None), None);
    case.report = Some(report(vec![running("a", true)]));
    case.previous = Some(first.clone());
    let second = case.status();
    let value = patch(&case.pod, &first, &second, None).expect("a patch");
    assert_eq!(value["metadata"]["uid"], "u");
    assert_eq!(value["status"]["phase"], "Running");
    assert_eq!(value["status"].get("hostIP"), None, "unchanged");
    let ready = value["status"]["conditions"]
        .as_array()
        .expect("list")
        .iter()
        .find(|c| c["type"] == "Ready")
        .expect("Ready")
        .clone();
    assert!(ready["message"].is_null() && ready.get("message").is_some(), "a vanished text is taken back");
}

#[test]
fn what_was_asked_of_slurm_is_an_annotation() {
    let mut case = Case::new(json!({"containers": [{"name": "a"}]}));
    let status = case.status();
    let value = patch(&case.pod, &status, &status, Some("--mem=1088M")).expect("a patch");
    assert_eq!(value["metadata"]["annotations"], json!({"slurm-job.hpk.io/requested": "--mem=1088M"}));
    assert_eq!(value["status"], json!({}));
    case.pod.metadata.annotations = Some([("slurm-job.hpk.io/requested".to_owned(), "--mem=1088M".to_owned())].into());
    assert_eq!(patch(&case.pod, &status, &status, Some("--mem=1088M")), None, "it is there");
}
