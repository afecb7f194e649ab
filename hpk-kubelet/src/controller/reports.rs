//! The supervisors' side of the pods: links that come and go, reports, and the events in them.

use super::entry::SILENCE;
use super::unlinked::Act;
use super::{Controller, tasks};
use crate::api::events::Note;
use crate::executor::run::Run;
use crate::pods::claim;
use hpk_api::state::PodState;
use hpk_link::server::LinkEvent;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

/// How hpk-netns begins what it says of the link in the job's output.
const LINK: &str = "hpk-netns: link to the kubelet: ";

impl Controller {
    pub(super) fn link(&mut self, event: LinkEvent) {
        match event {
            // The control plane's own place in the pod network is no pod.
            LinkEvent::Up { hello, .. } if hello.pod_uid == hpk_api::link::MEMBER => {}
            LinkEvent::Up { hello, carried } => {
                // It was admitted, so it was begun; it may have ended since.
                let Some(entry) = self.entries.get_mut(&hello.pod_uid).filter(|e| e.is_to_link()) else { return };
                if let Some(old) = entry.link.replace(tasks::watch(&self.ctx, &self.tx, hello.pod_uid.clone())) {
                    old.abort();
                }
                entry.heard_at = Instant::now();
                if !carried && !std::mem::replace(&mut entry.record.linked, true) {
                    self.save(&hello.pod_uid);
                }
                // Slurm will say RUNNING at the next query: no need to wait for it to see the report.
                self.advance(&hello.pod_uid);
            }
            LinkEvent::Down { uid, reason } => {
                tracing::debug!(%uid, %reason, "link down");
                let Some(entry) = self.entries.get_mut(&uid) else { return };
                if let Some(task) = entry.link.take() {
                    task.abort();
                    entry.heard_at = Instant::now();
                    self.later(&uid, SILENCE);
                    self.advance(&uid);
                }
            }
            LinkEvent::Refused { uid, why } => {
                tracing::warn!(%uid, %why, "link refused");
                if let Some(pod) = self.entries.get(&uid).and_then(|entry| entry.pod.as_deref()) {
                    let text = format!(
                        "somebody with this pod's credentials was refused: {why}. If nobody of yours did that, the pod's \
                         link.json has leaked: delete the pod"
                    );
                    self.ctx.recorder.pod(pod, Note::warning("LinkRefused", text));
                }
            }
        }
    }

    /// Keeps in step with how far a pod is who may link, and what is done while a running pod has no link.
    pub(super) fn see_to_link(&mut self, uid: &str) {
        let now = Instant::now();
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let may = entry.is_to_link();
        if may != std::mem::replace(&mut entry.may_link, may) {
            if may {
                self.ctx.links.adopt(uid, self.ctx.folder(uid).link(), entry.record.pod_ips.clone());
            } else {
                self.ctx.links.withdraw(uid);
            }
        }
        let (lacks, has) = (entry.lacks_link(), entry.link.is_some());
        let acts = entry.unlinked.next(now, lacks);
        let (pod, job) = (entry.pod.clone(), entry.job.clone());
        for act in acts {
            match (act, &pod, &job) {
                (Act::Tell, Some(pod), job) => {
                    let node = job.as_ref().and_then(Run::batch_host);
                    tasks::tell_unlinked(&self.ctx, pod.clone(), uid, node);
                }
                (Act::TellBack, Some(pod), _) if has => {
                    self.ctx.recorder.pod(pod, Note::normal("LinkBack", "the pod has its link to the kubelet again"));
                }
                (Act::Carry, _, Some(job)) => tasks::carry(&self.ctx, uid, job.id.clone()),
                (Act::Later(wait), ..) => self.later(uid, wait),
                _ => {}
            }
        }
    }

    pub(super) fn report(&mut self, uid: &str, state: PodState) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let put_back = entry.put_back;
        // Nobody else could speak for a job of this pod.
        let found = state.job_id.clone().filter(|_| entry.submission.search().is_some());
        if let Some(id) = found {
            entry.submission.adopt();
            self.made(uid, id);
        }
        let Some(entry) = self.entries.get_mut(uid) else { return };
        if !entry.take_report(state, Instant::now()) {
            return;
        }
        self.judge_addresses(uid);
        self.tell_put_back(uid, put_back);
        self.tell_events(uid);
        self.advance(uid);
    }

    /// Takes out of the newest report what is not believed of its addresses; the pod's owner is told once.
    pub(super) fn judge_addresses(&mut self, uid: &str) {
        let Some(entry) = self.entries.get(uid) else { return };
        // Without an object nothing is told of it.
        let Some(pod) = &entry.pod else { return };
        let mut said = entry.report.as_ref().map(|report| report.pod_ips.clone()).unwrap_or_default();
        let had = pod.status.as_ref().and_then(|status| status.pod_ips.as_ref());
        let had: Vec<IpAddr> = had.into_iter().flatten().filter_map(|ip| ip.ip.parse().ok()).collect();
        let known = claim::Known {
            mode: entry.network_mode().unwrap_or_else(|| self.ctx.network_mode(pod)),
            given: &entry.record.pod_ips,
            had: &had,
            pod_cidr: &self.ctx.cluster.pod_cidr,
            service_cidr: &self.ctx.cluster.service_cidr,
            node_ip: self.ctx.cluster.node_ip,
        };
        let others = |ip| self.entries.iter().any(|(other, entry)| other != uid && entry.has_address(ip));
        let wrong = claim::judge(&known, &mut said, others);
        let Some(entry) = self.entries.get_mut(uid) else { return };
        if let Some(report) = &mut entry.report {
            report.pod_ips = said;
        }
        if let (Some(pod), Some(text)) = (&entry.pod, wrong)
            && entry.claimed.as_ref() != Some(&text)
        {
            tracing::warn!(%uid, text);
            self.ctx.recorder.pod(pod, Note::warning("AddressRefused", text.clone()));
            entry.claimed = Some(text);
        }
    }

    /// Posts the supervisor's events that were not posted before.
    pub(super) fn tell_events(&mut self, uid: &str) {
        let Some(entry) = self.entries.get_mut(uid) else { return };
        let (Some(pod), Some(report)) = (&entry.pod, &entry.report) else { return };
        let mut last = entry.record.last_event;
        for event in report.events.iter().filter(|e| e.sequence > entry.record.last_event) {
            last = last.max(event.sequence);
            self.ctx.recorder.pod(
                pod,
                Note {
                    warning: event.warning,
                    reason: event.reason.clone(),
                    message: event.message.clone(),
                    container: event.container.clone(),
                    at: Some(event.at),
                },
            );
        }
        if last != entry.record.last_event {
            entry.record.last_event = last;
            self.save(uid);
        }
    }
}

/// The event of a pod that has no link; `output`: the end of its job's.
pub(super) fn no_link(output: &str, address: SocketAddr, node: Option<&str>) -> String {
    let node = node.unwrap_or("its node");
    let said = output.lines().rev().find_map(|line| line.strip_prefix(LINK));
    let cause = said.map_or_else(
        || format!("{node} has not said why"),
        |said| format!("{node} says: {}", said.trim_end_matches("; dialling on")),
    );
    format!(
        "the pod has no link to the kubelet: it runs on, and learns nothing new of Services, NetworkPolicies and its \
         volumes' contents. {cause}. Compute nodes must reach TCP {address} (hpk doctor looks); until then Slurm carries \
         the link (srun --overlap) where it can"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_link_is_told_with_the_nodes_own_last_word() {
        let address = "10.77.0.1:7000".parse().unwrap();
        let output = "hpk-netns: link to the kubelet: closed by the other end; dialling on\nx\n\
                      hpk-netns: link to the kubelet: dialling 10.77.0.1:6999: Connection refused (os error 111); dialling on\n";
        let text = no_link(output, address, Some("c1"));
        assert!(
            text.contains("c1 says: dialling 10.77.0.1:6999: Connection refused (os error 111). Compute"),
            "{text}"
        );
        assert!(text.contains("TCP 10.77.0.1:7000"), "{text}");
        assert!(no_link("", address, None).contains("its node has not said why"));
    }
}
