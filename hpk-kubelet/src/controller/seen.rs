//! The pods as others see them (the kubelet API, sessions): by UID and by name, each with the kubelet's own newest status.

use crate::pods::tally::Tally;
use hpk_api::ids::{JobId, PodUid};
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

/// A pod as others see it.
#[derive(Clone, Debug)]
pub struct PodInfo {
    object: Arc<Pod>,
    status: Option<Arc<PodStatus>>,
    /// Both in one: made when somebody asks for it, since most changes are asked for by nobody.
    whole: OnceLock<Arc<Pod>>,
    linked: bool,
    job: Option<JobId>,
}

impl PodInfo {
    /// `status`: the kubelet's own, which the API may not have yet; `job`: the one that runs it.
    #[must_use]
    pub fn new(object: Arc<Pod>, status: Option<Arc<PodStatus>>, linked: bool, job: Option<JobId>) -> Self {
        Self { object, status, whole: OnceLock::new(), linked, job }
    }

    /// The object with the kubelet's own status.
    #[must_use]
    pub fn pod(&self) -> &Arc<Pod> {
        let Some(status) = &self.status else { return &self.object };
        self.whole.get_or_init(|| {
            let (metadata, spec) = (self.object.metadata.clone(), self.object.spec.clone());
            Arc::new(Pod { metadata, spec, status: Some((**status).clone()) })
        })
    }

    /// The kubelet's own status, or the API's while there is none.
    fn status(&self) -> Option<&PodStatus> {
        self.status.as_deref().or(self.object.status.as_ref())
    }

    /// Its phase, as the kubelet has it.
    #[must_use]
    pub fn phase(&self) -> Option<&str> {
        self.status()?.phase.as_deref()
    }

    /// It is being deleted.
    #[must_use]
    pub fn is_deleted(&self) -> bool {
        self.object.metadata.deletion_timestamp.is_some()
    }

    /// A link stands.
    #[must_use]
    pub fn is_linked(&self) -> bool {
        self.linked
    }

    /// Its job, while that runs.
    #[must_use]
    pub fn job(&self) -> Option<&JobId> {
        self.job.as_ref()
    }

    /// Whether others would see no difference.
    fn is_as(&self, other: &Self) -> bool {
        let same_status = match (&self.status, &other.status) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b) || a == b,
            (None, None) => true,
            _ => false,
        };
        Arc::ptr_eq(&self.object, &other.object) && same_status && self.linked == other.linked && self.job == other.job
    }

    fn name(&self) -> String {
        let meta = &self.object.metadata;
        key(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
    }
}

/// No namespace and no name has a slash.
fn key(namespace: &str, name: &str) -> String {
    format!("{namespace}/{name}")
}

#[derive(Debug, Default)]
pub struct Pods {
    by_uid: HashMap<PodUid, PodInfo>,
    /// More than one, while a deleted pod's job still ends and a new pod bears its name.
    by_name: HashMap<String, Vec<PodUid>>,
    /// What has happened to them, those that are gone included.
    tally: Tally,
}

impl Pods {
    /// What is seen of the pod `uid` from now on; None: nothing. Returns whether others see a difference.
    pub fn set(&mut self, uid: &PodUid, info: Option<PodInfo>) -> bool {
        let Some(info) = info else {
            let Some(former) = self.by_uid.remove(uid) else { return false };
            let name = former.name();
            if let Some(uids) = self.by_name.get_mut(&name) {
                uids.retain(|other| other != uid);
                if uids.is_empty() {
                    self.by_name.remove(&name);
                }
            }
            return true;
        };
        match self.by_uid.get_mut(uid) {
            Some(former) if former.is_as(&info) => false,
            // A pod keeps its name for life.
            Some(former) => {
                if let Some(status) = info.status() {
                    self.tally.observe(&info.object, former.status(), status);
                }
                *former = info;
                true
            }
            None => {
                if let Some(status) = info.status() {
                    self.tally.observe(&info.object, info.object.status.as_ref(), status);
                }
                self.by_name.entry(info.name()).or_default().push(uid.clone());
                self.by_uid.insert(uid.clone(), info);
                true
            }
        }
    }

    /// The pod with this UID.
    #[must_use]
    pub fn get(&self, uid: &str) -> Option<&PodInfo> {
        self.by_uid.get(uid)
    }

    /// The pod of this name. Of several the living one is meant.
    #[must_use]
    pub fn find(&self, namespace: &str, name: &str) -> Option<&PodInfo> {
        let uids = self.by_name.get(&key(namespace, name))?;
        let mut found = uids.iter().filter_map(|uid| self.by_uid.get(uid));
        let first = found.next()?;
        let lives = |info: &&PodInfo| info.object.metadata.deletion_timestamp.is_none();
        Some(std::iter::once(first).chain(found).find(lives).unwrap_or(first))
    }

    /// What has happened to them since the kubelet began.
    #[must_use]
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// In no order.
    pub fn iter(&self) -> impl Iterator<Item = &PodInfo> {
        self.by_uid.values()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.by_uid.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_uid.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn pod(name: &str, deleted: bool) -> PodInfo {
        let mut pod = Pod::default();
        pod.metadata.namespace = Some("d".to_owned());
        pod.metadata.name = Some(name.to_owned());
        pod.metadata.deletion_timestamp = deleted.then_some(Time(jiff::Timestamp::UNIX_EPOCH));
        PodInfo::new(Arc::new(pod), None, false, None)
    }

    #[test]
    fn of_two_pods_of_one_name_the_living_one_is_found() {
        let mut pods = Pods::default();
        assert!(pods.set(&"old".into(), Some(pod("a", true))) && pods.set(&"b".into(), Some(pod("b", false))));
        assert!(pods.find("d", "a").is_some_and(|info| info.object.metadata.deletion_timestamp.is_some()));
        assert!(pods.set(&"new".into(), Some(pod("a", false))));
        assert!(pods.find("d", "a").is_some_and(|info| info.object.metadata.deletion_timestamp.is_none()));
        assert!(pods.set(&"old".into(), None) && !pods.set(&"old".into(), None));
        assert!(pods.find("d", "a").is_some() && pods.find("d", "c").is_none() && pods.find("e", "a").is_none());
        assert!(pods.set(&"new".into(), None) && pods.find("d", "a").is_none());
        assert_eq!((pods.len(), pods.by_name.len()), (1, 1));
    }

    #[test]
    fn the_kubelets_own_status_is_seen_and_no_change_is_none() {
        let mut pods = Pods::default();
        let object = pod("a", false).object;
        let info = |phase: &str, linked| {
            let status = PodStatus { phase: Some(phase.to_owned()), ..PodStatus::default() };
            PodInfo::new(object.clone(), Some(Arc::new(status)), linked, None)
        };
        assert!(pods.set(&"u".into(), Some(info("Pending", false))));
        assert!(!pods.set(&"u".into(), Some(info("Pending", false))));
        assert!(
            pods.set(&"u".into(), Some(info("Running", false))) && pods.set(&"u".into(), Some(info("Running", true)))
        );
        let seen = pods.get("u").expect("it is there");
        assert_eq!((seen.phase(), seen.is_linked()), (Some("Running"), true));
        assert_eq!(seen.pod().status.as_ref().and_then(|s| s.phase.as_deref()), Some("Running"));
        assert_eq!(seen.pod().metadata.name.as_deref(), Some("a"));
    }
}
