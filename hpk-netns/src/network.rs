//! The control side of a pod's network on its node: keeps the link to the kubelet.

use hpk_api::link::Hello;
use hpk_api::plan::SandboxPlan;
use hpk_link::client::{ClientConfig, ClientEvent, keep};
use std::path::Path;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

/// Runs for as long as this lives.
#[derive(Debug)]
pub(crate) struct Network {
    _link: AbortOnDropHandle<()>,
}

/// Starts the link beside the parent container. Nothing that fails here is in the pod's way.
pub(crate) fn start(plan: &SandboxPlan, pod: &Path, run: &Path, job_id: Option<&str>) -> Network {
    let hello = Hello {
        version: hpk_api::VERSION,
        pod_uid: plan.pod.uid.clone(),
        job_id: job_id.unwrap_or_default().to_owned(),
        node: crate::run::hostname(),
        datapath: None,
        public_key: None,
    };
    let config = ClientConfig { credentials: pod.join(hpk_api::files::LINK), hello, supervisor: run.join(hpk_api::paths::SUPERVISOR_SOCK) };
    let link = tokio::spawn(async move {
        let (events_in, mut events) = mpsc::channel(64);
        let (_questions, asked) = mpsc::channel(64);
        let mut said = false;
        let mut kept = std::pin::pin!(keep(config, events_in, asked));
        loop {
            tokio::select! {
                refused = &mut kept => {
                    eprintln!("hpk-netns: the kubelet refused the link: {refused}");
                    return;
                }
                Some(event) = events.recv() => match event {
                    // Once for each outage: the job's output is not a log of dials.
                    ClientEvent::Down { reason } if !said => {
                        eprintln!("hpk-netns: link to the kubelet: {reason}; dialling on");
                        said = true;
                    }
                    ClientEvent::Up => said = false,
                    _ => {}
                },
            }
        }
    });
    Network { _link: AbortOnDropHandle::new(link) }
}
