//! What is left in a pod's folder: by an earlier kubelet, and by the pod's job.

use super::context::Context;
use super::entry::{Found, LastWords};
use crate::pods::folder::Record;
use crate::pods::plan::Image;

/// Reads what an earlier kubelet and the pod's job have left in its folder.
pub(super) fn read_folder(ctx: &Context, record: &Record) -> Found {
    let folder = ctx.folder(&record.pod.uid);
    let images = record.images.iter().filter_map(|(name, image_ref)| {
        let config = ctx.images.config(image_ref)?;
        Some((name.clone(), Image { image_ref: image_ref.clone(), config }))
    });
    Found { plan: folder.plan().map(Box::new), words: read_words(ctx, &record.pod.uid), images: images.collect() }
}

/// Reads what the pod's job has left in its folder.
pub(super) fn read_words(ctx: &Context, uid: &str) -> LastWords {
    let folder = ctx.folder(uid);
    LastWords { report: folder.status(), launch: folder.launch() }
}
