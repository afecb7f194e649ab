//! Ports of services on the login node, held here beside the control plane's member: while the member is started again nobody
//! else on that node gets them, and while this process is, the member has them.

use hpk_api::link::{Listener, Listening, NetUpdate, Protocol};
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

#[derive(Debug, Default)]
pub(crate) struct Holds(HashMap<Listening, Held>);

fn place(listener: &Listener) -> Listening {
    Listening { service: listener.service.clone(), protocol: listener.protocol, at: listener.at }
}

impl Holds {
    /// The member is about to be told these facts: ports that no service has any more are let go, and it hears of the others
    /// that they are held.
    pub(crate) fn mark(&mut self, facts: &mut [NetUpdate]) {
        for fact in facts {
            if let NetUpdate::Listeners(wanted) = fact {
                let all: Vec<_> = wanted.iter().map(place).collect();
                self.0.retain(|held, _| all.contains(held));
                wanted.iter_mut().for_each(|listener| listener.held = self.0.contains_key(&place(listener)));
            }
        }
    }

    /// The member has these ports, and no others.
    pub(crate) fn listened(&mut self, has: &[Listening]) {
        self.0.retain(|held, _| has.contains(held));
        for place in has {
            if let Entry::Vacant(vacant) = self.0.entry(place.clone()) {
                match Held::share(place.protocol, place.at) {
                    Ok(held) => drop(vacant.insert(held)),
                    // The member has it; without this one nothing is lost until it is started again.
                    Err(error) => tracing::debug!(at = %place.at, %error, "a service's port is not held"),
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
        holds.listened(&[place(&wanted[0])]);
        assert_eq!(told(&mut holds, &wanted), [true, false]);
        drop(member);
        let others = || std::net::TcpListener::bind(at);
        assert!(others().is_err(), "the member is away");
        assert!(told(&mut holds, &wanted[1..]).iter().all(|held| !held));
        others().unwrap();
    }
}
