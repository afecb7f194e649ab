//! The control side of a pod's network on its node: one task that owns the link's events, the supervisor's requests on
//! `netns.sock` and, for an overlay, the datapath.
//!
//! ```text
//! hpk-pause ── TunOffer + descriptor ─▶ netns.sock ─▶ datapath.attach ─▶ (plug-ins of the list) ─▶ TunAnswer
//! hpk-kubelet ── facts ─▶ link ─▶ datapath.learn, or nftables       datapath ── questions ─▶ link
//! ```

mod answers;
mod carrier;
mod overlay;
mod places;

pub(crate) use places::{Address, Places, address};

use crate::nat::{self, Progress};
use crate::outage::{News, Outage};
use crate::outward::NotHad;
use crate::requests::{self, Asked};
use carrier::Carrier;
use hpk_api::link::{Hello, NetQuestion, NetUpdate};
use hpk_api::net::{NetnsRequest, NetworkMode, Ready};
use hpk_api::plan::SandboxPlan;
use hpk_link::client::{ClientConfig, keep};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// Runs for as long as this lives.
#[derive(Debug)]
pub(crate) struct Network {
    leave: CancellationToken,
    tasks: Vec<AbortOnDropHandle<()>>,
}

impl Network {
    /// Ends it when the sessions that are under way have had their last bytes and the plug-ins have given back what they
    /// made.
    pub(crate) async fn finish(self) {
        self.leave.cancel();
        for task in self.tasks {
            let _ = task.await;
        }
    }
}

/// Begins to remove what pods left on this node whose jobs did not end in order.
pub(crate) type Sweep = Box<dyn Fn() + Send>;

/// Starts link, datapath and `netns.sock` beside the parent container. What fails here is said to the supervisor when
/// it asks for its network; a pod without one of its own is not in need of it. `refused`: host ports that were not even
/// asked for. `sweep`: for when the kubelet says so.
pub(crate) fn start(
    plan: &SandboxPlan,
    places: &Places<'_>,
    job_id: Option<&str>,
    address: &Address,
    refused: Vec<NotHad>,
    sweep: Sweep,
) -> Network {
    let (ask, questions) = mpsc::channel(256);
    let node_ip = address.node_ip;
    for port in refused {
        overlay::tell_not_had(&ask, port);
    }
    let leave = CancellationToken::new();
    let (synced_in, synced) = watch::channel(false);
    let mut tasks = Vec::with_capacity(2);
    let carrier = match (plan.network.mode, address.mtu) {
        (NetworkMode::Overlay, Some(mtu)) => {
            let (plugins, task) = overlay::plugins(plan, places, &leave);
            tasks.extend(task);
            Carrier::Overlay(Box::new(overlay::overlay(plan, places, address, mtu, ask, plugins)))
        }
        (NetworkMode::Cni, _) => {
            let (heard, hears) = mpsc::unbounded_channel();
            let (progress_in, progress) = watch::channel(Progress::default());
            tokio::spawn(nat::keep(hears, progress_in));
            Carrier::Given { heard, progress }
        }
        _ => carrier::outpost(plan, places, node_ip, ask, synced.clone()).map_or(Carrier::Node, Carrier::Outpost),
    };
    let listener = UnixListener::bind(places.run.join(hpk_layout::node::NETNS_SOCK));
    let running = carrier.datapath();
    let outposts = plan.network.outposts.first().filter(|_| matches!(carrier, Carrier::Outpost(_)));
    let hello = Hello {
        version: hpk_api::VERSION,
        pod_uid: plan.pod.uid.clone(),
        job_id: job_id.unwrap_or_default().to_owned(),
        node: crate::node::slurm_name(),
        datapath: running.map(|d| d.endpoint),
        public_key: running.and_then(|d| d.public_key.clone()),
        pod_ips: outposts.unwrap_or(&plan.network.pod_ips).clone(),
        outpost: 0,
        outward: carrier.outward(),
    };
    let config = ClientConfig {
        credentials: places.pod.join(hpk_layout::pod::LINK),
        hello,
        supervisor: places.run.join(hpk_layout::node::SUPERVISOR_SOCK),
    };
    let carriers = carriers(places);
    let link = LinkParts { config, carriers, questions, sweep, leave: leave.clone(), synced: (synced_in, synced) };
    tasks.push(AbortOnDropHandle::new(tokio::spawn(serve(link, carrier, listener, node_ip))));
    Network { leave, tasks }
}

/// The socket for carriers of the link, and the word in the pod's folder where it is. Without it the link can only be
/// dialled.
fn carriers(places: &Places<'_>) -> Option<UnixListener> {
    let path = places.run.join(hpk_layout::node::LINK_SOCK);
    let listener =
        UnixListener::bind(&path).inspect_err(|error| hpk_api::say!("hpk-netns: {}: {error}", path.display()));
    let file = places.pod.join(hpk_layout::pod::CARRIER);
    // The pod's folder is on the shared file system: nobody waits for it.
    tokio::task::spawn_blocking(move || {
        let text = format!("{}\n", path.display());
        let mut options = std::fs::File::options();
        let opened = options.write(true).create(true).truncate(true).mode(0o600).open(&file);
        if let Err(error) = opened.and_then(|mut f| f.write_all(text.as_bytes())) {
            hpk_api::say!("hpk-netns: {}: {error}", file.display());
        }
    });
    listener.ok()
}

/// What the link to the kubelet is made of.
struct LinkParts {
    config: ClientConfig,
    /// Streams that somebody else has dialled.
    carriers: Option<UnixListener>,
    /// For the kubelet.
    questions: mpsc::Receiver<NetQuestion>,
    sweep: Sweep,
    /// Cancelled when the pod is over.
    leave: CancellationToken,
    /// Whether all Services are known.
    synced: (watch::Sender<bool>, watch::Receiver<bool>),
}

async fn serve(link: LinkParts, mut carrier: Carrier, listener: io::Result<UnixListener>, node_ip: IpAddr) {
    let LinkParts { config, carriers, questions, sweep, leave, synced: (synced_in, synced) } = link;
    let pod = config.credentials.parent().unwrap_or(Path::new("/")).to_owned();
    let (events_in, mut events) = mpsc::channel(256);
    let node = crate::node::hostname();
    let mut link = std::pin::pin!(keep(config, events_in, questions, carriers, leave.clone()));
    let mut outage = Outage::of("hpk-netns");
    // Requests are received beside; what they bring comes here.
    let (asked_in, mut asked) = mpsc::channel::<Asked>(4);
    match listener {
        Ok(listener) => drop(tokio::spawn(requests::accept(listener, asked_in))),
        Err(error) => hpk_api::say!("hpk-netns: netns.sock: {error}"),
    }
    loop {
        tokio::select! {
            () = &mut link => return,
            Some(event) = events.recv() => match outage.take(event) {
                None => {}
                Some(News::Fresh) => carrier.fresh(),
                Some(News::Net(NetUpdate::Sweep)) => sweep(),
                Some(News::Net(update)) => {
                    let last = update == NetUpdate::ServicesSynced;
                    carrier.learn(update);
                    if last {
                        synced_in.send_replace(true);
                    }
                }
            },
            Some(()) = carrier.asked_outward() => {
                if let Carrier::Overlay(overlay) = &mut carrier
                    && let Ok(datapath) = &overlay.datapath
                {
                    overlay.outside.start(datapath);
                }
            }
            Some(asked) = asked.recv() => {
                let ready = Ready { node: node.clone(), node_ip: Some(node_ip), sandbox: asked.sandbox(), ..Ready::default() };
                match asked {
                    Asked { request: NetnsRequest::Step(start), fds, stream } => {
                        drop(tokio::spawn(crate::step::run(pod.clone(), *start, fds, stream)));
                    }
                    Asked { request: NetnsRequest::Session(session), stream, .. } => {
                        drop(tokio::spawn(crate::step::session(pod.clone(), *session, stream)));
                    }
                    asked => answers::answer_to(&mut carrier, asked, ready, synced.clone()),
                }
            }
        }
    }
}
