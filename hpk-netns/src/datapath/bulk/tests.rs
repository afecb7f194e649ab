use super::*;
use proptest::prelude::*;
use std::collections::HashSet;

fn fresh() -> Option<Secret> {
    crate::datapath::keys::fresh()
}

fn after(seconds: u64) -> Instant {
    static BEGAN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    *BEGAN.get_or_init(Instant::now) + Duration::from_secs(seconds)
}

/// Two ends that have told each other their keys at this time.
fn two(now: Instant) -> (Bulk, Bulk) {
    let (mut a, mut b) = (Bulk::new(1, after(0)), Bulk::new(7, after(0)));
    tell(&mut a, &mut b, now);
    (a, b)
}

/// One speaks, and both answer until there is nothing to be said.
fn tell(a: &mut Bulk, b: &mut Bulk, now: Instant) {
    let mut said = a.offer(now, fresh);
    let (mut from, mut to) = (a, b);
    for _ in 0..5 {
        let Some(offer) = said else { return };
        said = to.hear(&offer, now, fresh).or_else(|| to.offer(now, fresh));
        (from, to) = (to, from);
    }
    panic!("they do not come to an end");
}

fn message(from: &mut Bulk, packet: &[u8]) -> Vec<u8> {
    let mut bytes = [&[0; HEAD][..], packet, &[0; TAG]].concat();
    assert!(from.seal(&mut bytes));
    bytes
}

#[test]
fn what_one_seals_the_other_opens_once_and_nothing_else() {
    let now = after(0);
    let (mut a, mut b) = two(now);
    for packet in [&b""[..], b"x", &[3; 1400]] {
        let sealed = message(&mut a, packet);
        assert_eq!(receiver(&sealed), Some(7 << 8), "the slot is the upper part");
        for changed in [0, 4, 8, sealed.len() - 1] {
            let mut other = sealed.clone();
            other[changed] ^= 1;
            assert_eq!(b.open(&mut other, now), None, "byte {changed}");
        }
        assert_eq!(b.open(&mut sealed[..sealed.len() - 1].to_vec(), now), None);
        assert_eq!(b.open(&mut sealed.clone(), now).as_deref(), Some(packet));
        assert_eq!(b.open(&mut sealed.clone(), now), None, "a second time");
        assert_eq!(a.open(&mut sealed.clone(), now), None, "its own");
    }
    let answer = message(&mut b, b"answer");
    assert_eq!(a.open(&mut answer.clone(), now).as_deref(), Some(&b"answer"[..]));
}

#[test]
fn the_tunnel_is_used_until_a_key_is_told_once_a_second_and_when_it_is_old() {
    let (mut a, mut b) = (Bulk::new(0, after(0)), Bulk::new(0, after(0)));
    assert!(!a.carries(after(0)));
    tell(&mut b, &mut a, after(0));
    let first = [a.carries(after(0)), a.carries(after(0)), a.carries(after(1)), a.carries(after(1))];
    assert_eq!(first, [false, true, false, true]);
    assert!(!a.carries(after(149)) && a.carries(after(149)));
    assert!(!a.carries(after(150)) && !a.carries(after(150)));
}

#[test]
fn who_does_not_answer_is_asked_a_few_times_for_each_key() {
    let mut a = Bulk::new(0, after(0));
    let offers = |a: &mut Bulk, seconds: std::ops::Range<u64>| {
        seconds.filter(|s| a.offer(after(*s), fresh).is_some() | a.offer(after(*s), fresh).is_some()).count()
    };
    assert_eq!(offers(&mut a, 0..120), 5);
    assert_eq!(offers(&mut a, 120..240), 5);
}

#[test]
fn a_key_is_renewed_in_time_and_the_former_one_is_taken_a_while() {
    let (mut a, mut b) = two(after(0));
    let late = message(&mut a, b"late");
    let too_late = message(&mut a, b"too late");
    assert!(b.offer(after(119), fresh).is_none(), "known, and young");
    tell(&mut b, &mut a, after(120));
    let new = message(&mut a, b"new");
    assert_ne!(receiver(&new), receiver(&late));
    assert!(b.open(&mut late.clone(), after(179)).is_some() && b.open(&mut new.clone(), after(179)).is_some());
    assert_eq!(b.open(&mut too_late.clone(), after(180)), None, "whether anything came by the tunnel or not");
    b.offer(after(180), fresh);
    assert_eq!(b.open(&mut too_late.clone(), after(180)), None);
    // No offer of the other comes through any more: the present key grows old just so.
    let newer = message(&mut a, b"newer");
    let much_newer = message(&mut a, b"much newer");
    assert!(b.open(&mut newer.clone(), after(120 + 179)).is_some());
    assert_eq!(b.open(&mut much_newer.clone(), after(120 + 180)), None);
}

#[test]
fn a_key_is_told_while_it_is_young_and_made_anew_for_who_asks_late() {
    let (mut a, _) = two(after(0));
    for (late, same) in [(24, true), (25, false), (119, false)] {
        let before = a.current.as_ref().map(|key| key.index);
        let born = a.current.as_ref().unwrap().born;
        // Who has lost all that he knew asks.
        let mut b = Bulk::new(7, after(0));
        let now = born + Duration::from_secs(late);
        tell(&mut b, &mut a, now);
        assert_eq!(a.current.as_ref().map(|key| key.index) == before, same, "{late} s old");
        let last = message(&mut b, b"at the end");
        assert!(a.open(&mut last.clone(), now + USED_FOR).is_some());
    }
}

#[test]
fn an_end_that_lost_its_keys_is_understood_again() {
    let (mut a, _) = two(after(0));
    let mut b = Bulk::new(7, after(0));
    assert_eq!(b.open(&mut message(&mut a, b"lost"), after(0)), None);
    tell(&mut b, &mut a, after(1));
    assert!(b.open(&mut message(&mut a, b"here"), after(1)).is_some());
    assert!(a.open(&mut message(&mut b, b"there"), after(1)).is_some());
}

/// Of a message's head.
fn number(message: &[u8]) -> u64 {
    u64::from_le_bytes(*message[8..].first_chunk().unwrap())
}

#[test]
fn who_is_told_a_key_again_goes_on_with_higher_numbers() {
    let (mut a, mut b) = two(after(0));
    let last = (0..1000).map(|_| number(&message(&mut a, b"x"))).max().unwrap();
    let mut a = Bulk::new(1, after(0));
    tell(&mut a, &mut b, after(0) + Duration::from_micros(50));
    let again = message(&mut a, b"x");
    assert!(number(&again) > last);
    assert!(b.open(&mut again.clone(), after(1)).is_some());
    assert_eq!(first_number(Duration::from_hours(24 * 300)), None);
}

#[test]
fn an_offer_that_was_held_back_brings_no_key_back() {
    let (mut a, mut b) = (Bulk::new(1, after(0)), Bulk::new(7, after(0)));
    let [first, again] = [0, 1].map(|s| a.offer(after(s), fresh).unwrap());
    b.hear(&first, after(1), fresh);
    message(&mut b, b"number 0");
    tell(&mut a, &mut b, after(120));
    let index = receiver(&message(&mut b, b"number 0 of another key")).unwrap();
    for held in [again, first] {
        b.hear(&held, after(121), fresh);
        let next = message(&mut b, b"number 1");
        assert_eq!(receiver(&next), Some(index));
        assert!(a.open(&mut next.clone(), after(121)).is_some());
    }
}

/// Those of docs/spec-bulk-cipher.md, made by another implementation of AES-GCM.
#[test]
fn vectors() {
    const MESSAGE: &str =
        "050000000107000000001000000000009c88f31f6e7efe81db261fd21785f379be78079ab1c19083f21c1e7c5be2bb5f";
    const EMPTY: &str = "05000000010700000100100000000000ea11180a4474ef3a2efba9beec3b14c0";
    const OFFER: &str = "450000380000000000fd0000000000000000000068706b01002f6859000000000107\
                         0000ffffffff000102030405060708090a0b0c0d0e0f";
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let secret: Secret = std::array::from_fn(|n| u8::try_from(n).unwrap());
    // The second key of the peer in slot 7, one and a half seconds after the datapath began.
    let mut b = Bulk { made: 1, ..Bulk::new(7, after(0)) };
    let made_at = after(1) + Duration::from_millis(500);
    let offer = b.offer(made_at, || Some(secret)).unwrap();
    assert_eq!(hex(&offer), OFFER);
    // Taken up one second after the other's datapath began.
    let mut a = Bulk::new(1, after(1));
    a.hear(&offer, after(2), fresh);
    let first = 1_000_000 << 20;
    assert_eq!(a.outbound.as_ref().map(|key| (key.index, key.next)), Some((0x701, first)));
    a.outbound.as_mut().unwrap().next = 1 << 20;
    let (message, empty) = (message(&mut a, b"the first packet"), message(&mut a, b""));
    assert_eq!((hex(&message).as_str(), hex(&empty).as_str()), (MESSAGE, EMPTY));
    assert_eq!(b.open(&mut message.clone(), after(3)).as_deref(), Some(&b"the first packet"[..]));
    assert_eq!(b.open(&mut empty.clone(), after(3)).as_deref(), Some(&b""[..]));
}

#[test]
fn offers_are_ip_packets_that_nobody_else_could_have_sent() {
    let offer = Bulk::new(0, after(0)).offer(after(0), fresh).unwrap();
    let view = crate::datapath::packet::parse(&offer).unwrap();
    assert_eq!((view.total, view.src.is_unspecified()), (offer.len(), true));
}

proptest! {
    #[test]
    fn no_packet_is_mistaken_for_an_offer(mut packet in proptest::collection::vec(any::<u8>(), 0..80)) {
        let mut a = Bulk::new(0, after(0));
        if let Some(first) = packet.first_mut() {
            *first = 0x45;
        }
        prop_assert!(a.hear(&packet, after(0), fresh).is_none());
        prop_assert!(!a.carries(after(0)));
        prop_assert_eq!(a.open(&mut packet, after(0)), None);
    }

    /// Offers get lost, the tunnel is silent for a while, and a packet is under way for up to four seconds: whatever is
    /// sent with a key is taken, and nothing that is older than a key may be.
    #[test]
    fn whatever_is_sent_with_a_key_is_taken(
        steps in proptest::collection::vec((0..30_u64, any::<bool>(), 0..4_u8, 0..5_u64), 1..200),
    ) {
        let (mut a, mut b) = (Bulk::new(1, after(0)), Bulk::new(7, after(0)));
        let mut seconds = 0;
        for (wait, swap, heard, way) in steps {
            seconds += wait;
            let now = after(seconds);
            let (from, to) = if swap { (&mut b, &mut a) } else { (&mut a, &mut b) };
            // How many of the words between them arrive.
            let mut said = from.offer(now, fresh);
            for turn in 0..heard {
                let Some(offer) = said else { break };
                let hears = if turn % 2 == 0 { &mut *to } else { &mut *from };
                said = hears.hear(&offer, now, fresh);
            }
            if from.carries(now) {
                let sealed = message(from, b"x");
                let arrives = after(seconds + way);
                prop_assert!(to.open(&mut sealed.clone(), arrives).is_some(), "after {} s", seconds);
                prop_assert!(to.open(&mut message(from, b"y"), now + KEPT_FOR).is_none());
            }
        }
    }

    #[test]
    fn each_number_is_new_once(numbers in proptest::collection::vec(prop_oneof![0..300_u64, 0..5000_u64, any::<u64>()], 0..400)) {
        let (mut window, mut came, mut highest) = (Window::default(), HashSet::new(), 0);
        for n in numbers {
            let expected = n < u64::MAX && !came.contains(&n) && n.saturating_add(Window::SPAN) > highest;
            prop_assert_eq!(window.is_new(n), expected, "{} after {}", n, highest);
            if expected {
                window.mark(n);
                came.insert(n);
                highest = highest.max(n);
            }
        }
    }
}
