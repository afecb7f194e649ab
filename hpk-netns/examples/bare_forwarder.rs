//! The least that a program between a TUN and UDP can do, for bench/net: frames go as they come, a thread for each way,
//! large ones in pieces (UDP_SEGMENT) that the other side's kernel joins again (UDP_GRO). No peers, services, policy or
//! encryption, and a frame is lost with any of its pieces: no network for use, but what an overlay is held against.
//!
//! ```text
//! bare_forwarder NETNS DEVICE ADDRESS NODE_IP MTU
//! ```
//! Prints `<endpoint> -`; the first line of standard input is the other's endpoint.
#![allow(clippy::print_stdout, reason = "it prints for who calls it, and ends then")]

use hpk_sys::netdev::{Netlink, create_tun};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg, setsockopt, sockopt};
use std::error::Error;
use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

/// A frame: virtio header and the largest packet.
const FRAME: usize = 10 + 65_536;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [netns, device, address, node_ip, mtu] = args.as_slice() else {
        return Err("usage: bare_forwarder NETNS DEVICE ADDRESS NODE_IP MTU".into());
    };
    let socket = UdpSocket::bind((node_ip.parse::<IpAddr>()?, 0))?;
    setsockopt(&socket, sockopt::SndBuf, &(4 << 20))?;
    setsockopt(&socket, sockopt::RcvBuf, &(4 << 20))?;
    setsockopt(&socket, sockopt::UdpGroSegment, &true)?;
    println!("{} -", socket.local_addr()?);
    let (address, mtu) = (address.parse::<IpAddr>()?, mtu.parse()?);
    // Its own thread goes to the namespace; the socket stays where it is.
    nix::sched::setns(File::open(netns)?, nix::sched::CloneFlags::CLONE_NEWNET)?;
    let tun = create_tun(device)?;
    let mut netlink = Netlink::open()?;
    netlink.add_address(device, address, 24)?;
    netlink.set_up(device, mtu)?;
    fcntl(&tun.fd, FcntlArg::F_SETFL(OFlag::O_RDWR))?;
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    let to: SocketAddr = line.trim().parse()?;
    let mut tun = File::from(tun.fd);
    let (mut device, from) = (tun.try_clone()?, socket.try_clone()?);
    std::thread::spawn(move || {
        let mut buffer = vec![0; FRAME];
        while let Ok(len) = from.recv(&mut buffer) {
            // A packet that the kernel does not take is lost.
            let _ = device.write(buffer.get(..len).unwrap_or_default());
        }
    });
    let (to, size) = (SockaddrStorage::from(to), u16::try_from(mtu)?);
    let mut buffer = vec![0; FRAME];
    loop {
        let len = tun.read(&mut buffer)?;
        let parts = [IoSlice::new(buffer.get(..len).unwrap_or_default())];
        let cut = [ControlMessage::UdpGsoSegments(&size)];
        let control = if len > usize::from(size) { cut.as_slice() } else { &[] };
        let _ = sendmsg(socket.as_raw_fd(), &parts, control, MsgFlags::empty(), Some(&to));
    }
}
