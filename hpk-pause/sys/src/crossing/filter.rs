//! The filter that has `connect`, and `sendto` with an address, ask first.
//!
//! A filter sees numbers and no memory, so it cannot know an address. What it can know is that there is none: by its length,
//! which for an IPv4 address is 16 bytes at least. 110 bytes are a Unix socket's address, as C programs give it. All other calls
//! are let pass by their number alone, which the kernel remembers and does not run the filter for (Linux 5.11). `sendmsg` is
//! not asked about: whether it has an address is in memory, so every message of every library would have to ask.

// The instructions' codes are of 16 bits, their constants in libc of 32.
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

use crate::program::SockFilter;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const ALWAYS: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
/// The lower half of an argument, and the upper one.
const fn argument(index: u32) -> (u32, u32) {
    let at = 16 + 8 * index;
    if cfg!(target_endian = "little") { (at, at + 4) } else { (at + 4, at) }
}

/// AUDIT_ARCH_* of this machine. A program for another one (32 bits) is not asked about.
#[cfg(target_arch = "x86_64")]
const NATIVE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const NATIVE: u32 = 0xc000_00b7;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const NATIVE: u32 = 0;

/// Of `struct sockaddr_in`.
const SHORTEST: u32 = 16;
/// Of `struct sockaddr_un`.
const UNIX: u32 = 110;

const fn load(at: u32) -> SockFilter {
    SockFilter { code: LOAD, jt: 0, jf: 0, k: at }
}

const fn jump(code: u16, k: u32, jt: u8, jf: u8) -> SockFilter {
    SockFilter { code, jt, jf, k }
}

/// Jumps are counted from the instruction after: 14 asks, 15 allows.
pub(crate) const PROGRAM: [SockFilter; 16] = [
    load(ARCHITECTURE),
    jump(EQUAL, NATIVE, 0, 13),
    load(NUMBER),
    jump(EQUAL, libc::SYS_connect as u32, 7, 0),
    jump(EQUAL, libc::SYS_sendto as u32, 0, 10),
    // 5: sendto. Is there an address?
    load(argument(4).0),
    jump(EQUAL, 0, 0, 2),
    load(argument(4).1),
    jump(EQUAL, 0, 6, 0),
    load(argument(5).0),
    jump(ALWAYS, 1, 0, 0),
    // 11: connect.
    load(argument(2).0),
    // 12: by the length.
    jump(EQUAL, UNIX, 2, 0),
    jump(AT_LEAST, SHORTEST, 0, 1),
    SockFilter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_USER_NOTIF },
    SockFilter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW },
];

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would answer.
    fn run(architecture: u32, number: libc::c_long, arguments: [u64; 6]) -> u32 {
        let mut data = u32::try_from(number).unwrap().to_ne_bytes().to_vec();
        data.extend(architecture.to_ne_bytes());
        data.extend([0; 8]);
        arguments.iter().for_each(|argument| data.extend(argument.to_ne_bytes()));
        let (mut at, mut word) = (0, 0);
        loop {
            let SockFilter { code, jt, jf, k } = PROGRAM[at];
            at += 1;
            let goes = match code {
                LOAD => {
                    let from = usize::try_from(k).unwrap();
                    word = u32::from_ne_bytes(data[from..from + 4].try_into().unwrap());
                    continue;
                }
                RETURN => return k,
                ALWAYS => {
                    at += usize::try_from(k).unwrap();
                    continue;
                }
                EQUAL => word == k,
                AT_LEAST => word >= k,
                other => panic!("{other}"),
            };
            at += usize::from(if goes { jt } else { jf });
        }
    }

    #[test]
    fn who_asks() {
        const ASKS: u32 = libc::SECCOMP_RET_USER_NOTIF;
        const PASSES: u32 = libc::SECCOMP_RET_ALLOW;
        let connect = |length| run(NATIVE, libc::SYS_connect, [3, 0x7fff_0000_1000, length, 0, 0, 0]);
        let sendto = |address, length| run(NATIVE, libc::SYS_sendto, [3, 0x1000, 9, 0, address, length]);
        for (length, answer) in
            [(0, PASSES), (2, PASSES), (12, PASSES), (16, ASKS), (28, ASKS), (110, PASSES), (128, ASKS)]
        {
            assert_eq!(connect(length), answer, "connect, {length} bytes");
            assert_eq!(sendto(0x1000, length), answer, "sendto, {length} bytes");
            assert_eq!(
                sendto(0x7f00_0000_0000, length),
                answer,
                "sendto, {length} bytes, upper half of the pointer alone"
            );
            assert_eq!(sendto(0, length), PASSES, "send");
        }
        for number in [libc::SYS_sendmsg, libc::SYS_sendmmsg, libc::SYS_recvfrom, libc::SYS_read, libc::SYS_writev] {
            assert_eq!(run(NATIVE, number, [3, 0x1000, 16, 0, 0x1000, 16]), PASSES, "{number}");
        }
        assert_eq!(run(0x4000_0003, libc::SYS_connect, [3, 0x1000, 16, 0, 0, 0]), PASSES, "i386");
    }
}
