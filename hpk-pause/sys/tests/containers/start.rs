//! How a container starts: its root, streams, environment, and what is said of one that cannot start.

use crate::common;
use crate::common::{World, output, wait};
use crate::{fails, run, start};
use hpk_sys::launch::{FailureKind, LaunchError, Launched, Mount, Native, Security, Step};
use hpk_sys::reap::ExitCause;
use std::fs;
use std::os::unix::fs::PermissionsExt;

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
fn probing_a_node_tells_what_it_can() {
    let world = World::new();
    let native = Native::new().expect("a node");
    native.probe(&world.rootfs, &world.path("scratch")).expect("overlay works here");
    let error = native.probe(&world.path("nothing"), &world.path("scratch")).expect_err("no image");
    assert!(matches!(error, LaunchError::Setup { step: Step::RootFs, .. }));
    common::reap_all();
}
