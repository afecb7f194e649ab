//! What is mounted into a container, and what of the kernel's is shown or hidden.

use crate::common::{World, finish, output, wait};
use crate::{fails, launcher, run};
use hpk_sys::caps::CapSet;
use hpk_sys::launch::{FailureKind, LaunchError, LaunchSpec, Mount, Places, Propagation, Shown, Step};
use hpk_sys::reap::ExitCause;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

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
