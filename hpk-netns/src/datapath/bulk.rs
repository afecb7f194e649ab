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
mod tests;
