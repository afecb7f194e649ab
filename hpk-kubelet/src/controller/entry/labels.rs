//! Labels of a pod that say where it runs, for `kubectl get pods -L`. A Node's user may not change labels of pods, so they are
//! set as a user of their own, who may change nothing else (`hpk bootstrap` sees to that).

use crate::executor::run::Run;
use crate::gangs::parts;
use hpk_api::nodes::{JOB_ID, NODE, PARTITION, is_label};
use k8s_openapi::api::core::v1::Pod;
use std::collections::BTreeMap;

/// What a pod's labels should be.
pub(crate) type Labels = BTreeMap<&'static str, String>;

#[derive(Debug, Default)]
pub(crate) struct Labelling {
    /// The labels that were asked for last.
    told: Labels,
}

impl Labelling {
    /// What is to be set on a pod that has job `job_id`, of which the executor says `run`. Each value is asked for once: what
    /// somebody else does to a label is not undone for ever.
    pub(crate) fn next(&mut self, pod: &Pod, job_id: Option<&str>, run: Option<&Run>) -> Option<Labels> {
        let node = run.and_then(Run::batch_host);
        let wanted = labels(job_id, run.map(|r| r.partition.as_str()), node.as_deref());
        if wanted.is_empty() || self.told == wanted {
            return None;
        }
        self.told.clone_from(&wanted);
        let has =
            |(key, value): (&&str, &String)| pod.metadata.labels.as_ref().and_then(|l| l.get(*key)) == Some(value);
        (!wanted.iter().all(has)).then_some(wanted)
    }
}

/// A value that Kubernetes does not take for a label is left out.
fn labels(job: Option<&str>, partition: Option<&str>, node: Option<&str>) -> Labels {
    // Of a gang's member that of the whole allocation.
    let job = job.map(|id| parts(id).map_or(id, |(job, _)| job));
    let all = [(JOB_ID, job), (PARTITION, partition), (NODE, node)];
    let told = all.into_iter().filter_map(|(key, value)| Some((key, value?)));
    told.filter(|(_, value)| is_label(value)).map(|(key, value)| (key, value.to_owned())).collect()
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
        assert_eq!(labels(Some("7/3"), None, None), [(JOB_ID, "7".to_owned())].into());
    }

    #[test]
    fn a_value_is_asked_for_once() {
        let wanted: Labels = [(JOB_ID, "7".to_owned())].into();
        let mut pod = Pod::default();
        let mut labelling = Labelling::default();
        assert_eq!(labelling.next(&pod, None, None), None, "no job yet");
        assert_eq!(labelling.next(&pod, Some("7"), None), Some(wanted.clone()));
        assert_eq!(labelling.next(&pod, Some("7"), None), None, "it was taken away by somebody else");
        pod.metadata.labels = Some([(JOB_ID.to_owned(), "8".to_owned())].into());
        assert_eq!(labelling.next(&pod, Some("8"), None), None, "an earlier kubelet has set it");
        assert_eq!(labelling.next(&pod, Some("7"), None), Some(wanted), "the job is another one");
    }
}
