//! The control plane's supervisor: `hpk supervise`, started detached by `hpk up`.
//!
//! [`core`] decides, purely; [`driver`] is the one task that owns its state and performs what it returns;
//! [`process`] starts programs and carries their output to bounded log files; [`ask`] asks whether they
//! serve; [`strays`] ends what a killed supervisor left; [`control`] is the socket on which `hpk up`, `status` and `down` talk to it;
//! [`lease`] keeps other login nodes from running the same cluster.

pub(crate) mod ask;
pub(crate) mod control;
pub(crate) mod core;
pub(crate) mod driver;
pub(crate) mod lease;
pub(crate) mod process;
pub(crate) mod strays;
