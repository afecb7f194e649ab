//! image: the content of an OCI image, read-only. It is pulled with the containers' images (`controller/pull.rs`).

use super::VolumeError;
use hpk_api::plan::{ImageRef, VolumePlan};
use std::collections::BTreeMap;

pub(super) fn plan(volume: &str, images: &BTreeMap<String, ImageRef>) -> Result<VolumePlan, VolumeError> {
    let image_ref = images.get(volume).ok_or_else(|| VolumeError::NoImage { volume: volume.to_owned() })?;
    Ok(VolumePlan::Image { image_ref: image_ref.clone() })
}
