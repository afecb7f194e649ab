//! Launchers and join with real processes.
//!
//! The native launcher, or, where `$HPK_SYS_APPTAINER` names an Apptainer and `$HPK_SYS_SHIM` an hpk-pause, the nested one:
//! the same tests for both. The latter needs a pod's parent container around it, so a case on the site runs it.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{World, finish, output, wait};
use hpk_sys::caps::CapSet;
use hpk_sys::join::Joiner;
use hpk_sys::launch::JoinSpec;
use hpk_sys::launch::{
    FailureKind, LaunchError, LaunchSpec, Launched, Launcher, Mount, Native, NestedApptainer, PidNamespace, Places,
    Propagation, Rlimit, Security, Shown, Step,
};
use hpk_sys::reap::ExitCause;
use hpk_sys::signals::{self, MountNs};
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::Arc;

fn launcher(places: Places) -> Box<dyn Launcher> {
    match (std::env::var_os("HPK_SYS_APPTAINER"), std::env::var_os("HPK_SYS_SHIM")) {
        (Some(apptainer), Some(shim)) => Box::new(NestedApptainer::with(apptainer, shim, places).expect("a node")),
        _ => Box::new(Native::with(places).expect("a node").below()),
    }
}

/// Nested Apptainer makes no user namespaces of containers.
fn nested() -> bool {
    std::env::var_os("HPK_SYS_APPTAINER").is_some()
}

fn start(spec: &LaunchSpec) -> Result<Launched, LaunchError> {
    launcher(Places::default()).launch(spec)
}

fn run(spec: &LaunchSpec) -> (String, String, ExitCause) {
    finish(start(spec).expect("a container"))
}

fn fails(spec: &LaunchSpec) -> LaunchError {
    start(spec).expect_err("no container")
}

#[test]
fn a_container_has_its_own_root_and_process_namespace() {
    let world = World::new();
    let (out, err, cause) = run(&world.sh("echo $$; ls /; ls /dev; cat /proc/1/comm; echo e >&2; exit 7"));
    assert_eq!(cause, ExitCause::Exited(7), "{err}");
    assert_eq!(err, "e\n");
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines.first(), Some(&"1"));
    for wanted in ["bin", "dev", "proc", "sys", "null", "zero", "ptmx", "shm", "mqueue", "pts", "stdout", "sh"] {
        assert!(lines.contains(&wanted), "{wanted} in {out}");
    }
    assert!(!lines.contains(&"var"));
}

#[test]
fn only_the_containers_own_mounts_and_descriptors_are_seen() {
    let world = World::new();
    let (out, _, _) = run(&world.sh("cat /proc/self/mounts; ls /proc/self/fd"));
    assert!(
        !out.contains("/var/tmp") || out.lines().all(|line| line.contains("overlay") || !line.contains("/var/tmp")),
        "{out}"
    );
    // fuse-overlayfs where Apptainer makes it without the kernel's.
    assert!(out.lines().filter(|line| line.contains("overlay") && line.contains(" / ")).count() == 1, "{out}");
    // 0, 1, 2 and the one that ls reads the folder with.
    assert_eq!(out.lines().filter(|line| line.parse::<u32>().is_ok()).count(), 4, "{out}");
}

#[test]
fn writes_go_to_the_upper_layer_and_a_fresh_run_does_not_see_them() {
    let world = World::new();
    let (_, err, cause) = run(&world.sh("echo x > /etc/new && touch /bin/more"));
    assert_eq!(cause, ExitCause::Exited(0), "{err}");
    assert!(!world.rootfs.join("etc/new").exists());
    assert!(world.path("scratch/1/upper/etc/new").exists());
    let (_, _, cause) = run(&world.sh("test -e /etc/new"));
    assert_eq!(cause, ExitCause::Exited(1));
}

#[test]
fn standard_streams_can_be_opened_by_path_and_by_another_user() {
    let world = World::new();
    let mut spec = world.sh("echo out > /dev/stdout; echo err > /dev/stderr; echo null > /dev/null; id -u; id -g; cat");
    spec.security = Security { uid: 33, gid: 33, ..Security::default() };
    let (out, err, cause) = run(&spec);
    assert_eq!((out.as_str(), err.as_str(), cause), ("out\n33\n33\n", "err\n", ExitCause::Exited(0)));
}

#[test]
fn standard_input_is_a_pipe_when_asked_for() {
    let world = World::new();
    let mut spec = world.spec(&["cat"]);
    spec.stdin = true;
    let Launched { pid, io, .. } = start(&spec).expect("a container");
    let hpk_sys::launch::Io::Pipes { stdin: Some(stdin), stdout, stderr } = io else { panic!("pipes") };
    nix::unistd::write(&stdin, b"hello").expect("a write");
    drop(stdin);
    let (out, _) = output(hpk_sys::launch::Io::Pipes { stdin: None, stdout, stderr });
    assert_eq!(out, "hello");
    assert_eq!(wait(pid), ExitCause::Exited(0));
}

#[test]
fn a_terminal_is_the_containers_own() {
    let world = World::new();
    let mut spec = world.sh("tty; test -c /dev/console && echo console; echo $TERM; ps -o tty 2>/dev/null | head -1; stty -a < /dev/tty | head -1");
    spec.tty = true;
    let (out, _, cause) = run(&spec);
    assert_eq!(cause, ExitCause::Exited(0), "{out}");
    assert!(out.starts_with("/dev/pts/0\r\nconsole\r\nxterm\r\n"), "{out}");
}

#[test]
fn mounts_make_their_mount_points_and_keep_their_order() {
    let world = World::new();
    for (dir, file) in [("outer", "a"), ("inner", "b")] {
        fs::create_dir_all(world.path(dir)).expect("a volume");
        fs::write(world.path(dir).join(file), dir).expect("a file");
    }
    fs::write(world.path("hosts"), "127.0.0.1 localhost\n").expect("a file");
    // A link that leads nowhere, as many images have it for resolv.conf.
    symlink("../run/resolve/stub.conf", world.rootfs.join("etc/resolv.conf")).expect("a link");
    let mut spec = world.sh("cat /data/a /data/deep/b /etc/hosts /etc/resolv.conf; echo w > /data/deep/w; echo no > /ro/x; stat -c %a /dev/termination-log; echo bye > /dev/termination-log");
    spec.mounts = vec![
        Mount::new(world.path("inner"), "/data/deep"),
        Mount::new(world.path("outer"), "/data"),
        Mount { read_only: true, ..Mount::new(world.path("outer"), "/ro") },
        Mount::new(world.path("hosts"), "/etc/hosts"),
        Mount::new(world.path("hosts"), "/etc/resolv.conf"),
        Mount { create_file: Some(0o666), ..Mount::new(world.path("message"), "/dev/termination-log") },
    ];
    let (out, err, cause) = run(&spec);
    assert_eq!(out, "outerinner127.0.0.1 localhost\n127.0.0.1 localhost\n666\n", "{err}");
    assert_eq!(cause, ExitCause::Exited(0));
    assert!(err.contains("Read-only file system"), "{err}");
    assert!(world.path("inner/w").exists());
    assert_eq!(fs::read_to_string(world.path("message")).expect("a message"), "bye\n");
}

#[test]
fn sub_paths_stay_in_their_volume() {
    let world = World::new();
    let volume = world.path("volume");
    fs::create_dir_all(volume.join("sub")).expect("a volume");
    fs::set_permissions(&volume, fs::Permissions::from_mode(0o751)).expect("a mode");
    fs::write(volume.join("sub/file"), "inside").expect("a file");
    symlink("sub", volume.join("link")).expect("a link");
    symlink("/etc", volume.join("absolute")).expect("a link");
    symlink("../../../../../../etc", volume.join("relative")).expect("a link");
    symlink("/proc/self/root", volume.join("magic")).expect("a link");
    let with = |path: &str, script: &str| {
        let mut spec = world.sh(script);
        spec.mounts = vec![Mount { sub_path: Some(path.to_owned()), ..Mount::new(&volume, "/mnt") }];
        spec
    };
    assert_eq!(run(&with("sub", "cat /mnt/file")).0, "inside");
    assert_eq!(run(&with("sub/file", "cat /mnt")).0, "inside");
    assert_eq!(run(&with("link/file", "cat /mnt")).0, "inside");
    assert_eq!(run(&with("new/deep", "stat -c %a /mnt")).0, "751\n");
    assert!(volume.join("new/deep").is_dir());
    for bad in
        ["absolute", "absolute/passwd", "relative", "magic", "magic/etc", "link/../../etc", "/etc", "relative/new"]
    {
        let error = fails(&with(bad, "true"));
        assert_eq!(error.kind(), FailureKind::Config, "{bad}: {error}");
    }
    assert!(matches!(fails(&with("sub/file/below", "true")), LaunchError::Setup { step: Step::SubPath, .. }));
}

#[test]
fn later_mounts_in_a_shared_volume_propagate() {
    let world = World::new();
    // The namespace of the tests is not to be changed: propagation needs a shared mount, made in a thread's own.
    let volume = world.path("volume");
    fs::create_dir_all(volume.join("inside")).expect("a volume");
    hpk_sys::mounts::make_shared(&volume).expect("a shared volume");
    let mut first = world.sh("mount -t tmpfs none /v/inside && echo seen > /v/inside/file && cat");
    first.stdin = true;
    first.security.caps = CapSet::all();
    first.mounts = vec![Mount { propagation: Propagation::Shared, ..Mount::new(&volume, "/v") }];
    let mut second = world.sh("until test -e /v/inside/file; do sleep 0.01; done; cat /v/inside/file");
    second.mounts = vec![Mount { propagation: Propagation::Slave, ..Mount::new(&volume, "/v") }];
    let mut third = world.sh("ls /v/inside");
    third.mounts = vec![Mount::new(&volume, "/v")];
    let mut launcher = launcher(Places::default());
    let third = launcher.launch(&third).expect("a container");
    let second = launcher.launch(&second).expect("a container");
    let first = launcher.launch(&first).expect("a container");
    assert_eq!(output(third.io).0, "");
    assert_eq!(output(second.io).0, "seen\n");
    drop(first.io);
    for pid in [first.pid, second.pid, third.pid] {
        assert_eq!(wait(pid), ExitCause::Exited(0));
    }
    let _ = nix::mount::umount2(&volume.join("inside"), nix::mount::MntFlags::MNT_DETACH);
    nix::mount::umount2(&volume, nix::mount::MntFlags::MNT_DETACH).expect("an umount");
}

#[test]
fn commands_that_cannot_start_say_so_as_engines_do() {
    let world = World::new();
    fs::write(world.rootfs.join("bin/data"), "no program").expect("a file");
    fs::write(world.rootfs.join("bin/plain"), "\u{7f}nonsense").expect("a file");
    fs::set_permissions(world.rootfs.join("bin/plain"), fs::Permissions::from_mode(0o755)).expect("a mode");
    let text = |argv: &[&str]| {
        let error = fails(&world.spec(argv));
        assert_eq!(error.kind(), FailureKind::Start);
        error.to_string()
    };
    assert_eq!(text(&["nothing"]), "exec: \"nothing\": executable file not found in $PATH");
    assert_eq!(text(&["/nothing", "x"]), "exec: \"/nothing\": stat /nothing: no such file or directory");
    assert_eq!(text(&["/bin/data"]), "exec: \"/bin/data\": permission denied");
    assert_eq!(text(&["/etc"]), "exec: \"/etc\": permission denied");
    assert_eq!(text(&["plain"]), "exec plain: exec format error");
    assert_eq!(text(&[""]), "exec: \"\": executable file not found in $PATH");
    assert!(matches!(fails(&world.spec(&[])), LaunchError::Invalid { field: "command", .. }));
    assert!(matches!(fails(&world.spec(&["echo", "a\0b"])), LaunchError::Invalid { field: "args", .. }));
}

#[test]
fn set_up_errors_name_step_and_path() {
    let world = World::new();
    let mut spec = world.spec(&["true"]);
    spec.mounts = vec![Mount::new("/no/such/source", "/data")];
    let error = fails(&spec);
    assert_eq!(error.kind(), FailureKind::Create);
    assert_eq!(error.to_string(), "cannot open the source of a mount /no/such/source: No such file or directory");
    let mut spec = world.spec(&["true"]);
    spec.rootfs = world.path("nothing");
    assert!(matches!(fails(&spec), LaunchError::Setup { step: Step::RootFs, .. }));
    let mut spec = world.spec(&["true"]);
    spec.working_dir = Some("/etc/passwd/x".to_owned());
    assert_eq!(fails(&spec).kind(), FailureKind::Start);
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
    assert!(!mounts.contains(&*world.dir.path().to_string_lossy()), "nothing stays mounted");
}

#[test]
fn the_working_directory_is_made() {
    let world = World::new();
    let mut spec = world.spec(&["pwd"]);
    spec.working_dir = Some("/srv/app/data".to_owned());
    assert_eq!(run(&spec).0, "/srv/app/data\n");
}

#[test]
fn environment_and_its_defaults() {
    let world = World::new();
    let mut spec = world.spec(&["/bin/env"]);
    spec.env = vec![("A".to_owned(), "1".to_owned()), ("A".to_owned(), "2".to_owned())];
    spec.security.home = Some("/root".to_owned());
    assert_eq!(run(&spec).0, "A=2\nPATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nHOME=/root\n");
}

#[test]
fn rights_are_what_the_spec_says() {
    let world = World::new();
    let script = "grep -E '^(Cap|NoNewPrivs|Seccomp:|Groups|Uid|Umask)' /proc/self/status";
    let field = |out: &str, name: &str| {
        out.lines()
            .find_map(|line| line.strip_prefix(name))
            .map(|value| value.trim().to_owned())
            .unwrap_or_else(|| panic!("{name} in {out}"))
    };
    let (out, err, _) = run(&world.sh(script));
    assert_eq!(field(&out, "CapEff:"), "00000000a80425fb", "{err}");
    assert_eq!(field(&out, "CapBnd:"), "00000000a80425fb");
    assert_eq!(field(&out, "CapInh:"), "0000000000000000");
    assert_eq!(field(&out, "CapAmb:"), "0000000000000000");
    assert_eq!(field(&out, "Umask:"), "0022");
    // The filter of an old kernel's test is inherited.
    assert_eq!(field(&out, "Seccomp:"), if common::old_kernel::is() { "2" } else { "0" });
    let mut spec = world.sh(script);
    spec.security = Security {
        uid: 1000,
        gid: 2000,
        groups: vec![3000, 4000],
        no_new_privs: true,
        seccomp: Some(Arc::new(hpk_sys::seccomp::runtime_default().expect("a filter"))),
        caps: CapSet::resolve(&["NET_ADMIN".to_owned()], &["ALL".to_owned()]).expect("a set"),
        ..Security::default()
    };
    let (out, err, _) = run(&spec);
    assert_eq!(field(&out, "CapEff:"), "0000000000000000", "{err}");
    assert_eq!(field(&out, "CapBnd:"), "0000000000001000");
    assert_eq!(field(&out, "NoNewPrivs:"), "1");
    assert_eq!(field(&out, "Seccomp:"), "2");
    assert_eq!(field(&out, "Groups:"), "3000 4000");
    assert_eq!(field(&out, "Uid:"), "1000\t1000\t1000\t1000");
}

#[test]
fn runtime_default_refuses_what_engines_refuse() {
    let world = World::new();
    let mut spec = world.sh("mount -t tmpfs none /tmp; echo $?; hostname evil; echo $?; sh -c 'exit 3'; echo $?");
    spec.security.caps = CapSet::all();
    spec.security.seccomp = Some(Arc::new(hpk_sys::seccomp::runtime_default().expect("a filter")));
    let (out, err, cause) = run(&spec);
    assert_eq!(cause, ExitCause::Exited(0));
    // hostname of busybox always ends with 0 or 1 by its own view; the mount and the message are what counts.
    assert!(out.starts_with('1') || out.starts_with("255"), "{out}");
    assert!(err.contains("Operation not permitted") || err.contains("permission denied"), "{err}");
    assert!(out.ends_with("3\n"), "{out}");
}

#[test]
fn a_read_only_root_lets_volumes_be_written() {
    let world = World::new();
    fs::create_dir_all(world.path("volume")).expect("a volume");
    let mut spec = world.sh("touch /x; touch /data/y /dev/shm/z && echo ok");
    spec.security.read_only_rootfs = true;
    spec.mounts = vec![Mount::new(world.path("volume"), "/data")];
    let (out, err, _) = run(&spec);
    assert_eq!(out, "ok\n");
    assert!(err.contains("Read-only file system"), "{err}");
}

#[test]
fn kernel_paths_are_masked_unless_unmasked() {
    let world = World::new();
    let script =
        "cat /proc/keys | head -c 3 | grep -c .; echo 1 > /proc/sys/kernel/domainname && echo written; touch /sys/x";
    let (out, err, _) = run(&world.sh(script));
    assert_eq!(out, "0\n");
    assert!(err.contains("/proc/sys/kernel/domainname: Read-only file system"), "{err}");
    assert!(err.contains("/sys/x: Read-only file system"), "{err}");
}

#[test]
fn files_of_the_kernels_file_systems_can_be_mounted_over() {
    let world = World::new();
    fs::create_dir(world.path("told")).unwrap();
    for (name, text) in [("cpuinfo", "one\n"), ("loadavg", "two\n"), ("limit", "three\n")] {
        fs::write(world.path("told").join(name), text).unwrap();
    }
    let mut spec =
        world.sh("cat /proc/cpuinfo /proc/loadavg /sys/kernel/mm/transparent_hugepage/enabled; echo x > /proc/loadavg");
    let of = |name: &str, target: &str| Mount::new(world.path("told").join(name), target);
    spec.mounts =
        vec![of("cpuinfo", "/proc/cpuinfo"), Mount { read_only: true, ..of("loadavg", "/x/../proc//loadavg") }];
    let shown = |name: &str, target: &str| Shown { source: world.path("told").join(name), target: target.to_owned() };
    spec.shown =
        vec![shown("limit", "/sys/kernel/mm/transparent_hugepage/enabled"), shown("limit", "/sys/no/such/file")];
    let (out, err, _) = run(&spec);
    assert_eq!(out, "one\ntwo\nthree\n", "{err}");
    assert!(err.contains("Read-only"), "{err}");
    for target in ["/proc", "/proc/1/attr", "/proc/../proc/sys"] {
        let error = fails(&LaunchSpec { mounts: vec![of("cpuinfo", target)], ..world.sh("true") });
        assert_eq!(error.kind(), FailureKind::Config);
        assert!(error.to_string().contains(target) && error.to_string().contains("/proc/meminfo"), "{error}");
    }
}

#[test]
fn limits_are_set() {
    let world = World::new();
    let mut spec = world.sh("ulimit -n; cat /proc/self/oom_score_adj");
    spec.rlimits = vec![Rlimit { resource: libc::RLIMIT_NOFILE, soft: 123, hard: 456 }];
    spec.oom_score_adj = Some(999);
    assert_eq!(run(&spec).0, "123\n999\n");
}

#[test]
fn devices_and_shared_memory_are_shared_by_the_pod() {
    let world = World::new();
    let shm = world.path("shm");
    fs::create_dir_all(&shm).expect("a folder");
    for (script, expected) in [("echo x > /dev/shm/a", ""), ("cat /dev/shm/a", "x\n")] {
        let mut spec = world.sh(script);
        spec.shm = Some(shm.clone());
        assert_eq!(run(&spec).0, expected);
    }
}

#[test]
fn the_devices_of_container_engines_are_there() {
    let world = World::new();
    let (out, err, _) = run(&world
        .sh("for d in null zero full random urandom tty; do test -c /dev/$d && echo $d; done; echo x > /dev/full"));
    assert_eq!(out, "null\nzero\nfull\nrandom\nurandom\ntty\n");
    assert!(err.contains("No space left on device"), "{err}");
}

/// No GPU is needed: the folders are fakes of what Apptainer's --nv makes in the parent container.
#[test]
fn fake_gpu_devices_libraries_and_tools_reach_containers() {
    let world = World::new();
    for dir in ["fake-dev/dri", "fake-libs", "fake-bin"] {
        fs::create_dir_all(world.path(dir)).expect("a folder");
    }
    for file in
        ["fake-dev/null", "fake-dev/nvidia0", "fake-dev/nvidiactl", "fake-dev/dri/card0", "fake-libs/libcuda.so.1"]
    {
        fs::write(world.path(file), file).expect("a file");
    }
    fs::write(world.path("fake-bin/nvidia-smi"), "#!/bin/sh\necho one GPU\n").expect("a program");
    fs::set_permissions(world.path("fake-bin/nvidia-smi"), fs::Permissions::from_mode(0o755)).expect("a mode");
    let places =
        Places { dev: world.path("fake-dev"), gpu_libs: world.path("fake-libs"), gpu_tools: world.path("fake-bin") };
    let spec = world.sh(
        "cat /dev/nvidia0 /dev/nvidiactl /dev/dri/card0; echo; echo $LD_LIBRARY_PATH; ls $LD_LIBRARY_PATH; /usr/bin/nvidia-smi",
    );
    let (out, err, _) = finish(launcher(places).launch(&spec).expect("a container"));
    assert_eq!(
        out, "fake-dev/nvidia0fake-dev/nvidiactlfake-dev/dri/card0\n/.singularity.d/libs\nlibcuda.so.1\none GPU\n",
        "{err}"
    );
}

fn join_spec(argv: &[&str]) -> JoinSpec {
    let env = vec![("PATH".to_owned(), "/bin".to_owned())];
    JoinSpec { env, ..JoinSpec::new(argv.iter().copied()) }
}

/// Of the container, whoever its launcher is.
fn namespace(container: &Launched) -> MountNs {
    match container.inner {
        Some(inner) => inner.mount_ns,
        None => MountNs::of(container.pid).expect("a namespace"),
    }
}

fn sleeper(world: &World, pid: PidNamespace) -> Launched {
    let mut spec = world.sh("touch /here; sleep 1000 & echo up; wait");
    spec.pid = pid;
    let launched = start(&spec).expect("a container");
    let hpk_sys::launch::Io::Pipes { stdout, .. } = &launched.io else { panic!("pipes") };
    let mut line = [0u8; 3];
    nix::unistd::read(stdout, &mut line).expect("its word");
    launched
}

#[test]
fn a_session_joins_a_container() {
    let world = World::new();
    let container = sleeper(&world, PidNamespace::Own);
    let joiner = Joiner::new().expect("a joiner");
    let spec = join_spec(&["sh", "-c", "ls /here; cat /proc/1/comm; echo $$ > /tmp/pid; exit 5"]);
    let (out, err, cause) =
        finish(joiner.start(container.pidfd.as_fd(), &spec).and_then(|s| s.wait()).expect("a session"));
    assert_eq!((out.as_str(), cause), ("/here\nsh\n", ExitCause::Exited(5)), "{err}");
    // The next child is again of the supervisor's own namespace.
    let (out, _, _) = run(&world.sh("ls /here"));
    assert_eq!(out, "");
    let missing = joiner.start(container.pidfd.as_fd(), &join_spec(&["nothing"])).and_then(|s| s.wait());
    assert_eq!(missing.expect_err("no session").to_string(), "exec: \"nothing\": executable file not found in $PATH");

    signals::send(container.pidfd.as_fd(), libc::SIGKILL).expect("a signal");
    assert_eq!(wait(container.pid), ExitCause::Signaled { signal: 9, core: false });
    let gone = joiner.start(container.pidfd.as_fd(), &spec).and_then(|s| s.wait());
    assert_eq!(gone.expect_err("no session"), LaunchError::NotRunning);
}

/// In a user namespace of its own the caller has another number there, and so have sessions that join it.
#[test]
fn a_container_of_the_users_own_number() {
    if nested() {
        return;
    }
    let world = World::new();
    let own = Some((1234, 1234));
    let mut spec = world.sh("id -u; touch /mine; stat -c %u /mine /etc/passwd; sleep 1000 & echo up; wait");
    spec.identity = own;
    (spec.security.uid, spec.security.gid) = (1234, 1234);
    let container = start(&spec).expect("a container");
    let hpk_sys::launch::Io::Pipes { stdout, .. } = &container.io else { panic!("pipes") };
    let mut text = String::new();
    while !text.contains("up") {
        let mut some = [0u8; 64];
        let n = nix::unistd::read(stdout, &mut some).expect("its word");
        assert!(n > 0, "{text}");
        text.push_str(std::str::from_utf8(&some[..n]).expect("text"));
    }
    assert_eq!(text, "1234\n1234\n1234\nup\n");
    let joiner = Joiner::new().expect("a joiner");
    let mut session = JoinSpec { identity: own, ..join_spec(&["sh", "-c", "id -u; id -g; stat -c %u /mine"]) };
    (session.security.uid, session.security.gid) = (1234, 1234);
    let (out, err, _) =
        finish(joiner.start(container.pidfd.as_fd(), &session).and_then(|s| s.wait()).expect("a session"));
    assert_eq!(out, "1234\n1234\n1234\n", "{err}");
    signals::send(container.pidfd.as_fd(), libc::SIGKILL).expect("a signal");
    wait(container.pid);
}

/// With every right that a container can have, where processes are shared.
#[test]
fn the_supervisor_is_out_of_reach_and_containers_are_not() {
    let world = World::new();
    let supervisor = std::process::id();
    let mut first = Native::new().expect("a node").below();
    let mut spec = world.sh("touch /here; echo up; exec sleep 1000");
    spec.pid = PidNamespace::Pod;
    let target = first.launch(&spec).expect("a container");
    let hpk_sys::launch::Io::Pipes { stdout, .. } = &target.io else { panic!("pipes") };
    nix::unistd::read(stdout, &mut [0u8; 3]).expect("its word");
    let other = target.pid;
    let mut spec = world.sh(&format!(
        "ls /proc/{other}/root/here; cat /proc/{supervisor}/comm | wc -l; ls /proc/{supervisor}/root/; cat /proc/{supervisor}/environ; \
         mount -t tmpfs none /tmp && echo mounted"
    ));
    spec.pid = PidNamespace::Pod;
    spec.security.caps = CapSet::all();
    spec.security.unmasked = true;
    let (out, err, _) = finish(first.launch(&spec).expect("a container"));
    assert_eq!(out, format!("/proc/{other}/root/here\n1\nmounted\n"), "{err}");
    assert_eq!(err.matches("Permission denied").count(), 2, "{err}");
    signals::send(target.pidfd.as_fd(), libc::SIGKILL).expect("a signal");
    wait(target.pid);
}

#[test]
fn a_container_joins_the_processes_of_its_target() {
    let world = World::new();
    let target = sleeper(&world, PidNamespace::Own);
    let pidfd = Arc::new(target.pidfd.try_clone().expect("a descriptor"));
    // Which of them ends first would be a race, if this one ended the target: it asks whether it could.
    let sleep = "$(grep -l sleep /proc/[0-9]*/comm | head -1 | cut -d/ -f3)";
    let mut spec = world.sh(&format!("cat /proc/1/comm; ls /here; kill -0 {sleep}"));
    spec.pid = PidNamespace::Of(Arc::clone(&pidfd));
    let (out, err, cause) = run(&spec);
    // Its own root, the target's processes.
    assert_eq!((out.as_str(), cause), ("sh\n", ExitCause::Exited(0)), "{err}");
    let mut killer = world.sh(&format!("kill -TERM {sleep}"));
    killer.pid = PidNamespace::Of(Arc::clone(&pidfd));
    run(&killer);
    // Its shell waits for that one alone.
    let (_, _, cause) = finish(target);
    assert_eq!(cause, ExitCause::Exited(0));
    assert_eq!(fails(&spec), LaunchError::NotRunning);
    // The next one is again of the supervisor's own namespace.
    assert_eq!(run(&world.sh("echo $$")).0, "1\n");
}

#[test]
fn a_session_with_a_terminal_has_its_size() {
    let world = World::new();
    let container = sleeper(&world, PidNamespace::Own);
    let joiner = Joiner::new().expect("a joiner");
    let spec = JoinSpec { tty: true, size: (33, 111), ..join_spec(&["sh", "-c", "tty; stty size; id -u"]) };
    let (out, _, cause) =
        finish(joiner.start(container.pidfd.as_fd(), &spec).and_then(|s| s.wait()).expect("a session"));
    assert_eq!((out.as_str(), cause), ("/dev/pts/0\r\n33 111\r\n0\r\n", ExitCause::Exited(0)));
    signals::send(container.pidfd.as_fd(), libc::SIGKILL).expect("a signal");
    wait(container.pid);
}

#[test]
fn a_session_group_is_killed_as_one() {
    let world = World::new();
    let container = sleeper(&world, PidNamespace::Own);
    let joiner = Joiner::new().expect("a joiner");
    let spec = join_spec(&["sh", "-c", "sleep 1000 & sleep 1000 & echo up; wait"]);
    let session = joiner.start(container.pidfd.as_fd(), &spec).and_then(|s| s.wait()).expect("a session");
    let hpk_sys::launch::Io::Pipes { stdout, .. } = &session.io else { panic!("pipes") };
    nix::unistd::read(stdout, &mut [0u8; 3]).expect("its word");
    signals::kill_group(session.pid, nix::sys::signal::Signal::SIGKILL).expect("a group");
    // All holders of the pipes are gone, or this would not end.
    let (_, _, cause) = finish(session);
    assert_eq!(cause, ExitCause::Signaled { signal: 9, core: false });
    signals::send(container.pidfd.as_fd(), libc::SIGKILL).expect("a signal");
    wait(container.pid);
}

#[test]
fn everything_in_a_container_that_shares_the_namespace_is_found_and_killed() {
    let world = World::new();
    let container = sleeper(&world, PidNamespace::Pod);
    let ns = namespace(&container);
    assert_eq!(signals::members(ns).len(), 2);
    let usage = hpk_sys::procfs::usage(ns);
    assert_eq!(usage.processes, 2);
    assert!(usage.rss_bytes > 0);
    assert!(signals::kill_all(ns) >= 2);
    let (_, _, cause) = finish(container);
    assert_eq!(cause, ExitCause::Signaled { signal: 9, core: false });
    let own = MountNs::of(nix::unistd::Pid::this()).expect("a namespace");
    assert_eq!(signals::members(own), [], "never our own");
}

#[test]
fn the_end_of_the_main_process_ends_a_container() {
    let world = World::new();
    let container = start(&world.sh("setsid sleep 1000 & exit 3")).expect("a container");
    // The orphan holds the pipes until the kernel kills it with its PID 1.
    let (_, _, cause) = finish(container);
    assert_eq!(cause, ExitCause::Exited(3));
}

#[test]
fn what_a_killed_apptainer_leaves_is_swept() {
    if std::env::var_os("HPK_SYS_APPTAINER").is_none() {
        return;
    }
    let world = World::new();
    let container = sleeper(&world, PidNamespace::Pod);
    let (apptainer, inside) = (MountNs::of(container.pid).expect("a namespace"), namespace(&container));
    assert_eq!(signals::members(inside).len(), 2, "the shell and its sleep");
    nix::sys::signal::kill(container.pid, nix::sys::signal::Signal::SIGKILL).expect("a signal");
    assert_eq!(wait(container.pid), ExitCause::Signaled { signal: 9, core: false });
    hpk_sys::launch::nested::sweep(container.pidfd.as_fd(), apptainer, Some(inside));
    let left = || {
        let comm = |pid: &nix::unistd::Pid| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let namespaces = [signals::members(apptainer), signals::members(inside)].concat();
        let fuse = fs::read_dir("/proc").expect("/proc").flatten().filter_map(|entry| {
            let text = fs::read_to_string(entry.path().join("comm")).ok()?;
            text.starts_with("fuse-over").then_some(text)
        });
        namespaces.iter().map(comm).chain(fuse).collect::<Vec<_>>()
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !left().is_empty() && std::time::Instant::now() < deadline {
        common::reap_all();
        std::thread::yield_now();
    }
    assert_eq!(left(), Vec::<String>::new());
    // Its pipes have no holder left, or this would not end.
    output(container.io);
}

#[test]
fn probing_a_node_tells_what_it_can() {
    let world = World::new();
    let native = Native::new().expect("a node");
    native.probe(&world.rootfs, &world.path("scratch")).expect("overlay works here");
    let error = native.probe(&world.path("nothing"), &world.path("scratch")).expect_err("no image");
    assert!(matches!(error, LaunchError::Setup { step: Step::RootFs, .. }));
    common::reap_all();
}

/// Runs this file's tests again as an ordinary user would see them: as uid 0 of a user namespace that is uid 1000 outside.
fn rerun_in_user_namespace(map: &str, setgroups: &str, filter: &[&str]) {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let world = World::new();
    let program = world.path("tests");
    fs::copy(std::env::current_exe().expect("our path"), &program).expect("a copy that uid 1000 can reach");
    fs::set_permissions(world.dir.path(), fs::Permissions::from_mode(0o755)).expect("a mode");
    let mut holder = Command::new("unshare")
        .args(["-U", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("unshare");
    let mut stdin = holder.stdin.take().expect("a pipe");
    // An echo tells that the namespace exists.
    stdin.write_all(b"x").expect("a byte");
    std::io::Read::read(&mut holder.stdout.take().expect("a pipe"), &mut [0]).expect("its echo");
    let proc = format!("/proc/{}", holder.id());
    fs::write(format!("{proc}/setgroups"), setgroups).expect("setgroups");
    fs::write(format!("{proc}/uid_map"), map).expect("a map");
    fs::write(format!("{proc}/gid_map"), map).expect("a map");
    let mut nsenter = Command::new("nsenter");
    nsenter.args(["-U", "-S", "0", "-G", "0", "-t", &holder.id().to_string()]);
    if setgroups == "deny" {
        nsenter.arg("--preserve-credentials");
    }
    let output = nsenter
        .args(["unshare", "-m", "-i", "-p", "-f", "--mount-proc"])
        .arg(&program)
        .args(filter)
        .env("HPK_SYS_INSIDE", "1")
        .output()
        .expect("nsenter");
    drop(stdin);
    holder.wait().expect("cat ends");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && !text.contains(" 0 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn inside() -> bool {
    std::env::var_os("HPK_SYS_INSIDE").is_some()
}

#[test]
fn all_of_this_works_in_a_user_namespace_with_a_range() {
    if !inside() {
        rerun_in_user_namespace("0 1000 1\n1 100000 65536\n", "allow", &[]);
    }
}

#[test]
fn with_one_id_it_works_and_other_users_are_refused_clearly() {
    if !inside() {
        let filter = [
            "--exact",
            "with_one_id_it_works_and_other_users_are_refused_clearly",
            "a_session_joins_a_container",
            "a_terminal_is_the_containers_own",
            "mounts_make_their_mount_points_and_keep_their_order",
            "writes_go_to_the_upper_layer_and_a_fresh_run_does_not_see_them",
            "sub_paths_stay_in_their_volume",
        ];
        return rerun_in_user_namespace("0 1000 1\n", "deny", &filter);
    }
    if hpk_sys::ids::Ids::of_self().expect("ids").uids.count() > 1 {
        return;
    }
    let world = World::new();
    let refused = |security: Security| {
        let mut spec = world.spec(&["true"]);
        spec.security = security;
        let error = fails(&spec);
        assert_eq!(error.kind(), FailureKind::Config);
        error.to_string()
    };
    assert!(
        refused(Security { uid: 1000, ..Security::default() })
            .starts_with("securityContext.runAsUser: id 1000 does not exist in this pod")
    );
    assert!(refused(Security { gid: 7, ..Security::default() }).starts_with("securityContext.runAsGroup: id 7"));
    assert!(
        refused(Security { groups: vec![5], ..Security::default() }).starts_with("securityContext.supplementalGroups:")
    );
    assert_eq!(run(&world.spec(&["id", "-u"])).0, "0\n");
}

#[test]
fn on_old_kernels_all_of_this_holds() {
    common::old_kernel::again(libc::ENOSYS, "on_old_kernels");
}

#[test]
fn on_old_kernels_in_sandboxes_all_of_this_holds() {
    common::old_kernel::again(libc::EPERM, "on_old_kernels");
}
