//! A job and the open files that it works on, from the store to its helper, through a socket pair whose one end is the
//! helper's standard input. Files, not paths: a name may lead somewhere else a moment later.
//!
//! ```text
//! store ─▶ number of files, 4 bytes ─▶ for each: 1 byte with the descriptor ─▶ the job as JSON ─▶ end
//! ```

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Files of one job: an image has some hundred layers at most.
const MAX_FILES: u32 = 4096;
/// A helper that reads nothing for so long is lost.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sends a job. Blocks until the helper has taken it.
pub(crate) fn send(mut socket: UnixStream, files: &[impl AsFd], job: &str) -> io::Result<()> {
    socket.set_write_timeout(Some(PATIENCE))?;
    let count = u32::try_from(files.len()).ok().filter(|n| *n <= MAX_FILES);
    let count = count.ok_or_else(|| io::Error::other("the image has too many layers"))?;
    socket.write_all(&count.to_le_bytes())?;
    for file in files {
        let fds = [file.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&fds));
        rustix::net::sendmsg(&socket, &[IoSlice::new(b".")], &mut control, SendFlags::NOSIGNAL)?;
    }
    socket.write_all(job.as_bytes())
}

/// Takes a job.
pub(crate) fn receive(mut socket: UnixStream) -> io::Result<(Vec<File>, String)> {
    let mut count = [0; 4];
    socket.read_exact(&mut count)?;
    let count = u32::from_le_bytes(count).min(MAX_FILES);
    let mut files = Vec::new();
    for _ in 0..count {
        let mut byte = [0];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        rustix::net::recvmsg(&socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let before = files.len();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                files.extend(fds.map(File::from));
            }
        }
        if files.len() != before + 1 {
            return Err(io::Error::other("a file of the job did not arrive: too many open files?"));
        }
    }
    let mut job = String::new();
    socket.read_to_string(&mut job)?;
    Ok((files, job))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_arrive_in_their_order_and_are_the_same() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let files: Vec<File> = (0..200)
            .map(|n| {
                let path = dir.path().join("x");
                std::fs::write(&path, n.to_string()).unwrap();
                let file = File::open(&path).unwrap();
                std::fs::remove_file(path).unwrap();
                file
            })
            .collect();
        let sender = std::thread::spawn(move || send(ours, &files, "{\"job\": 1}\n"));
        let (received, job) = receive(theirs).unwrap();
        sender.join().unwrap().unwrap();
        assert_eq!(job, "{\"job\": 1}\n");
        let texts: Vec<String> = received.into_iter().map(|f| io::read_to_string(f).unwrap()).collect();
        assert_eq!(texts, (0..200).map(|n: i32| n.to_string()).collect::<Vec<_>>());
    }
}
