//! `hpk-netns`: the node's side of a pod, in the Slurm job beside the parent container.
//!
//! ```text
//! hpk-netns run <pod folder>     the whole job: hpk-netns work, and clearing up after it
//! hpk-netns work <pod folder>    start the pod's parent container and carry its network and its link
//! hpk-netns rank <pod folder> <n>  one rank of the MPI step of instance n, started by srun
//! hpk-netns session <pod folder> <n> <r>  an exec session beside rank r, on its node
//! hpk-netns gang <gang folder>    a Slurm job of several pods: one step for each, which is hpk-netns run
//! hpk-netns carry <pod folder>   bytes between standard streams and the pod's link, where the kubelet cannot be dialled
//! hpk-netns member <HPK_HOME>     the control plane's place in the pod network, on the login node
//! hpk-netns images <wish> <program> …   in a pod's namespaces: shows images that are files, then becomes the program
//! hpk-netns outpost <pod folder> <folder>  a step's place in the pods' network, on a further node
//! hpk-netns probe <parent image> [NAME]   which network modes can work on this node, as JSON
//! hpk-netns --version
//! ```
#![allow(clippy::print_stdout, reason = "it prints for who calls it, and ends then")]

use hpk_netns::{Rest, carry, gang, inside, member, outpost, probe, rank, run};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "usage: hpk-netns run <pod folder>
       hpk-netns carry <pod folder>
       hpk-netns member <HPK_HOME>
       hpk-netns probe <parent image> [network]
       hpk-netns --version

run starts the pod whose plan.json is in the folder, inside the present Slurm job, and ends with its exit code.";

fn main() -> ExitCode {
    // What is made without a mode of its own is nobody else's; /tmp is everybody's.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let mut raw = std::env::args_os().skip(1);
    if raw.next().is_some_and(|word| word == inside::COMMAND) {
        let Err(error) = inside::run(&raw.collect::<Vec<_>>(), std::os::unix::process::parent_id());
        hpk_api::say!("hpk-netns: inside the pod's namespaces: {error}");
        return ExitCode::from(2);
    }
    let words: Vec<_> = std::env::args_os().skip(1).take(3).collect();
    if let [command, wish, program] = words.as_slice()
        && command == run::images::COMMAND
    {
        let Err(error) = run::images::show(wish, program, &std::env::args_os().skip(4).collect::<Vec<_>>());
        hpk_api::say!("hpk-netns: {error}");
        return ExitCode::FAILURE;
    }
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["run", pod] => exit_code(run::keep(Path::new(pod))),
        [run::WORK, pod] => {
            let pod = PathBuf::from(pod);
            match run::heed_signals() {
                Ok(()) => in_runtime(async move { run::run(&pod).await }),
                Err(error) => {
                    hpk_api::say!("hpk-netns: signals: {error}");
                    ExitCode::FAILURE
                }
            }
        }
        ["gang", folder] => {
            let folder = PathBuf::from(folder);
            in_runtime(async move { gang::run(&folder).await })
        }
        ["rank", pod, instance] => match instance.parse() {
            Ok(instance) => exit_code(rank::run(Path::new(pod), instance)),
            Err(_) => ExitCode::from(2),
        },
        ["session", pod, instance, rank] => match (instance.parse(), rank.parse()) {
            (Ok(instance), Ok(rank)) => exit_code(rank::session(Path::new(pod), instance, rank)),
            _ => ExitCode::from(2),
        },
        ["carry", pod] => match carry::run(Path::new(pod)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                hpk_api::say!("hpk-netns: carry: {error}");
                ExitCode::FAILURE
            }
        },
        ["member", home] => {
            let home = PathBuf::from(home);
            in_runtime(async move { member::run(&home).await })
        }
        ["member-inside", offer, asks, ips, mtu, ranges @ ..] => match (addresses(ips), mtu.parse()) {
            (Some(ips), Ok(mtu)) => match member::inside::run(Path::new(offer), Path::new(asks), &ips, mtu, ranges) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    hpk_api::say!("hpk-netns: member: {error}");
                    ExitCode::FAILURE
                }
            },
            _ => ExitCode::from(2),
        },
        ["outpost", pod, folder] => {
            let serve = |process: outpost::Process| code_of(process.serve());
            match outpost::run(Path::new(pod), Path::new(folder), serve) {
                Ok(code) => exit_code(code),
                Err(error) => {
                    hpk_api::say!("hpk-netns: outpost: {error}");
                    ExitCode::FAILURE
                }
            }
        }
        [outpost::INSIDE, offer, ips, mtu, ranges @ ..] => match (addresses(ips), mtu.parse()) {
            (Some(ips), Ok(mtu)) => match outpost::inside(Path::new(offer), &ips, mtu, ranges) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    hpk_api::say!("hpk-netns: outpost: {error}");
                    ExitCode::FAILURE
                }
            },
            _ => ExitCode::from(2),
        },
        ["probe", image, wanted @ ..] => {
            let found = probe::run(Path::new(image), wanted.first().copied());
            println!("{}", serde_json::to_string(&found).unwrap_or_default());
            ExitCode::SUCCESS
        }
        [probe::INSIDE] => {
            probe::inside();
            ExitCode::SUCCESS
        }
        [probe::GIVEN] => {
            probe::given();
            ExitCode::SUCCESS
        }
        ["--version" | "-V"] => {
            println!("hpk-netns {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
        ["--help" | "-h" | "help"] => {
            println!("{USAGE}");
            ExitCode::SUCCESS
        }
        _ => {
            hpk_api::say!("{USAGE}");
            ExitCode::from(2)
        }
    }
}

/// `10.244.0.1` or `10.244.0.1,fd00:10:244::1`.
fn addresses(list: &str) -> Option<Vec<IpAddr>> {
    list.split(',').map(|ip| ip.parse().ok()).collect()
}

fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(255))
}

/// One thread: the control side is idle nearly always.
fn in_runtime(work: impl Future<Output = i32>) -> ExitCode {
    exit_code(code_of(work))
}

/// As [`in_runtime`].
fn code_of(work: impl Future<Output = i32>) -> i32 {
    let rest = Rest::default();
    let mut builder = tokio::runtime::Builder::new_current_thread();
    rest.watch(builder.enable_all(), hpk_sys::memory::settle);
    match builder.build() {
        Ok(runtime) => {
            drop(runtime.spawn(rest.keep()));
            let code = runtime.block_on(work);
            // Standard error and standard input of tokio live on helper threads; do not wait for them.
            runtime.shutdown_background();
            code
        }
        Err(error) => {
            hpk_api::say!("hpk-netns: cannot start: {error}");
            1
        }
    }
}
