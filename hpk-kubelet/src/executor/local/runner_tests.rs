use super::*;
use hpk_api::local::Process;
use hpk_layout::Home;
use hpk_layout::run::PROCESS;
use std::time::Instant;

/// A pod's folder with a script in the place of `hpk-netns run`: it writes down who it is and how it ended as that does.
fn pod(home: &Path, uid: &str, ends: &str) -> PathBuf {
    let folder = Home::at(home).pod(uid);
    std::fs::create_dir_all(&folder).unwrap();
    let text = format!(
        "boot=$(cat /proc/sys/kernel/random/boot_id)\n\
         set -- $(cat /proc/$$/stat)\n\
         printf '{{\"pid\":%s,\"started\":%s,\"boot\":\"%s\"}}' $$ ${{22}} $boot > $HPK_RUN/new.$$\n\
         ln $HPK_RUN/new.$$ $HPK_RUN/{PROCESS} || exit 75\n\
         end() {{ printf '{{\"code\":%s,\"at\":\"%s\"}}' $1 $(date -u +%FT%TZ) > $HPK_RUN/e && mv $HPK_RUN/e $HPK_RUN/end.json; exit $1; }}\n\
         {ends}\n"
    );
    let script = folder.join("job.sh");
    std::fs::write(&script, text).unwrap();
    script
}

/// Until it is told to end, or for ever.
const STAYS: &str = "trap 'kill $!; end 143' TERM\nsleep 1000 & wait";
const TWO_CPUS: Machine = Machine {
    milli_cpu: 2000,
    memory_mib: 1000,
    gpus: super::super::machine::Gpus { variable: "CUDA_VISIBLE_DEVICES", ids: Vec::new() },
};

struct World {
    tell: mpsc::UnboundedSender<Message>,
    thread: std::thread::JoinHandle<()>,
    news: watch::Receiver<u64>,
}

impl World {
    fn new(home: &Path, machine: Machine) -> Self {
        let (tell, told) = mpsc::unbounded_channel();
        let (news, heard) = watch::channel(0);
        let runner = Runner::new(&Home::at(home), machine, Cgroups::Nobody, None, tell.clone(), news).unwrap();
        Self { tell, thread: std::thread::spawn(move || runner.work(told)), news: heard }
    }

    async fn submit(&self, pod: &str, cpu: u64, script: &Path) -> Result<u64, Refused> {
        let (reply, answer) = oneshot::channel();
        let asked = vec![format!("cpu={cpu}m"), "memory=10Mi".to_owned()];
        let message = Message::Submit { pod: pod.to_owned(), asked, script: script.to_owned(), reply };
        self.tell.send(message).unwrap();
        answer.await.unwrap()
    }

    async fn run(&self, id: u64) -> Option<Run> {
        let (reply, answer) = oneshot::channel();
        self.tell.send(Message::Query { ids: Some(vec![id.to_string()]), reply }).unwrap();
        answer.await.unwrap().pop()
    }

    async fn until(&mut self, id: u64, phase: RunPhase) -> Run {
        let end = Instant::now() + std::time::Duration::from_secs(30);
        loop {
            let run = self.run(id).await.expect("the run");
            if run.phase == phase {
                return run;
            }
            let left = end.saturating_duration_since(Instant::now());
            tokio::time::timeout(left, self.news.changed())
                .await
                .unwrap_or_else(|_| panic!("{run:?}, not {phase:?}"))
                .unwrap();
        }
    }

    /// The kubelet is gone, as far as anybody knows: it is told nothing any more. Its thread still hears of the ends of what
    /// it has started, and may begin what another begins too.
    async fn kill(self) {
        let Self { tell, thread, .. } = self;
        drop(tell);
        // Tasks that wait for processes hold the channel; the thread is left behind.
        drop(thread);
    }
}

#[tokio::test]
async fn turns_ends_and_one_run_for_a_pod() {
    let home = tempfile::tempdir().unwrap();
    let mut world = World::new(home.path(), TWO_CPUS);
    let long = pod(home.path(), "a", STAYS);
    let first = world.submit("a", 1500, &long).await.unwrap();
    assert_eq!(world.submit("a", 1500, &long).await.unwrap(), first, "a pod that is submitted again");
    world.until(first, RunPhase::Running).await;
    let second = world.submit("b", 1000, &pod(home.path(), "b", "end 3")).await.unwrap();
    let third = world.submit("c", 100, &pod(home.path(), "c", "end 0")).await.unwrap();
    let waits = world.run(second).await.unwrap();
    assert_eq!((waits.phase, waits.reason.as_str()), (RunPhase::Pending, "Resources"));
    assert_eq!(world.run(third).await.unwrap().reason, "Turn");
    assert!(matches!(world.submit("d", 2001, &long).await, Err(Refused::TooLarge(_))));
    world.tell.send(Message::Cancel { id: first.to_string() }).unwrap();
    let over = world.until(first, RunPhase::Cancelled).await;
    assert_eq!((over.exit_code, over.pod.as_str()), (Some(143), "a"));
    assert_eq!(world.until(second, RunPhase::Failed).await.exit_code, Some(3));
    assert_eq!(world.until(third, RunPhase::Completed).await.exit_code, Some(0));
    // Over, and its pod's folder gone: nothing is left of it.
    for uid in ["a", "b", "c"] {
        std::fs::remove_dir_all(Home::at(home.path()).pod(uid)).unwrap();
    }
    world.run(first).await;
    assert_eq!(world.run(first).await, None);
    assert!(Runs::open(&Home::at(home.path())).unwrap().all().unwrap().is_empty());
}

#[tokio::test]
async fn another_kubelet_finds_what_runs_and_what_waits() {
    let home = tempfile::tempdir().unwrap();
    let mut world = World::new(home.path(), TWO_CPUS);
    let runs = world.submit("a", 1500, &pod(home.path(), "a", STAYS)).await.unwrap();
    world.until(runs, RunPhase::Running).await;
    let waits = world.submit("b", 1500, &pod(home.path(), "b", STAYS)).await.unwrap();
    // Its process must have said who it is, or the next one would be begun beside it, which the other case is for.
    let folder = Runs::open(&Home::at(home.path())).unwrap().folder(runs);
    while !folder.join(PROCESS).exists() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    world.kill().await;
    let mut world = World::new(home.path(), TWO_CPUS);
    assert_eq!(world.run(runs).await.unwrap().phase, RunPhase::Running);
    assert_eq!(world.run(waits).await.unwrap().phase, RunPhase::Pending);
    let process: Process = serde_json::from_slice(&std::fs::read(folder.join(PROCESS)).unwrap()).unwrap();
    // Killed, so that it writes no end.
    processes::signal(process.pid, Signal::SIGKILL);
    assert_eq!(world.until(runs, RunPhase::Failed).await.exit_code, Some(KILLED));
    world.until(waits, RunPhase::Running).await;
    world.tell.send(Message::Cancel { id: waits.to_string() }).unwrap();
    world.until(waits, RunPhase::Cancelled).await;
}

#[tokio::test]
async fn a_run_that_may_have_been_begun_is_begun_once() {
    let home = tempfile::tempdir().unwrap();
    let script = pod(home.path(), "a", STAYS);
    let runs = Runs::open(&Home::at(home.path())).unwrap();
    // The kubelet was killed after it had written that the turn has come; its process is about to come, or never was.
    let record = Record {
        pod: "a".into(),
        script: script.clone(),
        asked: vec!["cpu=1m".into()],
        started_at: Some(Timestamp::now()),
        gpus: vec![],
        cgroup: None,
        cancelled_at: None,
    };
    runs.write(1, &record).unwrap();
    let mut late = std::process::Command::new("sh").arg(&script).env(RUN, runs.folder(1)).spawn().unwrap();
    while runs.process(1).is_none() {
        std::thread::yield_now();
    }
    // The first is there. What a runner that has not seen it begins must come to nothing.
    let mut world = World::new(home.path(), TWO_CPUS);
    world.until(1, RunPhase::Running).await;
    let second = std::process::Command::new("sh").arg(&script).env(RUN, runs.folder(1)).status().unwrap();
    assert_eq!(second.code(), Some(75));
    world.tell.send(Message::Ended { id: 1, code: Some(75) }).unwrap();
    assert_eq!(world.run(1).await.unwrap().phase, RunPhase::Running, "the first goes on");
    world.tell.send(Message::Cancel { id: "1".into() }).unwrap();
    world.until(1, RunPhase::Cancelled).await;
    late.wait().unwrap();
}
