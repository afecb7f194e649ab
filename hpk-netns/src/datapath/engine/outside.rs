//! To and from what is outside of the cluster.

use super::{Engine, TURN};
use crate::datapath::outward::{self, Offered, Way};
use crate::datapath::packet;
use crate::datapath::refuse;
use crate::datapath::segment::Segments;
use crate::datapath::vnet::{self, Header};
use std::net::IpAddr;

impl Engine {
    /// A frame for an address that is no pod's.
    pub(super) fn out_of_cluster(&mut self, ip: IpAddr, frame: &[u8]) {
        let way = self.ask_outward.is_some() && (ip.is_ipv4() || self.outward_ipv6);
        if !way || self.service_range.iter().any(|range| range.contains(&ip)) {
            return self.no_way(frame);
        }
        match self.outward.offer(frame, self.now) {
            Offered::Send => self.send_outward(frame),
            Offered::Wait { ask: true } => {
                if let Some(ask) = &self.ask_outward {
                    // Full: asked already.
                    let _ = ask.try_send(());
                }
            }
            Offered::Wait { ask: false } => {}
            Offered::Refuse => self.no_way(frame),
        }
    }

    fn no_way(&mut self, frame: &[u8]) {
        self.counters.refused += 1;
        let Some(bytes) = frame.get(vnet::LEN..) else { return };
        let Some(view) = packet::parse(bytes) else { return };
        if let Some(answer) = refuse::no_way(bytes, &view) {
            let mut frame = vec![0; vnet::LEN];
            frame.extend_from_slice(&answer);
            self.write_frame(&frame);
        }
    }

    pub(super) fn open_outward(&mut self, way: Option<Way>) {
        for frame in self.outward.answered(way, self.now) {
            match self.outward {
                outward::State::Open(_) => self.send_outward(&frame),
                _ => self.no_way(&frame),
            }
        }
    }

    /// Cut and with checksums: behind the stack are others than datapaths.
    fn send_outward(&mut self, frame: &[u8]) {
        let Some((header, bytes)) = Header::decode(frame) else { return };
        let Some(view) = packet::parse(bytes) else { return };
        let Some(link) = self.outward.link() else { return };
        let mut piece = std::mem::take(&mut self.piece);
        let mut segments = Segments::new(bytes, &view, &header);
        let mut alive = true;
        while let Some(len) = segments.next_len().filter(|_| alive) {
            piece.resize(len, 0);
            segments.write_next(&mut piece);
            if let Some(view) = packet::parse(&piece) {
                packet::complete(&mut piece, &view);
            }
            alive = link.send(&piece);
        }
        self.piece = piece;
        if !alive {
            self.outward = outward::State::shut(self.now);
        }
    }

    pub(super) fn take_from_outside(&mut self, plain: &mut [u8]) {
        for _ in 0..TURN {
            let Some(link) = self.outward.link() else { return };
            let alive = link.flush() && link.receive();
            if !alive {
                self.outward = outward::State::shut(self.now);
                break;
            }
            let mut any = false;
            while let Some(len) = self.outward.link().and_then(|link| link.next(plain)) {
                any = true;
                self.deliver(plain.get(..len).unwrap_or_default());
            }
            if !any {
                break;
            }
        }
        self.flush_tun();
    }
}
