//! In a network of the site's own (mode cni) nothing of ours sees pods' packets: whoever makes a NetworkPolicy hears that
//! it is not enforced.

use crate::balancer::Notice;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use std::collections::HashSet;
use tokio::sync::mpsc;

const MESSAGE: &str = "the pods' network is the site's (hpk up --network cni:…): HPK does not enforce this policy in it. A \
                       site's plug-in may do so by itself; HPK's own network does: hpk down; hpk up --network overlay";

/// Tells it once of each policy.
pub(crate) struct Unenforced {
    notices: mpsc::UnboundedSender<Notice>,
    told: HashSet<String>,
}

impl Unenforced {
    pub(crate) fn new(notices: mpsc::UnboundedSender<Notice>) -> Self {
        Self { notices, told: HashSet::new() }
    }

    /// A policy was made or changed (`live`) or is gone.
    pub(crate) fn policy(&mut self, policy: &NetworkPolicy, live: bool) {
        let uid = policy.metadata.uid.clone().unwrap_or_default();
        if !live {
            self.told.remove(&uid);
        } else if self.told.insert(uid) {
            let about = ObjectReference {
                api_version: Some("networking.k8s.io/v1".to_owned()),
                kind: Some("NetworkPolicy".to_owned()),
                name: policy.metadata.name.clone(),
                namespace: policy.metadata.namespace.clone(),
                uid: policy.metadata.uid.clone(),
                ..ObjectReference::default()
            };
            let notice = Notice { about, warning: true, reason: "NotEnforced", message: MESSAGE.to_owned() };
            let _ = self.notices.send(notice);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_policy_once() {
        let (notices, mut heard) = mpsc::unbounded_channel();
        let mut unenforced = Unenforced::new(notices);
        let mut policy = NetworkPolicy::default();
        policy.metadata.uid = Some("u-1".to_owned());
        unenforced.policy(&policy, true);
        unenforced.policy(&policy, true);
        assert_eq!(heard.try_recv().unwrap().reason, "NotEnforced");
        assert!(heard.try_recv().is_err());
        unenforced.policy(&policy, false);
        unenforced.policy(&policy, true);
        assert!(heard.try_recv().is_ok());
    }
}
