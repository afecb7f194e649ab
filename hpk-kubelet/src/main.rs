//! hpk-kubelet: the daemon that turns pods into Slurm jobs.

use anyhow::Result;
use clap::Parser;
use hpk_kubelet::{App, Options};
use std::path::PathBuf;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Runs a node's pods as Slurm jobs, or on this machine. Started by `hpk up`.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Args {
    /// The cluster's description, written by `hpk up`.
    #[arg(long, value_name = "FILE")]
    cluster: PathBuf,
    /// Unix socket on which the API server's connections to pods are taken.
    #[arg(long, value_name = "PATH")]
    egress: Option<PathBuf>,
    /// Log filter: error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log: tracing::Level,
}

fn main() -> ExitCode {
    // The image helper enters a user namespace: it must run before there is any thread.
    if std::env::args_os().nth(1).is_some_and(|a| a == "image-helper") {
        return hpk_images::helper::main();
    }
    if std::env::args_os().nth(1).is_some_and(|a| a == hpk_images::UNPACK) {
        return hpk_images::unpack_main();
    }
    if std::env::args_os().nth(1).is_some_and(|a| a == hpk_kubelet::COPY_VOLUME) {
        return hpk_kubelet::copy_volume();
    }
    if std::env::args_os().nth(1).is_some_and(|a| a == hpk_kubelet::GIVE_FILES) {
        return hpk_kubelet::give_files();
    }
    let args = Args::parse();
    // What is made without a mode of its own is nobody else's.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    log_to_stderr(args.log);
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "no runtime");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(args)) {
        Ok(()) => {
            tracing::info!("ends; jobs go on");
            runtime.shutdown_timeout(std::time::Duration::from_secs(2));
            ExitCode::SUCCESS
        }
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Our own crates at `level`; libraries only when they warn.
fn log_to_stderr(level: tracing::Level) {
    use tracing_subscriber::Layer;
    use tracing_subscriber::filter::Targets;
    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::util::SubscriberInitExt;
    let ours = ["hpk_kubelet", "hpk_images", "hpk_server", "hpk_link", "hpk_netfacts"];
    let filter =
        Targets::new().with_default(tracing::Level::WARN.min(level)).with_targets(ours.map(|name| (name, level)));
    // What cannot be written, because the home is full, is lost. By default it would be told by eprintln!, which panics.
    let layer =
        tracing_subscriber::fmt::layer().with_ansi(false).with_writer(std::io::stderr).log_internal_errors(false);
    tracing_subscriber::registry().with(layer.with_filter(filter)).init();
}

async fn run(args: Args) -> Result<()> {
    let stop = CancellationToken::new();
    stop_on_signals(stop.clone())?;
    let app = App::build(Options { cluster: args.cluster, egress: args.egress }).await?;
    app.run(stop).await;
    Ok(())
}

fn stop_on_signals(stop: CancellationToken) -> Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        stop.cancel();
    });
    Ok(())
}
