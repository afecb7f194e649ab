//! Who makes the containers of this pod: the native launcher, or a nested Apptainer where the node cannot do without.
//!
//! hpk-netns brings the node's Apptainer into the parent container, and names it in `$HPK_APPTAINER`, where it may be needed.

use crate::paths::Paths;
use hpk_api::plan::LauncherChoice;
use hpk_sys::launch::{LaunchError, Launcher, Native, NestedApptainer};
use std::path::PathBuf;

/// The choice of the plan, or by what the kernel can. `own`: the user's numbers in the containers; None: 0.
pub(super) fn choose(
    choice: LauncherChoice,
    own: Option<(u32, u32)>,
    paths: &Paths,
) -> Result<Box<dyn Launcher>, LaunchError> {
    let apptainer = std::env::var_os("HPK_APPTAINER").map(PathBuf::from);
    let native = Native::new()?;
    // Root of the node, in a network of the site's, stays what it is.
    let below = hpk_sys::below::in_user_namespace();
    let native = match own {
        _ if !below => native,
        Some(own) => native.keeping(own),
        None => native.below(),
    };
    let apptainer = match (choice, apptainer) {
        (LauncherChoice::Native, _) | (LauncherChoice::Auto, None) => return Ok(Box::new(native)),
        (LauncherChoice::Auto, Some(apptainer)) => match overlay(&native, paths) {
            Ok(()) => return Ok(Box::new(native)),
            Err(error) => {
                hpk_api::say!("hpk-pause: containers are made by a nested Apptainer, since this node cannot: {error}");
                apptainer
            }
        },
        (LauncherChoice::Apptainer, Some(apptainer)) => apptainer,
        (LauncherChoice::Apptainer, None) => {
            let reason =
                "apptainer: the job's parent container has none; it is hpk-netns of the same version that brings it";
            return Err(LaunchError::Invalid { field: "launcher", reason: reason.to_owned() });
        }
    };
    let shim = std::env::current_exe().unwrap_or_else(|_| "/hpk-pause".into());
    let nested = NestedApptainer::new(apptainer, shim)?;
    Ok(Box::new(if below { nested.below() } else { nested }))
}

/// Tries an overlay on this pod's scratch folder.
fn overlay(native: &Native, paths: &Paths) -> Result<(), LaunchError> {
    let lower = paths.scratch.join("probe-lower");
    std::fs::create_dir_all(&lower).map_err(|e| LaunchError::Resources {
        what: "make a folder in the scratch folder",
        errno: hpk_sys::Errno::from_raw(e.raw_os_error().unwrap_or(0)),
    })?;
    native.probe(&lower, &paths.scratch)
}
