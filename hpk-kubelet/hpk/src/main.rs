//! `hpk`: the user's command. It brings a private Kubernetes up and down on the login node of a Slurm
//! cluster and says how it stands; everything else is said with kubectl.

mod apply;
mod bootstrap;
mod cli;
mod components;
mod decide;
mod doctor;
mod down;
mod exec;
mod expose;
mod flags_policy;
mod gates;
mod home;
mod image;
mod in_job;
mod install;
mod json;
mod kubeconfig;
mod label_policy;
mod logs;
mod partition_nodes;
mod pki;
mod progress;
mod ps;
mod runs;
mod runtime_classes;
mod shell;
mod site;
mod state;
mod status;
mod storage_classes;
mod supervise;
mod target;
mod uninstall;
mod up;

use anyhow::Result;
use clap::{CommandFactory, Parser};
use cli::{Cli, Command};
use hpk_layout::Home;
use std::process::ExitCode;

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(e) => {
            hpk_api::say!("hpk: {}", hpk_api::say::once(e.chain()));
            ExitCode::FAILURE
        }
    }
}

#[allow(clippy::print_stdout, reason = "it prints for who calls it, and ends then")]
fn run(command: Command) -> Result<ExitCode> {
    // What is made without a mode of its own is nobody else's, by our programs and by those that they start.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    if let Command::ExecChild { parent, home, name, argv } = command {
        return Err(supervise::process::exec_child(parent, &home, &name, &argv).into());
    }
    match command {
        Command::Exec(args) => return exec::run(args),
        Command::Logs(args) => return logs::run(&args),
        Command::Shell(args) => return shell::run(args),
        _ => {}
    }
    if let Command::Install(args) = command {
        return install::run(&args);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match command {
            Command::Up(args) => up::run(*args).await,
            Command::Down(args) => down::run(&args).await,
            Command::Status(args) => status::run(&args).await,
            Command::Ps(args) => ps::run(&args).await,
            Command::Doctor(args) => doctor::run(&args).await,
            Command::Expose(args) => expose::run(args).await,
            Command::Image(args) => image::run(args).await,
            Command::Kubeconfig => {
                println!("{}", home::find()?.kubeconfig().display());
                Ok(ExitCode::SUCCESS)
            }
            Command::Completions { shell } => {
                clap_complete::generate(shell, &mut Cli::command(), "hpk", &mut std::io::stdout());
                Ok(ExitCode::SUCCESS)
            }
            Command::Uninstall(args) => uninstall::run(&args).await,
            Command::Manual { dir } => {
                std::fs::create_dir_all(&dir)?;
                clap_mangen::generate_to(Cli::command(), &dir)?;
                Ok(ExitCode::SUCCESS)
            }
            Command::Supervise { home, free_lease } => up::supervise(Home::at(home), free_lease.as_deref()).await,
            Command::Job { home } => in_job::run::run(Home::at(home)).await,
            Command::EtcdData { home } => {
                state::ready::run(&up::layout(Home::at(home))?)?;
                Ok(ExitCode::SUCCESS)
            }
            Command::EtcdSnapshots { home } => {
                state::keep::run(&up::layout(Home::at(home))?).await?;
                Ok(ExitCode::SUCCESS)
            }
            Command::Backup(args) => state::backup::save(&args).await,
            Command::Restore(args) => state::backup::restore(&args).await,
            Command::Bootstrap { home } => {
                bootstrap::run(&Home::at(home)).await?;
                Ok(ExitCode::SUCCESS)
            }
            // Handled above, before there are threads.
            Command::ExecChild { .. }
            | Command::Exec(_)
            | Command::Install(_)
            | Command::Logs(_)
            | Command::Shell(_) => Ok(ExitCode::FAILURE),
        }
    })
}
