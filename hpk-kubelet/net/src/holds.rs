//! Ports of services on the login node, held here beside the control plane's member: while the member is started again nobody
//! else on that node gets them, and while this process is, the member has them.

use hpk_api::link::{Listener, NetUpdate, NotListening, Protocol};
use hpk_sys::ports::{TcpHold, UdpHold};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::SocketAddr;

#[derive(Debug)]
enum Held {
    Tcp { _hold: TcpHold },
    Udp { _hold: UdpHold },
}

impl Held {
    fn share(protocol: Protocol, at: SocketAddr) -> io::Result<Self> {
        Ok(match protocol {
            Protocol::Udp => Self::Udp { _hold: UdpHold::share(at)? },
            Protocol::Tcp | Protocol::Sctp => Self::Tcp { _hold: TcpHold::share(at)? },
        })
    }
}

/// By service, protocol and place.
#[derive(Debug, Default)]
pub(crate) struct Holds(HashMap<(String, Protocol, SocketAddr), Held>);

fn key(listener: &Listener) -> (String, Protocol, SocketAddr) {
    (listener.service.clone(), listener.protocol, listener.at)
}

impl Holds {
    /// The member is about to be told these facts: ports that no service has any more are let go, and it hears of the others
    /// that they are held.
    pub(crate) fn mark(&mut self, facts: &mut [NetUpdate]) {
        for fact in facts {
            if let NetUpdate::Listeners(wanted) = fact {
                let all: Vec<_> = wanted.iter().map(key).collect();
                self.0.retain(|held, _| all.contains(held));
                wanted.iter_mut().for_each(|listener| listener.held = self.0.contains_key(&key(listener)));
            }
        }
    }

    /// The member has tried all of these.
    pub(crate) fn listened<'a>(&mut self, wanted: impl Iterator<Item = &'a Listener>, failed: &[NotListening]) {
        let fails =
            |l: &Listener| failed.iter().any(|f| (&f.service, f.protocol, f.at) == (&l.service, l.protocol, l.at));
        for listener in wanted {
            if fails(listener) {
                self.0.remove(&key(listener));
            } else if let Entry::Vacant(place) = self.0.entry(key(listener)) {
                match Held::share(listener.protocol, listener.at) {
                    Ok(held) => drop(place.insert(held)),
                    // The member has it; without this one nothing is lost until it is started again.
                    Err(error) => tracing::debug!(at = %listener.at, %error, "a service's port is not held"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_member_has_is_held_until_its_service_goes() {
        let at = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let taken = SocketAddr::new(at.ip(), 1);
        let listener = |service: &str, at| Listener {
            service: service.into(),
            protocol: Protocol::Tcp,
            at,
            endpoints: vec![],
            sources: vec![],
            affinity_seconds: None,
            held: false,
        };
        let wanted = [listener("d/a", at), listener("d/b", taken)];
        let member = TcpHold::take(at).unwrap();
        let mut holds = Holds::default();
        let told = |holds: &mut Holds, wanted: &[Listener]| {
            let mut facts = [NetUpdate::Listeners(wanted.to_vec())];
            holds.mark(&mut facts);
            let [NetUpdate::Listeners(list)] = facts else { panic!() };
            list.into_iter().map(|l| l.held).collect::<Vec<_>>()
        };
        assert_eq!(told(&mut holds, &wanted), [false, false]);
        let failed = NotListening { service: "d/b".into(), protocol: Protocol::Tcp, at: taken, message: "no".into() };
        holds.listened(wanted.iter(), std::slice::from_ref(&failed));
        assert_eq!(told(&mut holds, &wanted), [true, false]);
        drop(member);
        let others = || std::net::TcpListener::bind(at);
        assert!(others().is_err(), "the member is away");
        assert!(told(&mut holds, &wanted[1..]).iter().all(|held| !held));
        others().unwrap();
    }
}
