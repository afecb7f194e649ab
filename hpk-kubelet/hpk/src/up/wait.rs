//! Waits until everything that `hpk up` has started serves.

use super::ready;
use crate::progress::Progress;
use crate::supervise::control::{Client, Phase, Snapshot};
use anyhow::{Result, bail};
use hpk_layout::Home;
use std::collections::HashSet;
use std::process::ExitCode;
use std::time::Duration;

/// Waits until everything serves and the Node is Ready, and says what to do next.
pub(super) async fn finish(
    home: &Home,
    mut client: Client,
    progress: &Progress,
    timeout: Duration,
) -> Result<ExitCode> {
    let mut last = None;
    match tokio::time::timeout(timeout, wait(home, &mut client, progress, &mut last)).await {
        Ok(done) => done?,
        Err(_) => bail!(
            "not ready after {} s{}\nit goes on in the background: see hpk status",
            timeout.as_secs(),
            why(last.as_ref())
        ),
    }
    ready::tell(home, progress);
    Ok(ExitCode::SUCCESS)
}

async fn wait(home: &Home, client: &mut Client, progress: &Progress, last: &mut Option<Snapshot>) -> Result<()> {
    let mut said = HashSet::new();
    let has_kubelet = loop {
        let snapshot = client.must().await?;
        for c in &snapshot.components {
            if matches!(c.phase, Phase::Ready | Phase::Done) && said.insert(c.name.clone()) {
                progress.done(&format!("{} {}", c.name, c.phase));
            }
            // Once per count of restarts, not at every change.
            if c.phase == Phase::Backoff && said.insert(format!("{} {}", c.name, c.restarts)) {
                progress.done(&format!("{} ended and will be started again: {}", c.name, c.message));
            }
        }
        let missing: Vec<_> = snapshot
            .components
            .iter()
            .filter(|c| !matches!(c.phase, Phase::Ready | Phase::Done))
            .map(|c| c.name.clone())
            .collect();
        progress.waiting(format!("waiting for {}", missing.join(", ")));
        let (ready, stopping) = (snapshot.ready, snapshot.stopping);
        let has_kubelet = snapshot.components.iter().any(|c| c.name == "hpk-kubelet");
        *last = Some(snapshot);
        if stopping {
            bail!("the control plane is being stopped");
        }
        if ready {
            break has_kubelet;
        }
    };
    ready::wait(home, has_kubelet, progress).await
}

/// What the components that do not serve say.
fn why(snapshot: Option<&Snapshot>) -> String {
    let mut text = String::new();
    for c in snapshot.iter().flat_map(|s| &s.components) {
        if !matches!(c.phase, Phase::Ready | Phase::Done | Phase::Waiting) {
            text.push_str(&format!("\n  {}: {} {}", c.name, c.phase, c.message));
        }
    }
    text
}
