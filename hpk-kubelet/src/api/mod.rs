//! The API server as the kubelet uses it: events, the objects that pods refer to, the Node.

pub(crate) mod certificates;
pub(crate) mod events;
pub(crate) mod failed;
pub(crate) mod fetch;
pub(crate) mod node;
pub(crate) mod references;
