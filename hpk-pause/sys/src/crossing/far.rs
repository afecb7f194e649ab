//! Sockets of another network, from whoever is in it ([`super::serve`]).

use super::Sockets;
use crate::fdpass;
use hpk_api::crossing::{MAX_LINE, SocketAnswer, SocketAsk};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

/// How long an answer may take. The first one waits until the pods' network stands.
const LIMIT: Duration = Duration::from_secs(15);

/// A socket file where sockets are given out.
#[derive(Debug)]
pub struct Far {
    path: PathBuf,
}

impl Far {
    /// Nothing is dialled yet.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }
}

impl Sockets for Far {
    fn socket(&mut self, ask: SocketAsk) -> io::Result<OwnedFd> {
        let mut stream = UnixStream::connect(&self.path)?;
        stream.set_read_timeout(Some(LIMIT))?;
        let mut line = serde_json::to_vec(&ask)?;
        line.push(b'\n');
        stream.write_all(&line)?;
        let (mut text, mut descriptor) = (Vec::new(), None);
        let mut buffer = [0; 512];
        while !text.ends_with(b"\n") {
            let (n, fds) = fdpass::receive(&stream, &mut buffer)?;
            if n == 0 || text.len() > MAX_LINE {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            descriptor = fds.into_iter().next().or(descriptor);
            text.extend_from_slice(buffer.get(..n).unwrap_or_default());
        }
        match (serde_json::from_slice(&text)?, descriptor) {
            (SocketAnswer::Ok(()), Some(fd)) => Ok(fd),
            (SocketAnswer::Ok(()), None) => Err(io::Error::other("the socket did not come with its answer")),
            (SocketAnswer::Failed(why), _) => Err(io::Error::other(why)),
        }
    }
}
