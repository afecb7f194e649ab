//! Who gives sockets of its own network to processes that are in another ([`hpk_api::crossing`]).

use super::plain;
use crate::fdpass;
use hpk_api::crossing::{MAX_LINE, SocketAnswer, SocketAsk};
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

/// How long a client may take from connecting to its request, and to take the answer.
const LIMIT: Duration = Duration::from_secs(1);

/// Serves one client after the other, until the listener fails. Sockets are of the calling thread's network.
pub fn serve(listener: &UnixListener) {
    for client in listener.incoming() {
        match client {
            // A client that goes in between hears nothing.
            Ok(client) => drop(answer(&client)),
            // Out of descriptors, as a rule: some come back.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// One request, of our own user.
fn answer(client: &UnixStream) -> io::Result<()> {
    if crate::peer::of(client)?.uid != nix::unistd::getuid().as_raw() {
        return Ok(());
    }
    client.set_read_timeout(Some(LIMIT))?;
    client.set_write_timeout(Some(LIMIT))?;
    let limit = u64::try_from(MAX_LINE).unwrap_or(u64::MAX);
    let mut line = String::new();
    BufReader::with_capacity(512, client).take(limit).read_line(&mut line)?;
    let made = serde_json::from_str::<SocketAsk>(&line).map_err(io::Error::from).and_then(plain);
    let (answer, socket) = match made {
        Ok(socket) => (SocketAnswer::Ok(()), Some(socket)),
        Err(error) => (SocketAnswer::Failed(error.to_string()), None),
    };
    let mut text = serde_json::to_vec(&answer)?;
    text.push(b'\n');
    let fds: Vec<_> = socket.iter().map(AsFd::as_fd).collect();
    fdpass::send(client, &text, &fds)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{Far, Sockets};
    use super::*;
    use crate::crossing::twin;

    #[test]
    fn sockets_come_over_a_socket() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("crossing.sock");
        let mut far = Far::new(path.clone());
        assert_eq!(far.socket(SocketAsk::default()).unwrap_err().kind(), io::ErrorKind::NotFound);
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || serve(&listener));
        for (ipv6, datagram) in [(false, false), (true, true), (false, true), (true, false)] {
            let socket = far.socket(SocketAsk { ipv6, datagram }).unwrap();
            assert_eq!(twin::is_ipv6(socket.as_fd()), ipv6);
            let facts = twin::look(socket.as_fd(), |_| None).unwrap();
            assert!(facts.internet && facts.datagram == datagram && !facts.connected);
        }
    }
}
