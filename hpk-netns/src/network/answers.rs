//! What the supervisor asks of its network on `netns.sock`, done and answered.

use super::carrier::Carrier;
use super::overlay::Overlay;
use crate::cni::{self, ChainError, ListError};
use crate::nat::{self, Heard, Progress};
use crate::requests::{Asked, answer};
use hpk_api::net::{NetnsRequest, Ready, TunAnswer};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};

/// How long a pod's start waits for the services to be known. Without the link it starts without them.
const SERVICES: Duration = Duration::from_secs(2);

/// Why the supervisor does not get what it asks for.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("{0}")]
    Datapath(String),
    #[error(transparent)]
    List(ListError),
    #[error(transparent)]
    Plugins(#[from] ChainError),
    #[error("the TUN's descriptor did not come with the offer")]
    NoDescriptor,
    #[error("the namespaces did not come with the offer")]
    NoNamespaces,
    #[error("this pod's network has no plug-ins to ask")]
    NoPlugins,
    #[error("the plan has no list of plug-ins")]
    NoList,
    #[error("the request does not fit the mode of this pod's network")]
    OtherMode,
    #[error("the pod is ending")]
    Ending,
}

impl From<Refusal> for TunAnswer {
    fn from(why: Refusal) -> Self {
        Self::Failed { message: why.to_string() }
    }
}

/// Begins what the supervisor asks for; the answer comes from a task of its own.
pub(super) fn answer_to(carrier: &mut Carrier, asked: Asked, ready: Ready, synced: watch::Receiver<bool>) {
    let Asked { request, fds, stream } = asked;
    let refuse = |stream, why: Refusal| {
        tokio::spawn(async move { answer(stream, &why.into()).await });
    };
    let mut fds = fds.into_iter();
    match (request, carrier) {
        (NetnsRequest::Tun(offer), Carrier::Overlay(overlay)) => {
            let Overlay { datapath, outside, list, plugins } = overlay.as_mut();
            let datapath = match (datapath, list) {
                (Err(error), _) => return refuse(stream, Refusal::Datapath(error.to_string())),
                (_, Err(error)) => return refuse(stream, Refusal::List(error.clone())),
                (Ok(datapath), Ok(())) => datapath,
            };
            let Some(tun) = fds.next() else {
                return refuse(stream, Refusal::NoDescriptor);
            };
            datapath.attach(tun, offer.vnet_hdr);
            if outside.outward.has_ports() {
                outside.open_ports(ready.node_ip.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)));
                outside.start(datapath);
            }
            let Some(offer) = offer.chain else {
                tokio::spawn(ready_soon(stream, ready, synced));
                return;
            };
            let (Some(user), Some(pod), Some(node_side)) = (fds.next(), fds.next(), fds.next()) else {
                return refuse(stream, Refusal::NoNamespaces);
            };
            let (answered, result) = oneshot::channel();
            let namespaces = cni::Namespaces { user, pod, node_side };
            let add = cni::Add { offer, namespaces, sandbox: ready.sandbox.clone(), answer: answered };
            let plugins = plugins.clone();
            tokio::spawn(async move {
                match ask_plugins(plugins, cni::Ask::Add(Box::new(add)), result).await {
                    Ok(cni::Added { result, unsound }) => {
                        let warning = unsound.map(|message| ("NetworkCheckFailed".to_owned(), message));
                        ready_soon(stream, Ready { result: Some(result), warning, ..ready }, synced).await;
                    }
                    Err(why) => answer(stream, &why.into()).await,
                }
            });
        }
        (NetnsRequest::Check, Carrier::Overlay(overlay)) => {
            let Some(plugins) = overlay.plugins.clone() else {
                return refuse(stream, Refusal::NoPlugins);
            };
            let (answered, result) = oneshot::channel();
            tokio::spawn(async move {
                let checked = ask_plugins(Some(plugins), cni::Ask::Check(answered), result).await;
                let said = checked.map_or_else(Into::into, |()| TunAnswer::Ready(Box::new(ready)));
                answer(stream, &said).await;
            });
        }
        (NetnsRequest::Given(offer), Carrier::Given { heard, progress }) => {
            let (Some(user), Some(network)) = (fds.next(), fds.next()) else {
                return refuse(stream, Refusal::NoNamespaces);
            };
            let _ = heard.send(Heard::Pod(nat::Pod { user, network, ips: offer.pod_ips }));
            let mut progress = progress.clone();
            tokio::spawn(async move {
                let put = tokio::time::timeout(SERVICES, progress.wait_for(|p| *p != Progress::Waiting)).await;
                let warning = match put.map(|p| p.map(|p| p.clone())) {
                    Ok(Ok(Progress::Failed(message))) => Some(("ServicesNotReady".to_owned(), message)),
                    _ => None,
                };
                answer(stream, &TunAnswer::Ready(Box::new(Ready { warning, ..ready }))).await;
            });
        }
        _ => refuse(stream, Refusal::OtherMode),
    }
}

/// What the plug-ins' task says.
async fn ask_plugins<T>(
    plugins: Option<mpsc::Sender<cni::Ask>>,
    ask: cni::Ask,
    answered: oneshot::Receiver<Result<T, ChainError>>,
) -> Result<T, Refusal> {
    plugins.ok_or(Refusal::NoList)?.send(ask).await.map_err(|_| Refusal::Ending)?;
    Ok(answered.await.map_err(|_| Refusal::Ending)??)
}

/// Waits a moment for the services to be known, so that a pod's first connection finds them.
async fn ready_soon(stream: UnixStream, ready: Ready, mut synced: watch::Receiver<bool>) {
    let _ = tokio::time::timeout(SERVICES, synced.wait_for(|s| *s)).await;
    answer(stream, &TunAnswer::Ready(Box::new(ready))).await;
}
