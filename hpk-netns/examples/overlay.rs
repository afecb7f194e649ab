//! The datapath by itself, for measurements and experiments without a cluster.
//!
//! ```text
//! overlay node <folder> <pod ip> <node ip> [--plaintext]   in the node's network namespace
//!     prints {"ip":…,"endpoint":…,"public_key":…} and takes facts (NetUpdate, JSON lines) on standard input
//! overlay pod <folder> <pod ip> <mtu>                      in the pod's network namespace: TUN eth0, offered to the node
//! ```
#![allow(clippy::print_stdout, reason = "it prints for who calls it, and ends then")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use hpk_api::net::{NetnsRequest, TunAnswer, TunOffer};
use hpk_netns::datapath::{Config, Datapath, Encryption};
use hpk_netns::receive_tun;
use hpk_sys::netdev::{self, Netlink, Route};
use std::io::{BufRead, Read};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::Path;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["node", folder, pod, node, rest @ ..] => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(as_node(
                Path::new(folder),
                pod.parse().unwrap(),
                node.parse().unwrap(),
                rest.contains(&"--plaintext"),
            ));
            runtime.shutdown_background();
        }
        ["pod", folder, ip, mtu] => as_pod(Path::new(folder), ip.parse().unwrap(), mtu.parse().unwrap()),
        _ => panic!("see the source for the arguments"),
    }
}

async fn as_node(folder: &Path, pod: IpAddr, node_ip: IpAddr, plaintext: bool) {
    let (questions, _asked) = tokio::sync::mpsc::channel(64);
    let range = if pod.is_ipv4() { "10.244.0.0/16" } else { "fd00::/8" };
    // No shortcut between these: a folder of each one's own.
    let own = folder.join(pod.to_string());
    std::fs::create_dir_all(&own).unwrap();
    let config = Config {
        addresses: vec![pod],
        pod_range: vec![range.parse().unwrap()],
        service_range: Vec::new(),
        outward: None,
        outward_ipv6: false,
        node_ip,
        folder: &own,
        encryption: Encryption::unless(plaintext),
    };
    let datapath = Datapath::start(config, questions).unwrap();
    let socket = folder.join(format!("{pod}.sock"));
    let _ = std::fs::remove_file(&socket);
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    println!("{}", serde_json::json!({"ip": pod, "endpoint": datapath.endpoint, "public_key": datapath.public_key}));
    let (stream, _) = listener.accept().await.unwrap();
    let (offer, fd) = receive_tun(&stream).await.unwrap();
    datapath.attach(fd, offer.vnet_hdr);
    let ready = serde_json::to_vec(&TunAnswer::Ready(Box::default())).unwrap();
    stream.writable().await.unwrap();
    stream.try_write(&[&ready[..], b"\n"].concat()).unwrap();
    tokio::task::spawn_blocking(move || {
        for line in std::io::stdin().lock().lines() {
            datapath.learn(serde_json::from_str(&line.unwrap()).unwrap());
        }
        std::thread::park();
    })
    .await
    .unwrap();
}

fn as_pod(folder: &Path, ip: IpAddr, mtu: u32) {
    let tun = netdev::create_tun("eth0").unwrap();
    let mut netlink = Netlink::open().unwrap();
    netlink.set_up("lo", 0).unwrap();
    netlink.set_up("eth0", mtu).unwrap();
    netlink.add_address("eth0", ip, if ip.is_ipv4() { 32 } else { 128 }).unwrap();
    let all: IpAddr = if ip.is_ipv4() { [0_u8; 4].into() } else { [0_u8; 16].into() };
    netlink.add_route("eth0", Route { destination: all, prefix: 0, gateway: None, source: None }).unwrap();
    let stream = std::os::unix::net::UnixStream::connect(folder.join(format!("{ip}.sock"))).unwrap();
    let offer = TunOffer { interface: "eth0".into(), mtu, vnet_hdr: tun.vnet_hdr, chain: None };
    let line = [serde_json::to_vec(&NetnsRequest::Tun(Box::new(offer))).unwrap(), b"\n".to_vec()].concat();
    hpk_sys::fdpass::send(&stream, &line, &[tun.fd.as_fd()]).unwrap();
    let mut answer = String::new();
    let mut reader = std::io::BufReader::new(stream);
    reader.read_line(&mut answer).unwrap();
    println!("{}", answer.trim());
    // The device lives as long as this process and the node's both.
    let _ = reader.read_to_end(&mut Vec::new());
}
