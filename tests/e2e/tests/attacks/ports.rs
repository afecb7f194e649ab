//! Ports and folders that another user of the machine takes first.
