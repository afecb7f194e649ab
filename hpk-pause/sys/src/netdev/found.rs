//! What a network namespace has: devices, addresses, routes of the main table, as the kernel lists them.
//!
//! /sys/class/net is no help: in a container it shows the devices of whoever mounted it.

use super::{NLM_F_REQUEST, NLMSG_ERROR, NetError, Netlink, short};
use libc::{
    IFA_ADDRESS, IFA_LOCAL, IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, RT_SCOPE_LINK, RT_SCOPE_UNIVERSE, RT_TABLE_MAIN,
    RTA_DST, RTA_GATEWAY, RTA_OIF, RTA_TABLE, RTM_GETADDR, RTM_GETLINK, RTM_GETROUTE, RTN_UNICAST,
};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};
use std::net::IpAddr;
use std::os::fd::AsRawFd;

const NLMSG_DONE: u16 = short(libc::NLMSG_DONE);
const NLM_F_DUMP: u16 = short(libc::NLM_F_DUMP);
const IFF_LOOPBACK: u32 = libc::IFF_LOOPBACK.cast_unsigned();
/// Sizes of ifinfomsg, ifaddrmsg and rtmsg.
const LINK_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;
const ROUTE_HEADER: usize = 12;

/// A device with what belongs to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    pub name: String,
    /// Hardware address as `02:00:00:00:00:01`; empty: it has none.
    pub mac: String,
    /// Bytes.
    pub mtu: u32,
    /// It is a loopback device.
    pub loopback: bool,
    /// Addresses of global scope with prefix lengths, IPv4 before IPv6.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Unicast routes of the main table through it: destination, prefix length, next hop.
    pub routes: Vec<(IpAddr, u8, Option<IpAddr>)>,
    /// The kernel's number.
    pub index: u32,
}

/// The address of the other family on the device that has `ip`, by which other hosts reach it. One that the whole world may
/// know comes before a site's own (RFC 4193).
#[must_use]
pub fn beside(devices: &[Device], ip: IpAddr) -> Option<IpAddr> {
    let device = devices.iter().find(|d| d.addresses.iter().any(|(own, _)| *own == ip))?;
    let others = device.addresses.iter().map(|(other, _)| *other).filter(|other| other.is_ipv4() != ip.is_ipv4());
    let is_of_site = |ip: &IpAddr| matches!(ip, IpAddr::V6(v6) if v6.is_unique_local());
    others.filter(|ip| !ip.is_loopback() && !ip.is_multicast()).min_by_key(is_of_site)
}

impl Netlink {
    /// Lists the namespace's devices, in the kernel's order.
    ///
    /// # Errors
    /// See [`NetError`].
    pub fn devices(&mut self) -> Result<Vec<Device>, NetError> {
        let mut devices = Vec::new();
        self.dump(RTM_GETLINK, &[0; LINK_HEADER], &mut |payload| devices.extend(device(payload)))?;
        self.dump(RTM_GETADDR, &[0; ADDRESS_HEADER], &mut |payload| {
            if let Some((index, address, prefix)) = address(payload)
                && let Some(device) = devices.iter_mut().find(|d: &&mut Device| d.index == index)
            {
                device.addresses.push((address, prefix));
            }
        })?;
        self.dump(RTM_GETROUTE, &[0; ROUTE_HEADER], &mut |payload| {
            if let Some((index, route)) = route(payload)
                && let Some(device) = devices.iter_mut().find(|d| d.index == index)
            {
                device.routes.push(route);
            }
        })?;
        for device in &mut devices {
            device.addresses.sort_by_key(|(ip, _)| ip.is_ipv6());
        }
        Ok(devices)
    }

    /// Asks for all of one kind and hands over each message's payload.
    fn dump(&mut self, kind: u16, fixed: &[u8], each: &mut dyn FnMut(&[u8])) -> Result<(), NetError> {
        let failed =
            |errno| NetError::Kernel { operation: "list network devices, addresses and routes".to_owned(), errno };
        self.sequence += 1;
        let mut request = Vec::with_capacity(16 + fixed.len());
        request.extend(u32::try_from(16 + fixed.len()).unwrap_or(0).to_ne_bytes());
        request.extend(kind.to_ne_bytes());
        request.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
        request.extend(self.sequence.to_ne_bytes());
        request.extend([0; 4]);
        request.extend(fixed);
        send(self.socket.as_raw_fd(), &request, MsgFlags::empty()).map_err(failed)?;
        // The kernel fills at most 32 KiB a datagram.
        let mut buffer = vec![0_u8; 32 << 10];
        loop {
            let length = match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                other => other.map_err(failed)?,
            };
            let part = part(buffer.get(..length).unwrap_or_default(), self.sequence, each);
            match part.map_err(failed)? {
                Part::More => {}
                Part::Last => return Ok(()),
            }
        }
    }
}

enum Part {
    More,
    Last,
}

/// One datagram of a dump.
fn part(datagram: &[u8], sequence: u32, each: &mut dyn FnMut(&[u8])) -> Result<Part, Errno> {
    let mut rest = datagram;
    while let (Some(length), Some(kind), Some(number)) = (u32_at(rest, 0), u16_at(rest, 4), u32_at(rest, 8)) {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let Some(payload) = rest.get(16..length) else { return Err(Errno::EBADMSG) };
        if number == sequence {
            match kind {
                NLMSG_DONE => return Ok(Part::Last),
                NLMSG_ERROR => return Err(Errno::from_raw(i32_at(payload, 0).and_then(i32::checked_neg).unwrap_or(5))),
                _ => each(payload),
            }
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(Part::More)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    bytes.get(at..at + 4)?.try_into().ok().map(i32::from_ne_bytes)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

/// The value of an attribute behind a fixed part.
fn attribute(payload: &[u8], fixed: usize, wanted: u16) -> Option<&[u8]> {
    let mut rest = payload.get(fixed..)?;
    loop {
        let length = usize::from(u16_at(rest, 0)?);
        let value = rest.get(4..length)?;
        // The two high bits are flags.
        if u16_at(rest, 2)? & 0x3fff == wanted {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

fn device(payload: &[u8]) -> Option<Device> {
    let name = attribute(payload, LINK_HEADER, IFLA_IFNAME)?;
    let hardware = attribute(payload, LINK_HEADER, IFLA_ADDRESS).filter(|mac| mac.iter().any(|b| *b != 0));
    let mac: Vec<String> = hardware.unwrap_or_default().iter().map(|b| format!("{b:02x}")).collect();
    Some(Device {
        name: String::from_utf8_lossy(name).trim_end_matches('\0').to_owned(),
        mac: mac.join(":"),
        mtu: attribute(payload, LINK_HEADER, IFLA_MTU).and_then(|v| u32_at(v, 0))?,
        loopback: u32_at(payload, 8)? & IFF_LOOPBACK != 0,
        addresses: Vec::new(),
        routes: Vec::new(),
        index: u32_at(payload, 4)?,
    })
}

fn address(payload: &[u8]) -> Option<(u32, IpAddr, u8)> {
    let local =
        attribute(payload, ADDRESS_HEADER, IFA_LOCAL).or_else(|| attribute(payload, ADDRESS_HEADER, IFA_ADDRESS));
    let scope = *payload.get(3)?;
    (scope == RT_SCOPE_UNIVERSE).then_some(())?;
    Some((u32_at(payload, 4)?, ip(local?)?, *payload.get(1)?))
}

type Found = (IpAddr, u8, Option<IpAddr>);

fn route(payload: &[u8]) -> Option<(u32, Found)> {
    let (family, prefix, scope, kind) = (*payload.first()?, *payload.get(1)?, *payload.get(6)?, *payload.get(7)?);
    let named = attribute(payload, ROUTE_HEADER, RTA_TABLE).and_then(|v| u32_at(v, 0));
    let table = named.unwrap_or_else(|| payload.get(4).copied().unwrap_or(0).into());
    let usual = table == u32::from(RT_TABLE_MAIN) && kind == RTN_UNICAST && scope <= RT_SCOPE_LINK;
    usual.then_some(())?;
    let any: IpAddr = if i32::from(family) == libc::AF_INET { [0_u8; 4].into() } else { [0_u8; 16].into() };
    let destination = attribute(payload, ROUTE_HEADER, RTA_DST).and_then(ip).unwrap_or(any);
    let gateway = attribute(payload, ROUTE_HEADER, RTA_GATEWAY).and_then(ip);
    let index = attribute(payload, ROUTE_HEADER, RTA_OIF).and_then(|v| u32_at(v, 0))?;
    Some((index, (destination, prefix, gateway)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_namespace_has_a_loopback_device() {
        let devices = Netlink::open().unwrap().devices().unwrap();
        let lo = devices.iter().find(|d| d.name == "lo").unwrap();
        assert!(lo.loopback && lo.mac.is_empty() && lo.addresses.is_empty(), "{lo:?}");
    }

    #[test]
    fn a_devices_address_of_the_other_family() {
        let device = |name: &str, ips: &[&str]| Device {
            name: name.to_owned(),
            addresses: ips.iter().map(|ip| (ip.parse().unwrap(), 64)).collect(),
            ..Device::default()
        };
        let all = [
            device("ib0", &["10.9.0.1", "fd09::1"]),
            device("eth0", &["10.77.0.1", "fd00:77::1", "2001:db8::1"]),
            device("eth1", &["10.78.0.1"]),
        ];
        for (of, found) in [
            ("10.77.0.1", Some("2001:db8::1")),
            ("fd00:77::1", Some("10.77.0.1")),
            ("10.9.0.1", Some("fd09::1")),
            ("10.78.0.1", None),
            ("10.79.0.1", None),
        ] {
            assert_eq!(beside(&all, of.parse().unwrap()), found.map(|ip| ip.parse().unwrap()), "{of}");
        }
    }

    #[test]
    fn nonsense_from_the_kernel_is_no_panic() {
        let mut seen = 0;
        for length in 0..64 {
            let bytes: Vec<u8> = (0..length).map(|n: u8| n.wrapping_mul(37)).collect();
            let _ = part(&bytes, 7, &mut |_| seen += 1);
            let _ = (device(&bytes), address(&bytes), route(&bytes));
        }
        assert_eq!(seen, 0);
    }
}
