//! hpk-kubelet: translates pods into Slurm jobs and reports what becomes of them.
//!
//! Pure: [`render`], [`executor`] but its edges, [`pods`] but its folder; decisions are functions of data.
//! The controller's one task owns all state; everything that waits is a task that sends it an event.
//! It decides nothing about a running pod: that is the supervisor's part.
//!
//! Public is what `main` calls, and in [`parts`] what the bench of the controller puts together.

mod api;
mod app;
mod backend;
mod carrier;
mod controller;
mod descriptors;
mod executor;
mod gangs;
mod home;
mod link_port;
mod nodes;
mod pods;
mod provisioner;
mod quantity;
mod render;
mod volumes;
mod watch;

pub use app::{App, Options};
pub use pods::gifts::{COMMAND as GIVE_FILES, main as give_files};
pub use provisioner::copy::{COMMAND as COPY_VOLUME, main as copy_volume};

/// The real controller's parts, for `benches/controller.rs`.
pub mod parts {
    pub use crate::api::events::Recorder;
    pub use crate::api::node::NodeFacts;
    pub use crate::backend::Kubelet;
    pub use crate::carrier::Carriers;
    pub use crate::controller::context::Context;
    pub use crate::controller::{Controller, Event, Pods, Sender};
    pub use crate::executor::run::{Run, RunPhase};
    pub use crate::executor::slurm::cluster::Cluster;
    pub use crate::executor::slurm::limits::Site;
    pub use crate::executor::words::{self, Kind, Words};
    pub use crate::executor::{
        Answer, AskError, Asked, Asking, Executor, ExecutorError, Made, Past, Submission, Times,
    };
    pub use crate::nodes::{Clients, Nodes};
    pub use crate::pods::folder::{Folder, Progress, Record};
}
