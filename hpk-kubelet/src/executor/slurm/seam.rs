//! Slurm behind the seam: translates questions of the kubelet into Slurm's commands.

use super::client::Client;
use super::cluster::Cluster;
use super::error::SlurmError;
use super::limits::Site;
use super::{flags, request, resize};
use crate::executor::run::Run;
use crate::executor::words::{self, Kind, Words};
use crate::executor::{Answer, AskError, Asked, Asking, Executor, ExecutorError, Made, Past, Submission, Times};
use crate::nodes;
use std::path::Path;
use thiserror::Error;
use tokio::process::Child;

/// A job whose size is not the pod's fields' to say.
#[derive(Debug, Error)]
#[error("{0}")]
struct NoOtherSize(String);

impl From<SlurmError> for ExecutorError {
    fn from(error: SlurmError) -> Self {
        let (is_transient, is_refusal) = (error.is_transient(), error.is_refusal());
        Self::new(error, is_transient, is_refusal)
    }
}

impl Executor for Client {
    fn words(&self) -> &'static Words {
        words::of(Kind::Slurm)
    }

    fn ask(&self, asking: &Asking<'_>) -> Result<Asked, AskError> {
        let Asking { pod, cluster, .. } = asking;
        let (annotations, policy) = (pod.metadata.annotations.as_ref(), cluster.pod_flags);
        let class = pod.spec.as_ref().and_then(|s| s.priority_class_name.as_deref()).unwrap_or_default();
        let priority = cluster.priority_classes.get(class);
        flags::of_step(annotations, policy)?;
        let mut given = priority.map(|text| flags::of_class(class, text)).transpose()?.unwrap_or_default();
        given.extend(flags::of_job(annotations, policy)?);
        let partition = nodes::partition(asking.node, flags::value(&given, "partition"))?;
        if let Some(partition) = partition.filter(|_| !flags::has(&given, "partition")) {
            given.insert(0, format!("--partition={partition}"));
        }
        Ok(request::request(asking, &given)?)
    }

    fn submit<'a>(&'a self, submission: Submission<'a>) -> Answer<'a, Made> {
        Box::pin(async move { Ok(self.submit(submission.arguments, submission.script).await?) })
    }

    fn resize<'a>(&'a self, id: &'a str, arguments: &'a [String]) -> Answer<'a, ()> {
        Box::pin(async move {
            let update =
                resize::update(id, arguments).map_err(|why| ExecutorError::new(NoOtherSize(why), false, true))?;
            Ok(self.update(&update).await?)
        })
    }

    fn query<'a>(&'a self, ids: Option<&'a [String]>) -> Answer<'a, Vec<Run>> {
        Box::pin(async move { Ok(self.queue(ids).await?) })
    }

    fn remembered<'a>(&'a self, which: Past<'a>) -> Answer<'a, Option<Vec<Run>>> {
        Box::pin(async move {
            Ok(match which {
                Past::Ids(ids) => self.accounting(ids).await?,
                Past::Names(names, since) => self.accounting_of_names(names, since).await?,
            })
        })
    }

    fn cancel<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        Box::pin(async move { Ok(self.cancel(id).await?) })
    }

    fn terminate<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        Box::pin(async move { Ok(self.terminate(id).await?) })
    }

    fn step(&self, id: &str, netns: &Path, folder: &Path) -> Result<Child, ExecutorError> {
        Ok(self.step(id, netns, folder)?)
    }

    fn cluster(&self) -> Answer<'_, Cluster> {
        Box::pin(async move { Ok(self.cluster().await?) })
    }

    fn site(&self) -> Answer<'_, Option<Site>> {
        Box::pin(async move { Ok(self.site().await?) })
    }

    fn times(&self) -> Answer<'_, Times> {
        Box::pin(async move { Ok(self.times().await?) })
    }
}
