//! Whether the cluster runs on another login node.

use crate::progress::Progress;
use crate::supervise::control::is_supervisor;
use crate::supervise::lease::{self, Claim, Me, STALE, Verdict, Watch};
use anyhow::{Result, bail};
use hpk_layout::Home;
use std::time::Duration;
use tokio::time::Instant;

/// Between two looks at what another machine writes.
const LOOK: Duration = Duration::from_secs(2);

/// Waits until no other login node can run the cluster any more. The claim that may be replaced, if there is one.
///
/// # Errors
/// Another one runs it.
pub(super) async fn wait(home: &Home, host: &str, progress: &Progress) -> Result<Option<Claim>> {
    let (me, begin) = (Me::new(host), Instant::now());
    let mut watch = Watch::default();
    let mut told = false;
    loop {
        let Some(claim) = lease::read(home)? else { return Ok(None) };
        let verdict = match lease::judge(&claim, &me, |pid| is_supervisor(pid, home.root())) {
            Verdict::Unknown => watch.look(&claim, begin.elapsed()),
            known => known,
        };
        match verdict {
            Verdict::Free => return Ok(Some(claim)),
            Verdict::Held => bail!(
                "the control plane runs on {} (process {}): use hpk there, or stop it there with hpk down",
                claim.host,
                claim.pid
            ),
            Verdict::Unknown => {
                if !std::mem::replace(&mut told, true) {
                    progress.done(&format!(
                        "the control plane ran on {}: watching for up to {} s whether it still does",
                        claim.host,
                        STALE.as_secs()
                    ));
                }
                progress.waiting(format!("watching whether {} runs it", claim.host));
                tokio::time::sleep(LOOK).await;
            }
        }
    }
}
