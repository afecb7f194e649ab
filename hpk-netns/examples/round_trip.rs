//! Round trips between two programs, for bench/net: UDP datagrams of 64 bytes, one after the other.
//!
//! ```text
//! round_trip echo PORT               answers for ever
//! round_trip ask ADDRESS:PORT COUNT  prints median and 99th percentile, µs
//! ```
#![allow(clippy::print_stdout, reason = "it prints for who calls it, and ends then")]

use std::error::Error;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["echo", port] => {
            let socket = UdpSocket::bind(("0.0.0.0", port.parse()?))?;
            let mut buffer = [0; 2048];
            loop {
                let (len, from) = socket.recv_from(&mut buffer)?;
                socket.send_to(buffer.get(..len).unwrap_or_default(), from)?;
            }
        }
        ["ask", to, count] => {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(to)?;
            socket.set_read_timeout(Some(Duration::from_secs(1)))?;
            let mut times = Vec::new();
            let mut buffer = [7; 64];
            for _ in 0..count.parse::<u32>()? {
                let began = Instant::now();
                socket.send(&buffer)?;
                socket.recv(&mut buffer)?;
                times.push(began.elapsed());
            }
            times.sort_unstable();
            let at = |n: usize| times.get(n).map_or(f64::NAN, |t| t.as_secs_f64() * 1e6);
            println!("{:.1} {:.1}", at(times.len() / 2), at(times.len() * 99 / 100));
            Ok(())
        }
        _ => Err("usage: round_trip echo PORT | round_trip ask ADDRESS:PORT COUNT".into()),
    }
}
