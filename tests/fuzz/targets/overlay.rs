//! Packets of the overlay, as pods and peers send them: nothing panics, what is changed stays correct, and pieces make the whole.
#![no_main]

#[allow(dead_code)]
#[path = "../../../hpk-netns/src/datapath"]
mod datapath {
    pub mod checksum;
    pub mod coalesce;
    pub mod packet;
    pub mod refuse;
    pub mod segment;
    pub mod vnet;
}

use datapath::{coalesce::Coalescer, packet, refuse, segment::Segments, vnet};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Some((header, rest)) = vnet::Header::decode(bytes)
        && let Some(view) = packet::parse(rest)
    {
        let mut segments = Segments::new(rest, &view, &header);
        let mut payload = 0;
        let mut out = vec![0; 65_536];
        while let Some(len) = segments.next_len() {
            let piece = out.get_mut(..len).expect("a piece is no longer than a packet can be");
            segments.write_next(piece);
            let view = packet::parse(piece).expect("a piece is a packet");
            payload += view.total - view.payload;
        }
        assert_eq!(payload, view.total - view.payload, "all of it, and nothing twice");
    }
    let Some(view) = packet::parse(bytes) else { return };
    assert!(view.transport <= view.payload && view.payload <= view.total && view.total <= bytes.len());
    for answer in [refuse::refuse(bytes, &view), refuse::no_way(bytes, &view)].into_iter().flatten() {
        assert!(packet::parse(&answer).is_some(), "an answer is a packet");
    }
    let mut changed = bytes.to_vec();
    let back = |view: &packet::View| (view.destination(), view.source());
    let (source, destination) = back(&view);
    packet::rewrite(&mut changed, &view, source, destination, false);
    let again = packet::parse(&changed).expect("still a packet");
    assert_eq!((again.src, again.dst), (view.dst, view.src));
    let mut whole = Coalescer::default();
    whole.push(bytes, &view);
    whole.push(bytes, &view);
    whole.finish(true, |_, _| true);
    let mut packet = bytes.to_vec();
    refuse::fix_icmp(&mut packet, &view);
    packet::complete(&mut packet, &view);
    assert!(packet::parse(&packet).is_some());
});
