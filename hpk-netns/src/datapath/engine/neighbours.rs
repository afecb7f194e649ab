//! From pods of this node, by the shortcut: packets as their TUN gave them.

use super::{Engine, TURN};
use crate::datapath::packet;
use crate::datapath::vnet::{self, Header};

impl Engine {
    pub(super) fn take_from_neighbours(&mut self, frame: &mut [u8]) {
        for _ in 0..TURN {
            let Some(len) = self.local.as_ref().and_then(|l| l.receive(frame)) else { break };
            let Some(frame) = frame.get_mut(..len) else { break };
            let Some((mut header, _)) = Header::decode(frame) else { continue };
            let Some(bytes) = frame.get_mut(vnet::LEN..) else { continue };
            let Some(view) = packet::parse(bytes) else { continue };
            let seconds = self.seconds();
            if !self.pipeline.inbound(bytes, &view, seconds) {
                self.counters.dropped += 1;
                continue;
            }
            let Some(view) = packet::parse(bytes) else { continue };
            if !self.vnet {
                packet::complete(bytes, &view);
            } else if packet::make_partial(bytes, &view) {
                header.needs_checksum = true;
                header.csum_start = u16::try_from(view.transport).unwrap_or(0);
                header.csum_offset = if view.protocol == packet::proto::TCP { 16 } else { 6 };
            }
            if let Some(head) = frame.first_chunk_mut::<{ vnet::LEN }>() {
                *head = header.encode();
            }
            self.write_frame(frame);
        }
    }
}
