//! The API server as the kubelet uses it: events, the objects that pods refer to, the Node.

pub mod certificates;
pub mod events;
pub mod failed;
pub mod fetch;
pub mod node;
pub mod references;
