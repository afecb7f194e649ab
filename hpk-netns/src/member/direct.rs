//! The member where pods are in a network of the site's (mode cni): no place in the overlay and no relays, for there is
//! none. What is left are the login node's listeners for NodePort and LoadBalancer; its own routes lead to pods, if any do.

use super::{Helper, MemberError, Ready, listen};
use crate::outage::{News, Outage};
use hpk_api::link::{Hello, MEMBER, NetUpdate};
use hpk_layout::{Home, node};
use hpk_link::client::{ClientConfig, keep};
use std::path::Path;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Runs until it is ended.
pub(super) async fn live(home: &Path, folder: &Path) -> Result<std::convert::Infallible, MemberError> {
    let (questions, asked) = mpsc::channel(256);
    let mut listeners = listen::Listeners::new(Helper { socket: None }, questions);
    let hello = Hello {
        version: hpk_api::VERSION,
        pod_uid: MEMBER.to_owned(),
        job_id: String::new(),
        node: crate::node::hostname(),
        datapath: None,
        public_key: None,
        pod_ips: Vec::new(),
        outward: None,
        outpost: 0,
    };
    let link =
        ClientConfig { credentials: Home::at(home).member_link(), hello, supervisor: folder.join(node::NO_SOCK) };
    let mut ready = Ready::default();
    let (events_in, mut events) = mpsc::channel(256);
    let mut link = std::pin::pin!(keep(link, events_in, asked, None, CancellationToken::new()));
    let mut outage = Outage::of("hpk-netns: member");
    loop {
        tokio::select! {
            () = &mut link => return Err(MemberError::Left),
            Some(event) = events.recv() => match outage.take(event) {
                Some(News::Fresh) => {
                    listeners.linked();
                    ready.say();
                }
                Some(News::Net(NetUpdate::Listeners(wanted))) => listeners.set(wanted).await,
                Some(News::Net(_)) | None => {}
            },
            () = listeners.due() => listeners.again().await,
        }
    }
}
