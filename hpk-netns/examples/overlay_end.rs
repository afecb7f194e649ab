//! One end of the overlay without a pod around it, for bench/net: the datapath as `hpk-netns run` has it, with a TUN in
//! another network namespace, and facts from standard input in place of the link.
//!
//! ```text
//! overlay_end NETNS DEVICE ADDRESS NODE_IP MTU encrypted|wireguard|plain
//! ```
//! Runs in the node's network namespace. Prints `<endpoint> <public key or ->` when packets can flow; then takes each line
//! of standard input as a [`NetUpdate`] in JSON, and ends with it. Questions are answered by nobody: tell peers first.
#![allow(clippy::print_stdout, reason = "it prints for who calls it, and ends then")]

use hpk_api::link::NetUpdate;
use hpk_netns::datapath::{Config, Datapath, Encryption};
use hpk_sys::netdev::{Netlink, Tun, create_tun};
use std::error::Error;
use std::fs::File;
use std::io::BufRead;
use std::net::IpAddr;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [netns, device, address, node_ip, mtu, mode] = args.as_slice() else {
        return Err("usage: overlay_end NETNS DEVICE ADDRESS NODE_IP MTU encrypted|wireguard|plain".into());
    };
    let address: IpAddr = address.parse()?;
    let tun = in_namespace(netns.clone(), device.clone(), address, mtu.parse()?)?;
    let folder = std::env::temp_dir().join(format!("overlay-end-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let (ask, _questions) = tokio::sync::mpsc::channel(16);
    let datapath = Datapath::start(
        Config {
            addresses: vec![address],
            pod_range: ["10.0.0.0/8", "fd00::/8"].iter().filter_map(|c| c.parse().ok()).collect(),
            service_range: ["10.96.0.0/16"].iter().filter_map(|c| c.parse().ok()).collect(),
            outward: None,
            outward_ipv6: false,
            node_ip: node_ip.parse()?,
            folder: &folder,
            encryption: match mode.as_str() {
                "plain" => Encryption::Off,
                "wireguard" => Encryption::WireGuard,
                _ => Encryption::Fastest,
            },
        },
        ask,
    )?;
    datapath.attach(tun.fd, tun.vnet_hdr);
    println!("{} {}", datapath.endpoint, datapath.public_key.as_deref().unwrap_or("-"));
    for line in std::io::stdin().lock().lines() {
        datapath.learn(serde_json::from_str::<NetUpdate>(&line?)?);
    }
    Ok(())
}

/// The device is made by a thread that goes to the namespace; descriptors are of no namespace.
fn in_namespace(netns: String, device: String, address: IpAddr, mtu: u32) -> Result<Tun, Box<dyn Error>> {
    let made = std::thread::spawn(move || {
        let make = || -> Result<Tun, Box<dyn Error>> {
            nix::sched::setns(File::open(&netns)?, nix::sched::CloneFlags::CLONE_NEWNET)?;
            let tun = create_tun(&device)?;
            let mut netlink = Netlink::open()?;
            netlink.add_address(&device, address, if address.is_ipv4() { 24 } else { 64 })?;
            netlink.set_up(&device, mtu)?;
            Ok(tun)
        };
        make().map_err(|e| e.to_string())
    });
    Ok(made.join().map_err(|_| "the thread in the namespace died")??)
}
