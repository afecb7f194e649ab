//! The way out of the cluster: packets as Ethernet frames, to and from a user-mode network stack on the node (passt,
//! slirp4netns), which speaks to the world with ordinary sockets of our user.
//!
//! ```text
//!  Idle ── first packet: asked for ──▶ Asked (packets wait) ──▶ Open ── it ended ─▶ Shut (refused) ── a while ─▶ Idle
//!                                        └── there is none ───────────────────────▶ Shut
//! ```
//! Nothing is started for a pod that never speaks to the outside.

use nix::errno::Errno;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Frames that wait for the stack's start.
const WAITING: usize = 64;
/// Bytes that wait for a stack that is slow; beyond, packets are dropped, as by any full queue.
const BACKLOG: usize = 1 << 20;
/// How long nothing is asked for after there was none, or it ended.
const SHUT: Duration = Duration::from_secs(5);
/// Largest frame.
const FRAME: usize = 65_536 + ETHERNET;
/// Length of an Ethernet header.
const ETHERNET: usize = 14;
/// Our address and the stack's: locally administered, known to the two of us alone.
const OWN: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
const THEIRS: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const ARP: [u8; 2] = [0x08, 0x06];

/// How frames follow each other on the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Each after its length, four bytes in network order, on a stream (passt).
    Stream,
    /// Each a datagram (slirp4netns).
    Datagram,
}

/// A running stack.
#[derive(Debug)]
pub struct Way {
    pub socket: OwnedFd,
    /// How it frames.
    pub framing: Framing,
}

/// Where the way stands.
#[derive(Debug, Default)]
pub(super) enum State {
    #[default]
    Idle,
    Asked {
        waiting: Vec<Vec<u8>>,
    },
    Open(Link),
    Shut {
        until: Instant,
    },
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offered {
    /// It goes now: [`State::Open`].
    Send,
    /// It waits; `ask`: for a stack that is to be started.
    Wait { ask: bool },
    /// There is no way.
    Refuse,
}

impl State {
    /// A packet (with its virtio header) for the outside.
    pub(super) fn offer(&mut self, frame: &[u8], now: Instant) -> Offered {
        if matches!(self, Self::Shut { until } if now >= *until) {
            *self = Self::Idle;
        }
        match self {
            Self::Open(_) => Offered::Send,
            Self::Shut { .. } => Offered::Refuse,
            Self::Idle => {
                *self = Self::Asked { waiting: vec![frame.to_vec()] };
                Offered::Wait { ask: true }
            }
            Self::Asked { waiting } => {
                if waiting.len() < WAITING {
                    waiting.push(frame.to_vec());
                }
                Offered::Wait { ask: false }
            }
        }
    }

    /// The answer to what was asked: what waited comes back.
    pub(super) fn answered(&mut self, way: Option<Way>, now: Instant) -> Vec<Vec<u8>> {
        let next = match way {
            Some(way) => Self::Open(Link::new(way)),
            None => Self::shut(now),
        };
        match std::mem::replace(self, next) {
            Self::Asked { waiting } => waiting,
            _ => Vec::new(),
        }
    }

    pub(super) fn shut(now: Instant) -> Self {
        Self::Shut { until: now + SHUT }
    }

    pub(super) fn link(&mut self) -> Option<&mut Link> {
        match self {
            Self::Open(link) => Some(link),
            _ => None,
        }
    }
}

/// A socket with a stack behind it.
#[derive(Debug)]
pub(super) struct Link {
    socket: OwnedFd,
    framing: Framing,
    buffer: Box<[u8]>,
    /// What was received, and how much of it is taken.
    input: Vec<u8>,
    taken: usize,
    /// What a stream did not take yet.
    output: Vec<u8>,
}

impl Link {
    fn new(way: Way) -> Self {
        let buffer = vec![0; FRAME].into();
        Self { socket: way.socket, framing: way.framing, buffer, input: Vec::new(), taken: 0, output: Vec::new() }
    }

    /// Whether it waits for the socket to take more.
    pub(super) fn is_full(&self) -> bool {
        !self.output.is_empty()
    }

    /// A packet, complete. False: the stack is gone.
    pub(super) fn send(&mut self, packet: &[u8]) -> bool {
        let kind = if packet.first().is_some_and(|b| b >> 4 == 4) { IPV4 } else { IPV6 };
        self.frame(kind, packet)
    }

    fn frame(&mut self, kind: [u8; 2], payload: &[u8]) -> bool {
        if self.framing == Framing::Datagram {
            self.output.clear();
        } else if self.output.len() > BACKLOG {
            return true;
        } else {
            let length = u32::try_from(payload.len() + ETHERNET).unwrap_or(u32::MAX);
            self.output.extend(length.to_be_bytes());
        }
        self.output.extend(THEIRS);
        self.output.extend(OWN);
        self.output.extend(kind);
        self.output.extend_from_slice(payload);
        self.flush()
    }

    /// Sends what waits. False: the stack is gone.
    pub(super) fn flush(&mut self) -> bool {
        let mut sent = 0;
        let alive = loop {
            let Some(rest) = self.output.get(sent..).filter(|r| !r.is_empty()) else { break true };
            match nix::unistd::write(&self.socket, rest) {
                Ok(n) => sent += n,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN | Errno::ENOBUFS) => {
                    if self.framing == Framing::Datagram {
                        sent = self.output.len();
                    }
                    break true;
                }
                Err(_) => break false,
            }
        };
        self.output.drain(..sent);
        alive
    }

    /// Reads once. False: the stack is gone.
    pub(super) fn receive(&mut self) -> bool {
        self.input.drain(..self.taken.min(self.input.len()));
        self.taken = 0;
        let read = nix::unistd::read(&self.socket, &mut self.buffer);
        self.input.extend_from_slice(self.buffer.get(..read.unwrap_or(0)).unwrap_or_default());
        !matches!(read, Ok(0) | Err(Errno::ECONNRESET | Errno::EPIPE))
    }

    /// The next packet of what was read, into `out`: its length.
    pub(super) fn next(&mut self, out: &mut [u8]) -> Option<usize> {
        loop {
            let input = self.input.get(self.taken..).unwrap_or_default();
            let (from, to) = match self.framing {
                Framing::Datagram => (0, input.len()),
                Framing::Stream => {
                    let length = u32::from_be_bytes(*input.first_chunk::<4>()?);
                    (4, 4_usize.checked_add(usize::try_from(length).ok()?)?)
                }
            };
            let Some(frame) = input.get(from..to).filter(|f| !f.is_empty()) else {
                if to > FRAME + 4 {
                    // No stack says this: its stream is not to be understood any more.
                    self.input.clear();
                }
                return None;
            };
            let (kind, payload) = (frame.get(12..ETHERNET), frame.get(ETHERNET..).unwrap_or_default());
            let answer = if kind == Some(&ARP) { arp_reply(payload) } else { None };
            let ip = kind.is_some_and(|k| k == IPV4 || k == IPV6);
            let found = if ip { copy(payload, out) } else { None };
            self.taken += to;
            if let Some(answer) = answer {
                self.frame(ARP, &answer);
            }
            if found.is_some() {
                return found;
            }
        }
    }
}

fn copy(from: &[u8], to: &mut [u8]) -> Option<usize> {
    to.get_mut(..from.len())?.copy_from_slice(from);
    Some(from.len())
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// RFC 826: whoever is asked for, it is us.
fn arp_reply(request: &[u8]) -> Option<Vec<u8>> {
    let &[_, _, _, _, _, _, 0, 1, ..] = request else { return None };
    let (sender, target) = (request.get(8..18)?, request.get(24..28)?);
    let mut reply = request.get(..6)?.to_vec();
    reply.extend([0, 2]);
    reply.extend(OWN);
    reply.extend_from_slice(target);
    reply.extend_from_slice(sender);
    Some(reply)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixDatagram, UnixStream};

    /// Enough of an IPv4 packet to be told from IPv6.
    const PACKET: [u8; 20] = [0x45; 20];

    #[test]
    fn packets_wait_for_the_stack_and_are_refused_without() {
        let now = Instant::now();
        let mut state = State::default();
        assert_eq!(state.offer(b"one", now), Offered::Wait { ask: true });
        assert_eq!(state.offer(b"two", now), Offered::Wait { ask: false });
        assert_eq!(state.answered(None, now).len(), 2);
        assert_eq!(state.offer(b"three", now), Offered::Refuse);
        assert_eq!(state.offer(b"four", now + SHUT), Offered::Wait { ask: true }, "it may have come meanwhile");
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let way = Way { socket: ours.into(), framing: Framing::Stream };
        assert_eq!(state.answered(Some(way), now).len(), 1);
        assert_eq!(state.offer(b"five", now), Offered::Send);
    }

    #[test]
    fn a_stream_has_lengths_and_any_cuts() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut link = Link::new(Way { socket: ours.into(), framing: Framing::Stream });
        assert!(link.send(&PACKET));
        let mut got = [0; 4 + ETHERNET + 20];
        theirs.read_exact(&mut got).unwrap();
        assert_eq!((&got[..4], &got[16..18], &got[18..]), (&[0, 0, 0, 34][..], &IPV4[..], &PACKET[..]));

        let mut stream = Vec::new();
        for kind in [IPV4, [0x12, 0x34], IPV6] {
            stream.extend(34_u32.to_be_bytes());
            stream.extend([0; 12]);
            stream.extend(kind);
            stream.extend(PACKET);
        }
        let mut out = [0; 100];
        let mut found = 0;
        for piece in stream.chunks(7) {
            theirs.write_all(piece).unwrap();
            assert!(link.receive());
            while let Some(len) = link.next(&mut out) {
                assert_eq!(out[..len], PACKET);
                found += 1;
            }
        }
        assert_eq!(found, 2, "what is not IP is left out");
        drop(theirs);
        assert!(!link.receive());
    }

    #[test]
    fn a_slow_stack_gets_whole_frames_or_none() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut link = Link::new(Way { socket: ours.into(), framing: Framing::Stream });
        let packet = vec![0x45; 60_000];
        for _ in 0..100 {
            assert!(link.send(&packet));
        }
        assert!(link.is_full());
        let mut frames = 0;
        theirs.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let mut head = [0; 4];
        while theirs.read_exact(&mut head).is_ok() {
            assert_eq!(u32::from_be_bytes(head), 60_014);
            let mut frame = vec![0; 60_014];
            for part in frame.chunks_mut(4096) {
                assert!(link.flush());
                theirs.read_exact(part).unwrap();
            }
            frames += 1;
            assert!(link.flush());
        }
        assert!(frames > 10 && frames < 100, "{frames}");
    }

    #[test]
    fn datagrams_and_who_we_are() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let mut link = Link::new(Way { socket: ours.into(), framing: Framing::Datagram });
        assert!(link.send(&PACKET));
        let mut got = [0; 100];
        assert_eq!(theirs.recv(&mut got).unwrap(), 34);

        let mut ask = vec![0xff; 6];
        ask.extend([9; 6]);
        ask.extend(ARP);
        ask.extend([0, 1, 8, 0, 6, 4, 0, 1, 9, 9, 9, 9, 9, 9, 10, 0, 2, 2, 0, 0, 0, 0, 0, 0, 10, 244, 1, 5]);
        theirs.send(&ask).unwrap();
        assert!(link.receive());
        assert_eq!(link.next(&mut got), None);
        let len = theirs.recv(&mut got).unwrap();
        assert_eq!(got[20..22], [0, 2]);
        assert_eq!((&got[22..28], &got[28..32], &got[38..len]), (&OWN[..], &[10, 244, 1, 5][..], &[10, 0, 2, 2][..]));
    }
}
