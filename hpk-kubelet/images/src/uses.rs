//! Which images the pods of a cluster have: by the records and the plans of all pods' folders, `HPK_HOME/pods/<uid>`.
//!
//! A pod's folder is on the shared file system and lives as long as the pod has a job or may get one, on whichever node. So
//! this is true for all nodes, without one of them being asked.

use hpk_api::plan::{ImageRef, PodRef, SandboxPlan, VolumePlan};
use hpk_layout::pod as files;
use nix::fcntl::OFlag;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Bytes of the longest file that is read.
const MOST: u64 = 64 << 20;

/// Pods by the image folders that they have, as `namespace/name`.
pub type Uses = BTreeMap<String, BTreeSet<String>>;

/// It cannot be told which images are in use.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
pub struct UsesError {
    pub path: PathBuf,
    #[source]
    source: io::Error,
}

/// What of the kubelet's record is read.
#[derive(Deserialize)]
struct Record {
    pod: PodRef,
    #[serde(default)]
    images: BTreeMap<String, ImageRef>,
}

/// The uses by all pods that have a folder in `pods`.
///
/// # Errors
/// A folder or record cannot be read, or is damaged: then nothing is known to be free.
pub fn uses(pods: &Path) -> Result<Uses, UsesError> {
    let fail = |path: &Path| {
        let path = path.to_owned();
        move |source| UsesError { path, source }
    };
    let entries = match std::fs::read_dir(pods) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Uses::new()),
        other => other.map_err(fail(pods))?,
    };
    let mut uses = Uses::new();
    for entry in entries {
        let pod = entry.map_err(fail(pods))?.path();
        if pod.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")) {
            continue;
        }
        let path = pod.join(files::RECORD);
        let mut name = None;
        let mut add = |who: &PodRef, folder: &str| {
            uses.entry(folder.to_owned()).or_default().insert(format!("{}/{}", who.namespace, who.name));
        };
        if let Some(bytes) = read(&path).map_err(fail(&path))? {
            let record: Record = serde_json::from_slice(&bytes).map_err(|e| fail(&path)(e.into()))?;
            record.images.values().for_each(|image| add(&record.pod, &image.folder));
            name = Some(record.pod);
        }
        // Of a pod that is about to be submitted the plan comes first, and it alone knows the images of volumes. A pod's
        // supervisor may write there: what is no plan of ours says nothing.
        let plan = files::inside(&pod).join(files::PLAN);
        let plan = read(&plan).ok().flatten().and_then(|bytes| SandboxPlan::parse(&bytes).ok());
        for image in plan.iter().flat_map(images) {
            add(name.as_ref().or(plan.as_ref().map(|plan| &plan.pod)).unwrap_or(&PodRef::default()), &image.folder);
        }
    }
    Ok(uses)
}

/// The images of a plan: of its containers, and of its volumes.
pub fn images(plan: &SandboxPlan) -> impl Iterator<Item = &ImageRef> {
    let volumes = plan.volumes.values().filter_map(|volume| match volume {
        VolumePlan::Image { image_ref } => Some(image_ref),
        _ => None,
    });
    plan.all().map(|container| &container.image_ref).chain(volumes).filter(|image| !image.folder.is_empty())
}

/// A regular file, over no link.
fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut open = std::fs::OpenOptions::new();
    let file = match open.read(true).custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits()).open(path) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        other => other?,
    };
    let mut bytes = Vec::new();
    file.take(MOST).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn records_and_plans_count_and_damage_is_no_freedom() {
        let dir = tempfile::tempdir().unwrap();
        let put = |pod: &str, name: &str, value: serde_json::Value| {
            let path = dir.path().join(pod).join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, value.to_string()).unwrap();
        };
        let image = |folder: &str| json!({"folder": folder, "id": "x"});
        let who = |name: &str| json!({"namespace": "d", "name": name, "uid": name});
        put("a", files::RECORD, json!({"pod": who("a"), "images": {"c": image("sha256-1")}}));
        let mut plan: SandboxPlan = serde_json::from_value(json!({
            "version": 1, "pod": who("b"), "hostname": "b", "restart_policy": "Always",
            "termination_grace_period_seconds": 1, "network": {"mode": "host"},
            "containers": [{"name": "c", "image": "i", "image_ref": image("sha256-1"), "argv": ["sh"]}],
        }))
        .unwrap();
        let image_ref = ImageRef { folder: "sha256-2".into(), id: "x".into() };
        plan.volumes.insert("v".into(), VolumePlan::Image { image_ref });
        put("b", "pod/plan.json", serde_json::to_value(plan).unwrap());
        std::fs::create_dir(dir.path().join("empty")).unwrap();
        let found = uses(dir.path()).unwrap();
        let of = |folder: &str| found[folder].iter().map(String::as_str).collect::<Vec<_>>();
        assert_eq!((of("sha256-1"), of("sha256-2")), (vec!["d/a", "d/b"], vec!["d/b"]));
        std::fs::write(dir.path().join("a").join(files::RECORD), "{").unwrap();
        assert!(uses(dir.path()).unwrap_err().to_string().contains("a/kubelet.json"));
        assert!(uses(&dir.path().join("none")).unwrap().is_empty());
    }
}
