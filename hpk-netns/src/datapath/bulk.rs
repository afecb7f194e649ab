//! A faster cipher for packets between two pods, beside their WireGuard tunnel. No I/O; time and new keys are given.
//!
//! WireGuard knows one cipher, ChaCha20-Poly1305. Where both processors have instructions for AES, AES-128-GCM takes a
//! third of its time. So each side makes keys to be sent to with, and tells them to the other through the tunnel, which
//! vouches for both ends and keeps them secret:
//!
//! ```text
//! no key ── a message came by the tunnel ─▶ offered (again each second, a few times)
//! offered ── the other's offer says that it has the key ─▶ known
//! offered, known ── RENEW_AFTER ─▶ offered, with a new key; the former one is taken until KEPT_FOR
//! ```
//! Who makes a key decides how old it gets: he takes nothing with it from [`KEPT_FOR`] on, and tells it to nobody once it is
//! [`TOLD_FOR`] old, so that whoever was told it, and sends with it for [`USED_FOR`], has stopped before. Asked for a key
//! later, he makes a new one.
//!
//! A number must never be used twice with a key. So a key carries the time when it was made, and none is taken up that is not
//! newer than all before: an offer that somebody on the way held back brings nothing back. And numbers begin with the time
//! when a key was taken up: who lost what he knew of the other and is told the same key again goes on with higher ones.
//!
//! A side sends with the newest key that it was told, for [`USED_FOR`], and through the tunnel while it has none: the other
//! has no such instructions, or is of another version. Once a second a packet takes the tunnel all the same: WireGuard's
//! timers go by what it carries, so its handshakes, and with them what is known of a dead peer, stay as they are.
//!
//! Messages are laid out as WireGuard's data messages and told from them by their type. Why: docs/adr/0013. To the byte, with
//! vectors: docs/spec-bulk-cipher.md.

use super::window::Window;
use ring::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use std::time::{Duration, Instant};

/// Bytes before the ciphertext: type, receiver, number.
pub(super) const HEAD: usize = 16;
/// Bytes behind it.
const TAG: usize = 16;
/// First field of a message; WireGuard's own go to 4.
const TYPE: [u8; 4] = 5_u32.to_le_bytes();
/// A key that is made anew this long after it was made, as WireGuard does with its sessions.
const RENEW_AFTER: Duration = Duration::from_secs(120);
/// How long a key is sent with, from when it was told.
const USED_FOR: Duration = Duration::from_secs(150);
/// How long a key is taken, from when it was made (WireGuard: 180 s).
const KEPT_FOR: Duration = Duration::from_secs(180);
/// How long a key is told, from when it was made: told then, it is sent with until just before [`KEPT_FOR`]. What is left is
/// for the way.
const TOLD_FOR: Duration = Duration::from_secs(25);
/// Between two offers of one key.
const AGAIN: Duration = Duration::from_secs(1);
/// Offers of one key: who does not answer has no use for it.
const TRIES: u8 = 5;
/// Between two packets that take the tunnel.
const PULSE: Duration = Duration::from_secs(1);
/// Most messages with one key.
const MESSAGES: u64 = 1 << 32;

pub(super) type Secret = [u8; 16];
/// What is said through the tunnel: an IPv4 packet that no pod can send, since it has no pod's address.
pub(super) type Offer = [u8; OFFER];

const OFFER: usize = IP_HEADER + 4 + 8 + 4 + 4 + 16;
const IP_HEADER: usize = 20;
/// Protocol number for experiments (RFC 3692).
const PROTOCOL: u8 = 253;
/// "hpk", and the version of what follows.
const MAGIC: [u8; 4] = *b"hpk\x01";

/// Whether this processor has what makes AES-GCM fast.
pub(super) fn is_fast_here() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

/// The keys of one pair of pods, seen from one of them.
#[derive(Debug)]
pub(super) struct Bulk {
    /// The upper part of our keys' indices: the peer's slot.
    slot: u32,
    /// Keys' times are told from here: one for all of a process's life, as its WireGuard key is.
    began: Instant,
    made: u8,
    current: Option<Inbound>,
    /// Older ones that the other may still send with: one as a rule, more when offers get lost.
    former: Vec<Inbound>,
    outbound: Option<Outbound>,
    /// When the newest key that we were told of was made, by the other's clock, nanoseconds.
    newest: Option<u64>,
    pulsed: Option<Instant>,
}

/// A key that we are sent to with.
#[derive(Debug)]
struct Inbound {
    index: u32,
    secret: Secret,
    key: LessSafeKey,
    window: Window,
    born: Instant,
    offered: Option<Instant>,
    tries: u8,
    /// The other has it.
    known: bool,
}

/// A key that we send with.
#[derive(Debug)]
struct Outbound {
    index: u32,
    key: LessSafeKey,
    told: Instant,
    first: u64,
    next: u64,
}

impl Bulk {
    /// For the peer of this slot; `began`: the datapath.
    pub(super) fn new(slot: usize, began: Instant) -> Self {
        let slot = u32::try_from(slot).unwrap_or(0) << 8;
        Self { slot, began, made: 0, current: None, former: Vec::new(), outbound: None, newest: None, pulsed: None }
    }

    /// Whether packets may go past the tunnel now. Not when one is due to take it.
    pub(super) fn carries(&mut self, now: Instant) -> bool {
        let usable = self
            .outbound
            .as_ref()
            .is_some_and(|o| now.duration_since(o.told) < USED_FOR && o.next - o.first < MESSAGES);
        if usable && self.pulsed.is_none_or(|at| now.duration_since(at) >= PULSE) {
            self.pulsed = Some(now);
            return false;
        }
        usable
    }

    /// Makes a message of `bytes`, whose packet lies between [`HEAD`] and the tag's 16 bytes. False: there is no key.
    pub(super) fn seal(&mut self, bytes: &mut [u8]) -> bool {
        let Some(outbound) = &mut self.outbound else { return false };
        let Some((head, rest)) = bytes.split_first_chunk_mut::<HEAD>() else { return false };
        let Some((packet, tag)) = rest.split_last_chunk_mut::<TAG>() else { return false };
        let number = outbound.next.to_le_bytes();
        outbound.next += 1;
        let [a, b, c, d] = outbound.index.to_le_bytes();
        let [t0, t1, t2, t3] = TYPE;
        let [n0, n1, n2, n3, n4, n5, n6, n7] = number;
        *head = [t0, t1, t2, t3, a, b, c, d, n0, n1, n2, n3, n4, n5, n6, n7];
        let Ok(sum) = outbound.key.seal_in_place_separate_tag(nonce(number), Aad::empty(), packet) else {
            return false;
        };
        tag.copy_from_slice(sum.as_ref());
        true
    }

    /// The packet in a message for one of our keys, once, and while the key is not too old.
    pub(super) fn open<'a>(&mut self, message: &'a mut [u8], now: Instant) -> Option<&'a mut [u8]> {
        let index = receiver(message)?;
        let (head, sealed) = message.split_first_chunk_mut::<HEAD>()?;
        let number: [u8; 8] = *head.last_chunk()?;
        let inbound = self
            .current
            .iter_mut()
            .chain(&mut self.former)
            .find(|i| i.index == index && now.duration_since(i.born) < KEPT_FOR)?;
        let n = u64::from_le_bytes(number);
        if !inbound.window.is_new(n) {
            return None;
        }
        let packet = inbound.key.open_in_place(nonce(number), Aad::empty(), sealed).ok()?;
        inbound.window.mark(n);
        Some(packet)
    }

    /// What is to be said to the other now; to be asked whenever something came by the tunnel. `fresh` makes a key.
    pub(super) fn offer(&mut self, now: Instant, fresh: impl FnOnce() -> Option<Secret>) -> Option<Offer> {
        self.former.retain(|key| now.duration_since(key.born) < KEPT_FOR);
        match &self.current {
            Some(key) if now.duration_since(key.born) < RENEW_AFTER => {
                // Offers have been lost, or nothing was said meanwhile.
                if !key.known && key.tries < TRIES && now.duration_since(key.born) >= TOLD_FOR {
                    let tries = key.tries;
                    self.make(now, fresh, tries)?;
                }
            }
            _ => self.make(now, fresh, 0)?,
        }
        let current = self.current.as_mut()?;
        let waits = current.offered.is_some_and(|at| now.duration_since(at) < AGAIN);
        if current.known || waits || current.tries >= TRIES {
            return None;
        }
        (current.offered, current.tries) = (Some(now), current.tries + 1);
        self.say()
    }

    /// A new key; the present one becomes a former one. `tries`: offers without an answer so far.
    fn make(&mut self, now: Instant, fresh: impl FnOnce() -> Option<Secret>, tries: u8) -> Option<()> {
        let secret = fresh()?;
        let index = self.slot | u32::from(self.made);
        self.made = self.made.wrapping_add(1);
        let made = Inbound {
            index,
            secret,
            key: key(&secret)?,
            window: Window::default(),
            born: now,
            offered: None,
            tries,
            known: false,
        };
        self.former.extend(self.current.replace(made));
        self.former.retain(|key| now.duration_since(key.born) < KEPT_FOR);
        Some(())
    }

    /// Our key, and which of the other's we have.
    fn say(&self) -> Option<Offer> {
        let current = self.current.as_ref()?;
        let mut offer = [0; OFFER];
        let (header, said) = offer.split_first_chunk_mut::<IP_HEADER>()?;
        header[0] = 0x45;
        header[3] = u8::try_from(OFFER).unwrap_or(0);
        header[9] = PROTOCOL;
        let has = self.outbound.as_ref().map_or(u32::MAX, |o| o.index);
        let born = u64::try_from(current.born.duration_since(self.began).as_nanos()).unwrap_or(u64::MAX);
        let parts =
            [&MAGIC[..], &born.to_le_bytes(), &current.index.to_le_bytes(), &has.to_le_bytes(), &current.secret];
        for (to, from) in said.iter_mut().zip(parts.into_iter().flatten()) {
            *to = *from;
        }
        Some(offer)
    }

    /// A packet that came through the tunnel from no pod's address. Returns what is to be answered at once: the other has
    /// not heard yet that we have its own key, or has not got ours. `fresh` makes a key, if the one that there is must not
    /// be told any more.
    pub(super) fn hear(
        &mut self,
        packet: &[u8],
        now: Instant,
        fresh: impl FnOnce() -> Option<Secret>,
    ) -> Option<Offer> {
        let said = packet.strip_prefix(&[0x45]).and_then(|_| packet.get(IP_HEADER..OFFER))?;
        let (born, rest) = said.strip_prefix(&MAGIC)?.split_first_chunk::<8>()?;
        let (index, rest) = rest.split_first_chunk::<4>()?;
        let (has, rest) = rest.split_first_chunk::<4>()?;
        let (secret, _) = rest.split_first_chunk::<16>()?;
        let (index, has) = (u32::from_le_bytes(*index), u32::from_le_bytes(*has));
        let born = u64::from_le_bytes(*born);
        let new = self.newest.is_none_or(|newest| born > newest);
        if new {
            self.newest = Some(born);
            let first = first_number(now.duration_since(self.began))?;
            self.outbound = Some(Outbound { index, key: key(secret)?, told: now, first, next: first });
        }
        let current = self.current.as_mut()?;
        let has_it = current.index == has;
        current.known |= has_it;
        if !new && current.known {
            return None;
        }
        // Who has it takes nothing from the answer but that his own has come.
        let too_old = !has_it && now.duration_since(current.born) >= TOLD_FOR;
        if too_old {
            self.make(now, fresh, 0)?;
        }
        self.say()
    }
}

/// The index in a message's second field; None: it is none of these messages.
pub(super) fn receiver(message: &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes(*message.strip_prefix(&TYPE)?.first_chunk()?))
}

/// Where numbers begin that are used from this time of a datapath's life on: above all that it can have used before, at less
/// than a million a microsecond. None: it is over 200 days old.
fn first_number(age: Duration) -> Option<u64> {
    u64::try_from(age.as_micros()).ok()?.checked_mul(1 << 20)
}

fn key(secret: &Secret) -> Option<LessSafeKey> {
    UnboundKey::new(&AES_128_GCM, secret).ok().map(LessSafeKey::new)
}

/// As WireGuard's: a number is used once with a key.
fn nonce([a, b, c, d, e, f, g, h]: [u8; 8]) -> Nonce {
    Nonce::assume_unique_for_key([0, 0, 0, 0, a, b, c, d, e, f, g, h])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn fresh() -> Option<Secret> {
        super::super::keys::fresh()
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
        let view = super::super::packet::parse(&offer).unwrap();
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
}
