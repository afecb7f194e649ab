//! How a container's main process comes to be.
//!
//! A [`LaunchSpec`] is a container with everything resolved; a [`Launcher`] makes a process of it. The native maker
//! ([`native::Native`]) builds the container itself in the pod's user namespace; the nested one
//! ([`nested::NestedApptainer`]) has Apptainer make the root file system, where the kernel has no overlay for users.
//! Launchers keep nothing of a container: when its processes are gone, so are its mounts, and only its writable layer
//! ([`LaunchSpec::upper`]) remains, which the caller removes.

mod compile;
mod keeper;
pub mod native;
pub mod nested;
mod node;
pub(crate) mod pipes;
mod spec;

pub(crate) use compile::{compile_join, process as compile_process};
pub(crate) use node::Node;
pub use node::Places;

pub use crate::error::{FailureKind, LaunchError};
pub use crate::program::Step;
pub use crate::spawn::{InnerProcess, Io, Launched, Starting};
pub use keeper::{KEEP, keep};
pub use native::Native;
pub use nested::NestedApptainer;
pub use spec::{JoinSpec, LaunchSpec, Mount, PidNamespace, Propagation, Rlimit, Security, Shown};

/// Makes processes of specs.
pub trait Launcher {
    /// Clones the container's first process and returns at once; see [`Starting`].
    ///
    /// # Errors
    /// When the spec is impossible or no process could be made.
    fn start(&mut self, spec: &LaunchSpec) -> Result<Starting, LaunchError>;

    /// Whether it heeds [`LaunchSpec::keeper`].
    fn makes_keepers(&self) -> bool {
        false
    }

    /// As [`Launcher::start`], and waits until the command executes. Blocks for as long as the set-up takes.
    ///
    /// # Errors
    /// What failed; nothing is left of the container but its writable layer.
    fn launch(&mut self, spec: &LaunchSpec) -> Result<Launched, LaunchError> {
        self.start(spec)?.wait()
    }
}
