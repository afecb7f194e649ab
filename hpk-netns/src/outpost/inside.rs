//! The helper in the outpost's own user and network namespace: makes its interface, then sockets for whoever asks.

use crate::member::inside::{InsideError, make};
use std::io::{self, BufRead, BufReader, Read};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::Path;

/// Runs until hpk-netns is gone. `offer` is where it takes the TUN; clients come to standard input, which listens.
///
/// # Errors
/// The network could not be made.
pub fn run(offer: &Path, ips: &[IpAddr], mtu: u32, ranges: &[&str]) -> Result<(), InsideError> {
    super::stay()?;
    let clients = UnixListener::from(io::stdin().as_fd().try_clone_to_owned()?);
    clients.set_nonblocking(false)?;
    let mut hpk_netns = make(offer, ips, mtu, ranges)?;
    // Packets flow when it has answered; a socket before that could not reach anything.
    BufReader::new(&hpk_netns).read_line(&mut String::new())?;
    std::thread::spawn(move || hpk_sys::crossing::serve(&clients));
    let _ = hpk_netns.read_to_end(&mut Vec::new());
    Ok(())
}
