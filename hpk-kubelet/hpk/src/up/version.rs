//! Kubernetes' version: objects that a newer one has stored mean nothing to an older one, and upstream supports an upgrade by
//! one minor version at a time (<https://kubernetes.io/releases/version-skew-policy/>).

use crate::decide::Programs;
use crate::json::{read_json, write_json};
use crate::progress::Progress;
use anyhow::{Context, Result, bail};
use hpk_layout::Home;
use serde::{Deserialize, Serialize};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// `kubernetes.json`: what the cluster ran with last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Ran {
    /// `v1.37.2`.
    version: String,
    /// Of the programs' file; another one may be another version.
    stamp: String,
}

/// Major and minor version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Minor(u32, u32);

impl Minor {
    /// Of `v1.37.2`, with whatever comes after.
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim().strip_prefix('v')?.split('.');
        Some(Self(parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    }
}

/// Whether data of `had` may be used by `now`; what is to be told, or why not.
fn judge(had: &str, now: &str) -> Result<Option<String>> {
    let (Some(old), Some(new)) = (Minor::parse(had), Minor::parse(now)) else {
        bail!("Kubernetes {had} ran before, {now} is to run: these are no versions that can be compared");
    };
    if old == new {
        Ok(None)
    } else if new < old {
        bail!(
            "this cluster has run with Kubernetes {had}, and {now} may not understand what that has stored: use {had} or later, or \
             begin again from a backup that {now} made (hpk restore)"
        )
    } else if new == Minor(old.0, old.1 + 1) {
        Ok(Some(format!("Kubernetes {had} becomes {now}; there is no way back but hpk restore")))
    } else {
        bail!(
            "this cluster has run with Kubernetes {had}: go to {now} by one minor version at a time, v{}.{} first",
            old.0,
            old.1 + 1
        )
    }
}

/// Before anything starts: whether these programs may.
///
/// # Errors
/// With the remedy, when they may not.
pub(super) fn check(home: &Home, programs: &Programs, progress: &Progress) -> Result<()> {
    let Some(ran) = read_json::<Ran>(&home.kubernetes_json())? else { return Ok(()) };
    if ran.stamp == stamp(programs) {
        return Ok(());
    }
    let mut command = crate::components::image::tool(programs, "kube-apiserver", &[]);
    let output = command.arg("--version").output().context("asking kube-apiserver for its version")?;
    let said = String::from_utf8_lossy(&output.stdout);
    // `Kubernetes v1.37.2`
    let version = said.split_whitespace().nth(1).context("kube-apiserver does not tell its version")?;
    if let Some(text) = judge(&ran.version, version)? {
        progress.done(&text);
    }
    Ok(())
}

/// Once the API server serves: this is what has stored objects now.
///
/// # Errors
/// It does not answer, or the file system's.
pub(super) async fn remember(home: &Home, client: &kube::Client, programs: &Programs) -> Result<()> {
    let stamp = stamp(programs);
    if read_json::<Ran>(&home.kubernetes_json()).ok().flatten().is_some_and(|ran| ran.stamp == stamp) {
        return Ok(());
    }
    let version = client.apiserver_version().await?.git_version;
    write_json(&home.kubernetes_json(), &Ran { version, stamp })
}

/// A word that changes when the programs' file does.
fn stamp(programs: &Programs) -> String {
    let file = match programs {
        Programs::Folder { path } => path.join("kube-apiserver"),
        Programs::Image { image, .. } => image.clone(),
    };
    of_file(&file)
}

fn of_file(file: &Path) -> String {
    let meta = std::fs::metadata(file);
    meta.map_or_else(|_| String::new(), |m| format!("{} {} {}", file.display(), m.len(), m.mtime()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_minor_version_at_a_time_and_none_back() {
        assert_eq!(judge("v1.37.2", "v1.37.2").unwrap(), None);
        assert_eq!(judge("v1.37.2", "v1.37.0").unwrap(), None, "patches change nothing that is stored");
        assert!(judge("v1.37.2", "v1.38.0-rc.1").unwrap().unwrap().contains("becomes v1.38.0-rc.1"));
        let refused = |had, now| judge(had, now).unwrap_err().to_string();
        assert!(refused("v1.37.2", "v1.39.0").contains("v1.38 first"));
        let back = refused("v1.37.2", "v1.36.4");
        assert!(back.contains("use v1.37.2 or later") && back.contains("hpk restore"), "{back}");
        assert!(refused("v1.37.2", "new").contains("compared"));
    }
}
