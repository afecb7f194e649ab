use super::super::cluster::Cluster;
use super::super::limits::Site;
use super::*;
use hpk_api::plan::PodRef;
use serde_json::{Value, json};
use std::path::Path;

fn pod(spec: &Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).expect("pod")
}

fn of(spec: &Value, site: SiteMemory) -> Needs {
    needs(&pod(spec), &Defaults::default(), has(site, &Capacity::default()))
}

fn has(memory: SiteMemory, capacity: &Capacity) -> Has<'_> {
    Has { memory, capacity, vendor: Vendor::Nvidia }
}

fn container(name: &str, resources: Value) -> Value {
    json!({"name": name, "resources": resources})
}

/// Docs/guide/pods.md has this table for users.
#[test]
fn memory() {
    let request = |m: &str| json!({"requests": {"memory": m}});
    let limit = |m: &str| json!({"limits": {"memory": m}});
    let main = |r: Value| json!([container("a", r)]);
    for (what, spec, mib) in [
        ("neither", json!({"containers": main(json!({}))}), 1024),
        ("a request", json!({"containers": main(request("100Mi"))}), 100),
        ("in bytes, rounded up", json!({"containers": main(request("100M"))}), 96),
        ("a limit", json!({"containers": main(limit("200Mi"))}), 200),
        (
            "a limit above the request",
            json!({"containers": main(json!({"requests": {"memory": "64Mi"}, "limits": {"memory": "1Gi"}}))}),
            1024,
        ),
        (
            "several, one of them silent",
            json!({"containers": [container("wait", request("64Mi")), container("main", json!({"requests": {"cpu": "1"}}))]}),
            64 + 1024,
        ),
        ("several silent ones", json!({"containers": [container("a", json!({})), container("b", json!({}))]}), 2048),
        (
            "an init container that is larger",
            json!({"initContainers": [container("i", limit("3Gi"))], "containers": main(request("1Gi"))}),
            3072,
        ),
        (
            "a silent init container that is larger",
            json!({"initContainers": [container("i", json!({}))], "containers": main(request("64Mi"))}),
            1024,
        ),
        (
            "a sidecar beside the container and beside a later init container",
            json!({"initContainers": [
                    {"name": "s", "restartPolicy": "Always", "resources": limit("1Gi")}, container("i", request("2Gi"))],
                "containers": main(request("512Mi"))}),
            3072,
        ),
        ("a limit of the pod", json!({"resources": limit("512Mi"), "containers": main(json!({}))}), 512),
        (
            "a limit of the pod, below the sum of its containers' requests",
            json!({"resources": limit("512Mi"), "containers": main(request("1Gi"))}),
            512,
        ),
        ("a request of the pod", json!({"resources": request("256Mi"), "containers": main(json!({}))}), 256),
        (
            "a request of the pod and a container's limit",
            json!({"resources": request("256Mi"), "containers": main(limit("1Gi"))}),
            1024,
        ),
        ("overhead", json!({"overhead": {"memory": "100Mi"}, "containers": main(request("100Mi"))}), 200),
        ("0 is said too", json!({"containers": main(request("0"))}), 0),
    ] {
        assert_eq!(of(&spec, SiteMemory::Unset).memory_mib, mib + ROOM, "{what}");
    }
}

#[test]
fn a_job_with_a_silent_container_has_no_less_than_slurm_gives_by_itself() {
    let silent = json!({"containers": [container("a", json!({"requests": {"cpu": "2"}}))]});
    let mixed =
        json!({"containers": [container("a", json!({"requests": {"memory": "1Gi"}})), container("b", json!({}))]});
    let given = json!({"containers": [container("a", json!({"requests": {"memory": "1Gi"}}))]});
    for (spec, site, mib) in [
        (&silent, SiteMemory::Cpu(4000), 8000),
        (&silent, SiteMemory::Cpu(100), 1024 + ROOM),
        (&silent, SiteMemory::Job(64_000), 64_000),
        (&mixed, SiteMemory::Job(64_000), 64_000),
        (&mixed, SiteMemory::Job(1500), 2048 + ROOM),
        (&given, SiteMemory::Job(64_000), 1024 + ROOM),
    ] {
        assert_eq!(of(spec, site).memory_mib, mib, "{spec} {site:?}");
    }
    // The user's own choice holds, up and down.
    let chosen = Defaults { memory_mib: Some(256), ..Defaults::default() };
    assert_eq!(
        needs(&pod(&mixed), &chosen, has(SiteMemory::Job(64_000), &Capacity::default())).memory_mib,
        1024 + 256 + ROOM
    );
}

#[test]
fn cpus() {
    let cpu = |c: &str| json!({"requests": {"cpu": c}});
    for (spec, cpus) in [
        (json!({"containers": [container("a", json!({}))]}), 1),
        (json!({"containers": [container("a", cpu("1500m")), container("b", cpu("600m"))]}), 3),
        (json!({"containers": [container("a", json!({"limits": {"cpu": "2"}}))]}), 2),
        (json!({"initContainers": [container("i", cpu("4"))], "containers": [container("a", cpu("1"))]}), 4),
        (
            json!({"initContainers": [{"name": "s", "restartPolicy": "Always", "resources": cpu("1")}, container("i", cpu("4"))],
                "containers": [container("a", cpu("1"))]}),
            5,
        ),
        (json!({"overhead": {"cpu": "250m"}, "resources": cpu("3"), "containers": [container("a", cpu("1"))]}), 4),
    ] {
        assert_eq!(of(&spec, SiteMemory::Unset).cpus, cpus, "{spec}");
    }
}

#[test]
fn gpus() {
    let limits = json!({"limits": {"nvidia.com/gpu": "2", "example.com/foo": "1"}});
    let needs = of(&json!({"containers": [container("a", limits)]}), SiteMemory::Unset);
    assert_eq!(needs.gres, [("gpu".to_owned(), 2)].into());
    assert_eq!(needs.unknown, ["example.com/foo"]);
    let ours = [("gpu".to_owned(), 2)].into();
    for (given, all) in
        [(None, "gpu:2"), (Some("nic:1"), "gpu:2,nic:1"), (Some("gpu:a100:1,nic:1"), "gpu:a100:1,nic:1")]
    {
        assert_eq!(joined(&ours, given).as_deref(), Some(all));
    }
    assert_eq!(joined(&BTreeMap::new(), None), None);
}

const SINFO: &str = "\
c1|64|16000|gpu:a100:4|idle|main|up|avx
c2|64|16000|gpu:h100:4|idle|main|up|avx
c3|64|16000|gpu:mi250:4|idle|amd|up|avx
";

#[test]
fn a_type_of_gpu_is_asked_for_by_name() {
    let there = Cluster::parse(SINFO);
    let ask = |resource: &str, annotation: Option<&str>, flags: &[&str]| {
        let limits = json!({"limits": {resource: "2"}});
        let mut pod = pod(&json!({"containers": [container("a", limits)]}));
        pod.metadata.annotations = annotation.map(|model| [(gres::MODEL.to_owned(), model.to_owned())].into());
        let asked = asked(&pod, flags, &Site::default(), &there)?;
        Ok::<_, String>(asked.arguments.into_iter().find(|a| a.starts_with("--gres=")).unwrap_or_default())
    };
    assert_eq!(ask("nvidia.com/gpu", Some("h100"), &[]).as_deref(), Ok("--gres=gpu:h100:2"));
    assert_eq!(ask("amd.com/gpu", None, &[]).as_deref(), Ok("--gres=gpu:mi250:2"));
    assert_eq!(ask("amd.com/gpu", None, &["--partition=amd"]).as_deref(), Ok("--gres=gpu:2"));
    assert_eq!(ask("nvidia.com/gpu", None, &["--partition=main"]).as_deref(), Ok("--gres=gpu:2"));
    assert_eq!(ask("nvidia.com/gpu", None, &["--gres=gpu:a100:1"]).as_deref(), Ok("--gres=gpu:a100:1"));
    let refused = ask("nvidia.com/gpu", None, &[]).expect_err("two types and a third of another vendor");
    assert!(refused.contains("a100, h100") && refused.contains("gpu-type"), "{refused}");
}

fn asks(spec: &Value, flags: &[&str], site: &Site) -> Asked {
    asked(&pod(spec), flags, site, &Cluster::default()).expect("a request")
}

fn asked(pod: &Pod, flags: &[&str], site: &Site, there: &Cluster) -> Result<Asked, String> {
    let who = PodRef { namespace: "ns".into(), name: "p".into(), uid: "u-1".into() };
    let given: Vec<String> = flags.iter().map(|f| (*f).to_owned()).collect();
    let (cluster, defaults) = (crate::pods::plan::tests::cluster(), Defaults::default());
    let folder = Path::new("/home/a/.hpk/pods/u-1");
    let asking =
        Asking { pod, who: &who, node: None, folder, cluster: &cluster, defaults: &defaults, site, there, avoid: &[] };
    request(&asking, &given).map_err(|error| error.to_string())
}

#[test]
fn command_line() {
    let spec = json!({"activeDeadlineSeconds": 100, "terminationGracePeriodSeconds": 20,
        "containers": [container("a", json!({"limits": {"nvidia.com/gpu": "1"}}))]});
    let request = asks(&spec, &["--partition=debug", "--constraint=a&b"], &Site::default());
    let all = "--no-requeue --propagate=NONE --nodes=1 --ntasks=1 --cpus-per-task=1 --mem=1088M --time=4 --partition=debug \
         --constraint=a&b --gres=gpu:1 --parsable --job-name=ns/p --comment=u-1 --chdir=/home/a/.hpk/pods/u-1 --input=/dev/null \
         --output=/home/a/.hpk/pods/u-1/job.out --error=/home/a/.hpk/pods/u-1/job.out --open-mode=append --export=ALL \
         --signal=B:TERM@30";
    assert_eq!(request.arguments.join(" "), all);
    assert_eq!(
        request.asked,
        "--nodes=1 --ntasks=1 --cpus-per-task=1 --mem=1088M --time=4 --partition=debug '--constraint=a&b' --gres=gpu:1"
    );
    assert!(request.warnings.is_empty());
}

#[test]
fn what_the_users_flags_say_in_other_words_is_left_out() {
    let spec = json!({"containers": [container("a", json!({}))]});
    for (flag, ours) in [
        ("--mem=2G", "mem"),
        ("--mem-per-cpu=2G", "mem"),
        ("--mem-per-gpu=2G", "mem"),
        ("--cpus-per-gpu=4", "cpus-per-task"),
        ("--tres-per-task=cpu:4", "cpus-per-task"),
        ("--ntasks-per-node=2", "ntasks"),
        ("--time=5", "time"),
        ("--nodes=2", "nodes"),
    ] {
        let all = asks(&spec, &[flag], &Site::default()).arguments;
        assert_eq!(
            all.iter().filter(|a| flags::has(&[(*a).clone()], ours)).count(),
            usize::from(flag.starts_with(&format!("--{ours}="))),
            "{flag}: {all:?}"
        );
        assert!(all.iter().any(|a| a == flag), "{flag}");
    }
}

fn debug_of_five_minutes() -> Site {
    Site::parse("", "PartitionName=debug Default=YES DefaultTime=NONE MaxTime=00:05:00", |_| None)
}

#[test]
fn times() {
    let spec = |grace: u64, deadline: Option<u64>| json!({"terminationGracePeriodSeconds": grace, "activeDeadlineSeconds": deadline, "containers": [{"name": "a"}]});
    let (open, five) = (Site::default(), debug_of_five_minutes());
    for (what, spec, flags, site, time, signal, warned) in [
        ("nothing", spec(30, None), &[][..], &open, None, 40, false),
        ("a deadline", spec(30, Some(100)), &[][..], &open, Some("4"), 40, false),
        (
            "a deadline below the partition's limit, with its margin above",
            spec(30, Some(280)),
            &[][..],
            &five,
            Some("5"),
            40,
            false,
        ),
        ("a deadline that is the limit", spec(30, Some(300)), &[][..], &five, Some("5"), 40, false),
        ("a deadline above it", spec(30, Some(600)), &[][..], &five, Some("5"), 40, true),
        ("a deadline of 136 years", spec(30, Some(u64::from(u32::MAX))), &[][..], &open, Some("71582790"), 40, false),
        ("the user's own time", spec(30, Some(280)), &["--time=2"][..], &five, Some("2"), 30, false),
        ("a grace period beyond the limit", spec(600, None), &[][..], &five, None, 120, true),
        ("a grace period beyond the user's time", spec(3600, None), &["--time=10"][..], &open, Some("10"), 270, true),
        ("a grace period within it", spec(100, None), &["--time=10"][..], &open, Some("10"), 110, false),
        ("one minute", spec(30, None), &["--time=1"][..], &open, Some("1"), 1, true),
        ("a long grace period", spec(100_000, None), &[][..], &open, None, 65_000, false),
    ] {
        let request = asks(&spec, flags, site);
        assert_eq!(flags::value(&request.arguments, "time"), time, "{what}");
        assert_eq!(flags::value(&request.arguments, "signal"), Some(format!("B:TERM@{signal}").as_str()), "{what}");
        assert_eq!(!request.warnings.is_empty(), warned, "{what}: {:?}", request.warnings);
    }
}

#[test]
fn tasks_that_nobody_starts_are_told() {
    let spec = json!({"containers": [{"name": "a"}]});
    for (flag, told) in
        [("--ntasks=4", true), ("--nodes=2-4", true), ("--nodes=1", false), ("--cpus-per-task=4", false)]
    {
        let warnings = asks(&spec, &[flag], &Site::default()).warnings;
        assert_eq!(
            warnings.iter().any(|(reason, text)| *reason == "SlurmTasksIdle" && text.contains("requests.cpu")),
            told,
            "{flag}"
        );
    }
    let mut pod = pod(&spec);
    pod.metadata.annotations = Some([(pod_flags::MPI_FLAGS.to_owned(), "--mpi=pmix".to_owned())].into());
    assert_eq!(idle_tasks(&pod, &["--ntasks=4".to_owned()]), None);
}

#[test]
fn an_mpi_step_asks_for_each_of_its_ranks() {
    let annotations = json!({"slurm-job.hpk.io/mpi-flags": ""});
    let spec = json!({"containers": [container("a", json!({"requests": {"cpu": "3", "memory": "1Gi"}}))]});
    let pod: Pod =
        serde_json::from_value(json!({"metadata": {"annotations": annotations}, "spec": spec})).expect("pod");
    let asked = |given: &[&str]| {
        let given: Vec<String> = given.iter().map(|&flag| flag.to_owned()).collect();
        let site = Site::default();
        let given: Vec<&str> = given.iter().map(String::as_str).collect();
        asked(&pod, &given, &site, &Cluster::default()).expect("a request").asked
    };
    // A third of 1 GiB and the supervisor's share, rounded up.
    let each = (1024
        + of(&json!({"containers": [container("a", json!({"requests": {"memory": "1Gi"}}))]}), SiteMemory::default())
            .memory_mib
        - 1024)
        .div_ceil(3);
    assert_eq!(
        asked(&["--ntasks=8", "--nodes=2"]),
        format!("--cpus-per-task=3 --mem-per-cpu={each}M --ntasks=8 --nodes=2")
    );
    assert_eq!(asked(&["--nodes=2"]), format!("--cpus-per-task=3 --mem-per-cpu={each}M --nodes=2"));
    assert_eq!(asked(&[]), format!("--ntasks=1 --cpus-per-task=3 --mem-per-cpu={each}M"));
}

#[test]
fn nodes_that_made_no_sandbox_are_left_out_beside_the_users() {
    let strings = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    for (given, avoid, wanted) in [
        (&[][..], &[][..], None),
        (&[], &["c1"], Some("c1")),
        (&["--exclude=c[3-4]"], &["c1", "c2"], Some("c[3-4],c1,c2")),
        (&["--exclude=c3"], &[], Some("c3")),
        (&["--nodelist=c1"], &["c1"], None),
    ] {
        assert_eq!(excluded(&strings(given), &strings(avoid)).as_deref(), wanted, "{given:?} {avoid:?}");
    }
}

#[test]
fn a_pod_without_a_deadline_can_have_a_default() {
    let site = Site::parse(
        "",
        "PartitionName=main Default=YES MaxTime=UNLIMITED\nPartitionName=debug MaxTime=00:05:00\n",
        |_| None,
    );
    let time = |spec: &Value, flags: &[&str]| {
        let who = PodRef { namespace: "ns".into(), name: "p".into(), uid: "u".into() };
        let given: Vec<String> = flags.iter().map(|f| (*f).to_owned()).collect();
        let defaults = Defaults { time_minutes: Some(90), ..Defaults::default() };
        let (cluster, there, pod) = (crate::pods::plan::tests::cluster(), Cluster::default(), pod(spec));
        let folder = Path::new("/p");
        let asking = Asking {
            pod: &pod,
            who: &who,
            node: None,
            folder,
            cluster: &cluster,
            defaults: &defaults,
            site: &site,
            there: &there,
            avoid: &[],
        };
        let asked = request(&asking, &given).expect("a request");
        asked.arguments.into_iter().filter(|a| a.starts_with("--time=")).collect::<Vec<_>>()
    };
    let silent = json!({"containers": []});
    assert_eq!(time(&silent, &[]), ["--time=90"]);
    assert_eq!(time(&silent, &["--partition=debug"]), ["--time=5"]);
    assert_eq!(time(&silent, &["--time=10"]), ["--time=10"]);
    assert_eq!(time(&json!({"containers": [], "activeDeadlineSeconds": 100}), &[]), ["--time=4"]);
}
