//! `hpk etcd-snapshots`, beside an etcd whose data is not in HPK_HOME: a snapshot at once, every few minutes, and when it is
//! told to stop. It is told after the API server has stopped and before etcd does, so that the last one has everything.

use super::client::Etcd;
use super::record::{self, Record};
use super::snapshots;
use crate::components::Layout;
use crate::home::private_dir;
use anyhow::{Context, Result};
use std::fs;
use std::io::Write;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};

/// What a crash of the login node can cost.
const EVERY: Duration = Duration::from_secs(300);
/// How old etcd may be before the first one: a new cluster's objects are made then.
const FIRST: Duration = Duration::from_secs(10);

/// Runs until SIGTERM.
///
/// # Errors
/// A snapshot cannot be made: the supervisor shows it, and tries again.
pub(crate) async fn run(layout: &Layout) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    // Before the first snapshot: a full home must not keep the cluster from starting.
    let mut out = std::io::stdout();
    writeln!(out, "{}", hpk_api::READY).and_then(|()| out.flush()).context("standard output")?;
    let mut wait = FIRST;
    loop {
        let stop = tokio::select! {
            _ = terminate.recv() => true,
            () = tokio::time::sleep(wait) => false,
        };
        once(layout).await?;
        let data = layout.etcd_data();
        record::touch(data).with_context(|| data.display().to_string())?;
        if stop {
            return Ok(());
        }
        wait = EVERY;
    }
}

/// Makes one, and removes what is too old.
async fn once(layout: &Layout) -> Result<()> {
    let (home, folder) = (&layout.home, layout.home.etcd_snapshots());
    private_dir(&folder)?;
    snapshots::prune(&folder)?;
    let generation = Record::read(home)?.map_or(0, |record| record.generation);
    let name = snapshots::next(&snapshots::list(&folder)?, generation);
    let part = snapshots::part(&folder, name);
    let bytes = match Etcd::new(layout)?.snapshot(&part).await {
        Ok(bytes) => bytes,
        Err(error) => {
            let _absent = fs::remove_file(&part);
            return Err(error);
        }
    };
    let path = folder.join(name.file());
    fs::rename(&part, &path).with_context(|| path.display().to_string())?;
    fs::File::open(&folder)?.sync_all()?;
    hpk_api::say!("{} snapshot {}, {} KiB", jiff::Timestamp::now(), path.display(), bytes >> 10);
    snapshots::prune(&folder)
}
