//! The control socket: `supervisor.sock`, the contract of [`hpk_api::control`].
//!
//! Owns the socket, its connections and the bytes between a client and a process. Decides nothing about the
//! pod: whatever touches the pod's state goes to the driver as a [`request::DriverRequest`].

pub mod request;
