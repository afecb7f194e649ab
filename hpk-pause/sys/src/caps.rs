//! Sets of capabilities: names of a securityContext to bits.
//!
//! Pure, but for [`permitted`] and [`last`], which ask the kernel about the calling process.

use ::caps::{CapSet as Kind, Capability, CapsHashSet};
use std::str::FromStr;
use thiserror::Error;

/// What containerd and moby give a container.
const DEFAULT: [Capability; 14] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FSETID,
    Capability::CAP_FOWNER,
    Capability::CAP_MKNOD,
    Capability::CAP_NET_RAW,
    Capability::CAP_SETGID,
    Capability::CAP_SETUID,
    Capability::CAP_SETFCAP,
    Capability::CAP_SETPCAP,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_SYS_CHROOT,
    Capability::CAP_KILL,
    Capability::CAP_AUDIT_WRITE,
];

/// A set of capabilities as the kernel's bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CapSet(u64);

/// A name that is no capability.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("securityContext.capabilities: there is no capability {name:?}; use names such as NET_ADMIN, or ALL")]
pub struct UnknownCapability {
    /// As the user wrote it.
    pub name: String,
}

impl CapSet {
    /// The 14 of container engines.
    #[must_use]
    pub fn container_default() -> Self {
        Self(DEFAULT.iter().fold(0, |bits, cap| bits | cap.bitmask()))
    }

    /// All that there are (privileged).
    #[must_use]
    pub fn all() -> Self {
        Self(::caps::all().iter().fold(0, |bits, cap| bits | cap.bitmask()))
    }

    /// The default set with a securityContext's additions and removals, as engines combine them: an added ALL is cut by
    /// single drops, a dropped ALL is opened by single additions.
    ///
    /// # Errors
    /// For a name that is no capability.
    pub fn resolve(add: &[String], drop: &[String]) -> Result<Self, UnknownCapability> {
        let is_all = |name: &String| name.eq_ignore_ascii_case("ALL");
        let mut bits = Self::container_default().0;
        if add.iter().any(is_all) {
            bits = Self::all().0;
        }
        if drop.iter().any(is_all) {
            bits = 0;
        }
        for name in add.iter().filter(|name| !is_all(name)) {
            bits |= bit(name)?;
        }
        for name in drop.iter().filter(|name| !is_all(name)) {
            bits &= !bit(name)?;
        }
        Ok(Self(bits))
    }

    /// By the kernel's bits, bit 0 is CAP_CHOWN.
    #[must_use]
    pub const fn of_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Bit n is capability n of `linux/capability.h`.
    #[must_use]
    pub const fn bits(self) -> u64 {
        self.0
    }
}

fn bit(name: &str) -> Result<u64, UnknownCapability> {
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
    Capability::from_str(&full).map(|cap| cap.bitmask()).map_err(|_| UnknownCapability { name: name.to_owned() })
}

fn bits(set: &CapsHashSet) -> u64 {
    set.iter().fold(0, |bits, cap| bits | cap.bitmask())
}

/// Permitted capabilities of the calling thread; none when the kernel does not tell.
#[must_use]
pub fn permitted() -> u64 {
    ::caps::read(None, Kind::Permitted).map_or(0, |set| bits(&set))
}

/// Names of those that the kernel has and the calling thread lacks: none for a usual root.
#[must_use]
pub fn missing() -> Vec<String> {
    let (has, last) = (permitted(), last());
    let lacks = |cap: &Capability| cap.index() <= last && cap.bitmask() & has == 0;
    let mut names: Vec<String> = ::caps::all().iter().filter(|cap| lacks(cap)).map(ToString::to_string).collect();
    names.sort_unstable();
    names
}

/// The highest capability that this kernel knows.
#[must_use]
pub fn last() -> u8 {
    std::fs::read_to_string("/proc/sys/kernel/cap_last_cap")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(40)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn the_default_set_is_that_of_engines() {
        // As `grep CapBnd /proc/self/status` shows it in a container of containerd.
        assert_eq!(CapSet::container_default().bits(), 0xa804_25fb);
    }

    #[test]
    fn add_and_drop() {
        let resolve = |add: &[&str], drop: &[&str]| CapSet::resolve(&names(add), &names(drop)).map(CapSet::bits);
        let default = CapSet::container_default().bits();
        assert_eq!(resolve(&["NET_ADMIN"], &[]), Ok(default | 1 << 12));
        assert_eq!(resolve(&["cap_net_admin"], &[]), Ok(default | 1 << 12));
        assert_eq!(resolve(&["NET_BIND_SERVICE"], &["ALL"]), Ok(1 << 10));
        assert_eq!(resolve(&["ALL"], &["SYS_ADMIN"]), Ok(CapSet::all().bits() & !(1 << 21)));
        assert_eq!(resolve(&[], &["CHOWN"]), Ok(default & !1));
        assert_eq!(resolve(&["NO_SUCH"], &[]), Err(UnknownCapability { name: "NO_SUCH".to_owned() }));
    }
}
