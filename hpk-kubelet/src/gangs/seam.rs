//! The executor that the controller sees: Slurm, with the members of a gang as runs of their own.

use super::heard::Heard;
use super::keeper::{Gangs, Outcome, job_name};
use super::whole::{self, Whole};
use super::{claim, member, parts};
use crate::executor::run::Run;
use crate::executor::slurm::client::{Client, Part};
use crate::executor::slurm::cluster::Cluster;
use crate::executor::slurm::limits::Site;
use crate::executor::words::Words;
use crate::executor::{Answer, AskError, Asked, Asking, Executor, ExecutorError, Made, Past, Submission, Times};
use hpk_api::gang::{GangFile, MemberFile, Wish};
use hpk_layout::Home;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use thiserror::Error;
use tokio::process::Child;

/// A gang that was not submitted.
#[derive(Debug, Error)]
#[error("{0}")]
struct NotSubmitted(String);

/// A place of an allocation has no size of its own.
#[derive(Debug, Error)]
#[error("it is a member of a gang, whose allocation keeps its size; delete the gang and make it anew")]
struct OfAGang;

/// Slurm and its gangs.
#[derive(Clone, Debug)]
pub(crate) struct WithGangs {
    slurm: Client,
    gangs: Gangs,
    home: Home,
}

impl WithGangs {
    #[must_use]
    pub(crate) fn new(slurm: Client, gangs: Gangs, home: Home) -> Self {
        Self { slurm, gangs, home }
    }

    /// Each allocation in the list as the runs of its members. `whole`: the list has all jobs.
    async fn members(&self, runs: Vec<Run>, whole: bool) -> Vec<Run> {
        // After Slurm was asked: what it has submitted is known here.
        let files = self.gangs.files();
        let (mut list, of_gangs) = whole::take(runs, &self.home.gangs());
        if whole {
            self.tell_gone(&files, &of_gangs);
        }
        let mut known = Vec::new();
        for job in of_gangs {
            let id = job.gang.clone();
            match files.iter().find(|file| file.id == id) {
                Some(file) => {
                    if file.job_id.is_none() {
                        self.gangs.tell(Heard::Found { id: id.clone(), job: job.job.clone() });
                    }
                    if job.is_gone() {
                        self.gangs.tell(Heard::Over { id });
                    }
                    known.push((file.clone(), job));
                }
                None if whole && !job.is_over() => {
                    tracing::warn!(gang = %id, job = %job.job, "no gang has this job: it is cancelled");
                    if let Err(error) = self.slurm.cancel(&job.job).await {
                        tracing::warn!(job = %job.job, %error, "scancel of a gang");
                    }
                }
                None => {}
            }
        }
        if !known.is_empty() {
            let home = self.home.clone();
            let views = tokio::task::spawn_blocking(move || {
                let views = known.iter().flat_map(|(file, job)| views(&home, file, job));
                views.collect::<Vec<_>>()
            });
            list.extend(views.await.unwrap_or_default());
        }
        list
    }

    /// Allocations that are in no list of all jobs any more are over.
    fn tell_gone(&self, files: &[GangFile], listed: &[Whole]) {
        for file in files.iter().filter(|file| file.job_id.is_some()) {
            if !listed.iter().any(|job| job.gang == file.id) {
                self.gangs.tell(Heard::Over { id: file.id.clone() });
            }
        }
    }
}

fn views(home: &Home, file: &GangFile, job: &Whole) -> Vec<Run> {
    let members = file.members.iter().enumerate().map(|(number, m)| {
        let said = member_file(home, &file.id, &m.uid);
        let folder = home.pod(&m.uid);
        let own = job.of(m.component);
        member::view(&member::Known {
            uid: &m.uid,
            number,
            folder: &folder,
            job: &own,
            file: said.as_ref(),
            wish: m.wish,
        })
    });
    members.collect()
}

fn member_file(home: &Home, id: &str, uid: &str) -> Option<MemberFile> {
    let path: PathBuf = home.gangs().join(id).join(hpk_layout::gang::MEMBERS).join(hpk_layout::gang::member_file(uid));
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// The jobs of these runs.
fn jobs(ids: &[String]) -> Vec<String> {
    let mut jobs: Vec<String> = ids.iter().map(|id| parts(id).map_or(id.as_str(), |(job, _)| job).to_owned()).collect();
    jobs.sort_unstable();
    jobs.dedup();
    jobs
}

impl Executor for WithGangs {
    fn words(&self) -> &'static Words {
        self.slurm.words()
    }

    fn ask(&self, asking: &Asking<'_>) -> Result<Asked, AskError> {
        claim::of(asking.pod)?;
        self.slurm.ask(asking)
    }

    fn submit<'a>(&'a self, submission: Submission<'a>) -> Answer<'a, Made> {
        Box::pin(async move {
            match self.gangs.submit(submission.uid).await {
                Outcome::Alone => Executor::submit(&self.slurm, submission).await,
                Outcome::Made(id) => Ok(Made { id, said: String::new() }),
                Outcome::Failed { sure, why } => Err(ExecutorError::new(NotSubmitted(why), true, sure)),
            }
        })
    }

    fn resize<'a>(&'a self, id: &'a str, arguments: &'a [String]) -> Answer<'a, ()> {
        Box::pin(async move {
            match parts(id) {
                Some(_) => Err(ExecutorError::new(OfAGang, false, true)),
                None => Executor::resize(&self.slurm, id, arguments).await,
            }
        })
    }

    fn query<'a>(&'a self, ids: Option<&'a [String]>) -> Answer<'a, Vec<Run>> {
        Box::pin(async move {
            let jobs = ids.map(jobs);
            let runs = Executor::query(&self.slurm, jobs.as_deref()).await?;
            Ok(self.members(runs, ids.is_none()).await)
        })
    }

    fn remembered<'a>(&'a self, which: Past<'a>) -> Answer<'a, Option<Vec<Run>>> {
        Box::pin(async move {
            let runs = match which {
                Past::Ids(ids) => self.slurm.remembered(Past::Ids(&jobs(ids))).await?,
                Past::Names(names, since) => {
                    let files = self.gangs.files();
                    let theirs = files.iter().filter(|f| f.members.iter().any(|m| names.contains(&m.name)));
                    let all: Vec<String> =
                        names.iter().cloned().chain(theirs.map(|file| job_name(&file.group))).collect();
                    self.slurm.remembered(Past::Names(&all, since)).await?
                }
            };
            Ok(match runs {
                Some(runs) => Some(self.members(runs, false).await),
                None => None,
            })
        })
    }

    fn cancel<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            match parts(id) {
                Some(_) => {
                    self.gangs.end(id, Wish::Kill);
                    Ok(())
                }
                None => Executor::cancel(&self.slurm, id).await,
            }
        })
    }

    fn terminate<'a>(&'a self, id: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            match parts(id) {
                Some(_) => {
                    self.gangs.end(id, Wish::Stop);
                    Ok(())
                }
                None => Executor::terminate(&self.slurm, id).await,
            }
        })
    }

    fn step(&self, id: &str, netns: &Path, folder: &Path) -> Result<Child, ExecutorError> {
        let Some((job, number)) = parts(id) else { return Executor::step(&self.slurm, id, netns, folder) };
        let files: Arc<Vec<GangFile>> = self.gangs.files();
        let file = files.iter().find(|file| file.job_id.as_deref() == Some(job));
        let member = file.and_then(|file| Some((file, file.members.get(number)?)));
        let place = member.map(|(file, member)| Part {
            node: member_file(&self.home, &file.id, &member.uid).map(|said| said.node),
            component: file.is_heterogeneous().then_some(member.component),
        });
        Ok(self.slurm.step_in(job, &place.unwrap_or_default(), netns, folder)?)
    }

    fn cluster(&self) -> Answer<'_, Cluster> {
        Executor::cluster(&self.slurm)
    }

    fn site(&self) -> Answer<'_, Option<Site>> {
        Executor::site(&self.slurm)
    }

    fn times(&self) -> Answer<'_, Times> {
        Executor::times(&self.slurm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_members_are_one_question() {
        let ids = ["7/1", "8", "7/0"].map(str::to_owned);
        assert_eq!(jobs(&ids), ["7", "8"]);
    }
}
