//! What a pod's node side needs beyond the pod's own devices: a veth pair between two network namespaces, rules, and
//! routes in tables of their own.

use super::{Message, NLM_F_CREATE, NLM_F_EXCL, NetError, Netlink, Route, check_name, family, link_header, octets};
use libc::{
    IFLA_IFNAME, IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_LINKINFO, IFLA_MTU, IFLA_NET_NS_FD, RTM_DELRULE, RTM_NEWLINK,
    RTM_NEWRULE,
};
use nix::errno::Errno;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};

// linux/veth.h and linux/fib_rules.h, which libc does not have.
const VETH_INFO_PEER: u16 = 1;
const FRA_DST: u16 = 1;
const FRA_PRIORITY: u16 = 6;
const FRA_TABLE: u16 = 15;
const FR_ACT_TO_TBL: u8 = 1;

/// The kernel's table of its own addresses.
pub const TABLE_LOCAL: u8 = libc::RT_TABLE_LOCAL;

/// One routing rule: what goes to `to`, or everything, is looked up in `table`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Family, when `to` is None.
    pub v6: bool,
    /// One address; None: all.
    pub to: Option<IpAddr>,
    /// The smallest comes first.
    pub priority: u32,
    /// 1 to 255.
    pub table: u8,
}

impl Netlink {
    /// Makes a veth pair: `here` in this namespace, `there` in another one. Both are down.
    ///
    /// # Errors
    /// EEXIST when a name is taken, EOPNOTSUPP without veth.
    pub fn add_veth(&mut self, here: &str, there: &str, namespace: impl AsFd, mtu: u32) -> Result<(), NetError> {
        check_name(here)?;
        check_name(there)?;
        let mut peer = Message(link_header(0, 0, 0));
        peer.attribute(IFLA_IFNAME, format!("{there}\0").as_bytes());
        peer.attribute(IFLA_MTU, &mtu.to_ne_bytes());
        peer.attribute(IFLA_NET_NS_FD, &namespace.as_fd().as_raw_fd().to_ne_bytes());
        let mut data = Message(Vec::new());
        data.attribute(VETH_INFO_PEER, &peer.0);
        let mut info = Message(Vec::new());
        info.attribute(IFLA_INFO_KIND, b"veth");
        info.attribute(IFLA_INFO_DATA, &data.0);
        let mut message = Message::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &link_header(0, 0, 0));
        message.attribute(IFLA_IFNAME, format!("{here}\0").as_bytes());
        message.attribute(IFLA_MTU, &mtu.to_ne_bytes());
        message.attribute(IFLA_LINKINFO, &info.0);
        self.request(|| format!("create the veth pair {here} and {there}"), message)
    }

    /// As [`Netlink::add_route`], in a table of its own.
    ///
    /// # Errors
    /// See [`NetError`].
    pub fn add_route_in(&mut self, table: u8, device: &str, route: Route) -> Result<(), NetError> {
        self.route(table, device, route)
    }

    /// Adds a rule.
    ///
    /// # Errors
    /// See [`NetError`].
    pub fn add_rule(&mut self, rule: Rule) -> Result<(), NetError> {
        match self.rule(RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, rule) {
            Err(NetError::Kernel { errno: Errno::EEXIST, .. }) => Ok(()),
            other => other,
        }
    }

    /// Removes a rule.
    ///
    /// # Errors
    /// ENOENT when there is none such.
    pub fn delete_rule(&mut self, rule: Rule) -> Result<(), NetError> {
        self.rule(RTM_DELRULE, 0, rule)
    }

    fn rule(&mut self, kind: u16, flags: u16, rule: Rule) -> Result<(), NetError> {
        let any: IpAddr = if rule.v6 { [0_u8; 16].into() } else { [0_u8; 4].into() };
        let bits = rule.to.map_or(0, |ip| if ip.is_ipv4() { 32 } else { 128 });
        let mut fixed = vec![family(rule.to.unwrap_or(any)), bits, 0, 0, rule.table, 0, 0, FR_ACT_TO_TBL];
        fixed.extend(0_u32.to_ne_bytes());
        let mut message = Message::new(kind, flags, &fixed);
        if let Some(to) = rule.to {
            message.attribute(FRA_DST, &octets(to));
        }
        message.attribute(FRA_PRIORITY, &rule.priority.to_ne_bytes());
        message.attribute(FRA_TABLE, &u32::from(rule.table).to_ne_bytes());
        self.request(|| format!("change the routing rule {} for table {}", rule.priority, rule.table), message)
    }
}
