//! From and to the pod: its TUN.

use super::{Engine, TURN};
use crate::datapath::packet::{self, View};
use crate::datapath::peers::Lookup;
use crate::datapath::pipeline::Outbound;
use crate::datapath::refuse;
use crate::datapath::vnet::{self, Header};
use hpk_api::link::NetQuestion;
use nix::errno::Errno;

impl Engine {
    pub(super) fn take_from_pod(&mut self, frame: &mut [u8], scratch: &mut [u8]) -> bool {
        for _ in 0..TURN {
            let from = if self.vnet { 0 } else { vnet::LEN };
            let (Some(tun), Some(buffer)) = (&self.tun, frame.get_mut(from..)) else { return true };
            let len = match nix::unistd::read(tun, buffer) {
                Ok(0) => return false,
                Ok(n) => from + n,
                Err(Errno::EAGAIN | Errno::EINTR) => break,
                // EBADFD: the device was removed with its namespace.
                Err(_) => return false,
            };
            if from > 0
                && let Some(head) = frame.get_mut(..vnet::LEN)
            {
                head.fill(0);
            }
            if let Some(frame) = frame.get_mut(..len) {
                self.outbound(frame, scratch);
            }
        }
        self.flush();
        self.flush_tun();
        true
    }

    fn outbound(&mut self, frame: &mut [u8], scratch: &mut [u8]) {
        let Some((header, _)) = Header::decode(frame) else { return };
        let Some(bytes) = frame.get_mut(vnet::LEN..) else { return };
        let Some(view) = packet::parse(bytes) else { return };
        let seconds = self.seconds();
        match self.pipeline.outbound(bytes, &view, header.needs_checksum, seconds) {
            Outbound::Drop => self.counters.dropped += 1,
            Outbound::Refuse => self.answer_refusal(bytes, &view),
            // Straight back, uncut as it came: addresses are changed, the virtio header still fits.
            Outbound::Loop => self.write_frame(frame),
            Outbound::Send(ip) => {
                if !self.pod_range.iter().any(|range| range.contains(&ip)) {
                    return self.out_of_cluster(ip, frame);
                }
                match self.peers.lookup(ip, frame, self.now) {
                    Lookup::Peer(index) => self.send_frame(index, frame, scratch),
                    Lookup::Wait { ask: true } => self.ask(NetQuestion::Peer { ip }),
                    Lookup::Wait { ask: false } | Lookup::Absent => {}
                }
            }
        }
    }

    fn answer_refusal(&mut self, bytes: &[u8], view: &View) {
        self.counters.refused += 1;
        if let Some(answer) = refuse::refuse(bytes, view) {
            let mut frame = vec![0; vnet::LEN];
            frame.extend_from_slice(&answer);
            self.write_frame(&frame);
        }
    }

    /// A packet that others vouch for, to the pod if it may.
    pub(super) fn deliver(&mut self, packet: &[u8]) {
        if let Some(view) = packet::parse(packet) {
            self.gather(packet, &view);
        }
    }

    pub(super) fn gather(&mut self, packet: &[u8], view: &View) {
        if !self.coalescer.push(packet, view) {
            self.flush_tun();
            self.coalescer.push(packet, view);
        }
        if !self.vnet {
            self.flush_tun();
        }
    }

    pub(super) fn flush_tun(&mut self) {
        let seconds = self.seconds();
        let (pipeline, counters) = (&mut self.pipeline, &mut self.counters);
        let admit = |packet: &mut [u8], view: &View| {
            let admitted = pipeline.inbound(packet, view, seconds);
            counters.dropped += u64::from(!admitted);
            admitted
        };
        if let (Some(bytes), Some(tun)) = (self.coalescer.finish(self.vnet, admit), &self.tun) {
            // A full queue inside the pod drops, as any.
            let _ = nix::unistd::write(tun, bytes);
        }
    }

    /// A frame that needs no joining: as it is.
    pub(super) fn write_frame(&mut self, frame: &[u8]) {
        let from = if self.vnet { 0 } else { vnet::LEN };
        if let (Some(tun), Some(bytes)) = (&self.tun, frame.get(from..)) {
            let _ = nix::unistd::write(tun, bytes);
        }
    }
}
