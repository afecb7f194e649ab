//! Apptainer image files (SIF): unpacked by Apptainer itself into a sandbox folder.
//!
//! A SIF has no OCI configuration that Apptainer promises to keep, so its own start-up script is the
//! entry point, run as `apptainer run` would: with the image's environment scripts sourced first.

use crate::config::ImageConfig;
use crate::error::SourceError;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// Sources `/.singularity.d/env/*.sh`, then becomes the run script with the container's args.
const RUN: &str = "for f in /.singularity.d/env/*.sh; do [ -f \"$f\" ] && . \"$f\"; done; \
                   exec /.singularity.d/runscript \"$@\"";

/// Makes `rootfs` (which must not exist) from the SIF.
pub(crate) async fn unpack(apptainer: Option<&Path>, sif: &Path, rootfs: &Path) -> Result<(), SourceError> {
    let program = match apptainer {
        Some(path) => path.to_owned(),
        None => which::which("apptainer")
            .map_err(|_| SourceError::Unpack("apptainer is not in PATH, and only it can read a SIF".to_owned()))?,
    };
    let output = tokio::process::Command::new(&program)
        .args(["--silent", "build", "--sandbox"])
        .arg(rootfs)
        .arg(sif)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(SourceError::io("run", PathBuf::from(&program)))?;
    if output.status.success() {
        return Ok(());
    }
    Err(SourceError::Unpack(format!("apptainer build --sandbox: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

/// How a container of this image runs.
pub(crate) fn config(rootfs: &Path) -> ImageConfig {
    let runscript = rootfs.join(".singularity.d/runscript").exists();
    ImageConfig {
        entrypoint: if runscript { ["/bin/sh", "-c", RUN, "sh"].map(str::to_owned).into() } else { Vec::new() },
        cmd: if runscript { Vec::new() } else { vec!["/bin/sh".to_owned()] },
        env: vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()],
        ..ImageConfig::default()
    }
}
