//! Labels of a pod that say where it runs, for `kubectl get pods -L`. A Node's user may not change labels of pods, so they are
//! set as a user of their own, who may change nothing else (`hpk bootstrap` sees to that).

use super::{Controller, tasks};
use hpk_api::nodes::{JOB_ID, NODE, PARTITION};
use std::collections::BTreeMap;

/// What a pod's labels should be.
pub(super) type Labels = BTreeMap<&'static str, String>;

impl Controller {
    /// Has the pod's labels changed where they are not what they should be.
    pub(super) fn label(&mut self, uid: &str) {
        let Some(entry) = self.entries.get(uid) else { return };
        let Some(pod) = entry.pod.clone().filter(|p| p.metadata.deletion_timestamp.is_none()) else { return };
        let run = entry.job.as_ref();
        let wanted = labels(
            entry.record.job_id.as_deref(),
            run.map(|r| r.partition.as_str()),
            run.and_then(|r| r.batch_host()).as_deref(),
        );
        // Once for each value: what somebody else does to a label is not undone for ever.
        if wanted.is_empty() || self.labelled.get(uid) == Some(&wanted) {
            return;
        }
        self.labelled.insert(uid.to_owned(), wanted.clone());
        let has =
            |(key, value): (&&str, &String)| pod.metadata.labels.as_ref().and_then(|l| l.get(*key)) == Some(value);
        if !wanted.iter().all(has) {
            tasks::label(&self.ctx, pod, wanted);
        }
    }
}

/// A value that Kubernetes does not take for a label is left out.
fn labels(job: Option<&str>, partition: Option<&str>, node: Option<&str>) -> Labels {
    let all = [(JOB_ID, job), (PARTITION, partition), (NODE, node)];
    let told = all.into_iter().filter_map(|(key, value)| Some((key, value?)));
    told.filter(|(_, value)| hpk_api::nodes::is_label(value)).map(|(key, value)| (key, value.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_a_label() {
        assert_eq!(labels(None, None, None), Labels::new());
        assert_eq!(labels(Some("7"), Some(""), None), [(JOB_ID, "7".to_owned())].into());
        let all = labels(Some("7_1"), Some("debug"), Some("c1.site"));
        let wanted = [(JOB_ID, "7_1"), (PARTITION, "debug"), (NODE, "c1.site")];
        assert_eq!(all, wanted.map(|(key, value)| (key, value.to_owned())).into());
        assert_eq!(labels(Some("a b"), None, None), Labels::new());
    }
}
