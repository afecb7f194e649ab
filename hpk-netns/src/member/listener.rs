//! One port of the login node that leads to a service: its task, and what that is told.

use super::Helper;
use super::datagrams::{self, Targets};
use super::spread::Spread;
use hpk_api::link::{Listener, Protocol};
use hpk_sys::ports::{TcpHold, UdpHold};
use ipnet::IpNet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// Connections of one listener at once.
const CONNECTIONS: usize = 4096;
/// Longest wait for an endpoint to take a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a listener that cannot listen waits until it tries again.
const PAUSE: Duration = Duration::from_secs(30);

/// Told to a listener's task, which owns all else.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Told {
    endpoints: Vec<SocketAddr>,
    affinity: Option<u32>,
    /// Whose clients are served; none: everybody's.
    sources: Vec<IpNet>,
}

impl Told {
    pub(super) fn of(listener: &Listener) -> Self {
        let Listener { endpoints, affinity_seconds, sources, .. } = listener.clone();
        Self { endpoints, affinity: affinity_seconds, sources }
    }
}

/// A listener's endpoints, as its task knows them.
pub(super) struct Backends {
    spread: Spread,
    sources: Vec<IpNet>,
    told: watch::Receiver<Told>,
}

impl Backends {
    pub(super) fn new(told: watch::Receiver<Told>) -> Self {
        let mut new = Self { spread: Spread::default(), sources: Vec::new(), told };
        new.learn();
        new
    }

    fn learn(&mut self) {
        let Told { endpoints, affinity, sources } = self.told.borrow_and_update().clone();
        self.spread.set(endpoints, affinity);
        self.sources = sources;
    }

    /// Until there is news. Safe to cancel.
    async fn changed(&mut self) {
        if self.told.changed().await.is_err() {
            // The member lets this listener go: its task is ended.
            std::future::pending::<()>().await;
        }
        self.learn();
    }

    fn is_served(&self, client: SocketAddr) -> bool {
        let client = client.ip().to_canonical();
        self.sources.is_empty() || self.sources.iter().any(|range| range.contains(&client))
    }

    fn choose(&mut self, client: SocketAddr) -> Option<SocketAddr> {
        if !self.is_served(client) {
            return None;
        }
        self.spread.choose(client.ip(), seconds(), hpk_link::random())
    }
}

/// A service's endpoints for datagrams.
struct Served {
    backends: Backends,
    helper: Helper,
}

impl Targets for Served {
    fn choose(&mut self, client: SocketAddr) -> Option<SocketAddr> {
        self.backends.choose(client)
    }

    /// An endpoint that is none any more loses its clients.
    fn keeps(&self, client: SocketAddr, endpoint: SocketAddr) -> bool {
        self.backends.is_served(client) && self.backends.spread.has(endpoint)
    }

    fn open(&self, endpoint: SocketAddr) -> impl Future<Output = io::Result<UdpSocket>> + Send + 'static {
        let helper = self.helper.clone();
        async move { helper.udp(endpoint).await }
    }

    async fn changed(&mut self) {
        self.backends.changed().await;
    }

    fn are_waited_for(&self) -> bool {
        false
    }
}

/// Binds the port and begins to serve it.
pub(super) async fn start(
    listener: &Listener,
    backends: Backends,
    helper: Helper,
) -> io::Result<AbortOnDropHandle<()>> {
    let at = listener.at;
    let task = if listener.protocol == Protocol::Udp {
        let held = if listener.held { UdpHold::share(at)? } else { UdpHold::take(at)? };
        let socket = UdpSocket::from_std(hpk_sys::ports::udp_beside(at)?)?;
        tokio::spawn(async move {
            let _held = held;
            datagrams::carry(socket, Served { backends, helper }).await;
        })
    } else {
        let held = if listener.held { TcpHold::share(at)? } else { TcpHold::take(at)? };
        tokio::spawn(async move { tcp(held, at, backends, &helper).await })
    };
    Ok(AbortOnDropHandle::new(task))
}

/// Held for as long as the service has the port, and listening while there are endpoints.
async fn tcp(_held: TcpHold, at: SocketAddr, mut backends: Backends, helper: &Helper) {
    loop {
        while backends.spread.is_empty() {
            backends.changed().await;
        }
        match hpk_sys::ports::listen_beside(at).and_then(TcpListener::from_std) {
            Ok(listener) => serve(listener, &mut backends, helper).await,
            // Out of descriptors, say.
            Err(error) => {
                hpk_api::say!("hpk-netns: member: {at}: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Until there are no endpoints. Connections that stand are not cut by that.
async fn serve(listener: TcpListener, backends: &mut Backends, helper: &Helper) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, client)) => {
                    let Ok(permit) = room.clone().try_acquire_owned() else { continue };
                    let Some(endpoint) = backends.choose(client) else { continue };
                    let helper = helper.clone();
                    tokio::spawn(async move {
                        carry(stream, endpoint, &helper).await;
                        drop(permit);
                    });
                }
                // Out of descriptors: those that end free some.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
            () = backends.changed() => if backends.spread.is_empty() { return },
        }
    }
}

async fn carry(mut stream: TcpStream, endpoint: SocketAddr, helper: &Helper) {
    match tokio::time::timeout(CONNECT, helper.connect(endpoint)).await {
        Ok(Ok(mut on)) => {
            let _ = (stream.set_nodelay(true), on.set_nodelay(true));
            let _ = tokio::io::copy_bidirectional(&mut stream, &mut on).await;
        }
        // A reset, as from who is not there, not an orderly end after nothing.
        Ok(Err(_)) | Err(_) => {
            let _ = stream.set_zero_linger();
        }
    }
}

/// Of a clock that only goes forward.
fn seconds() -> u64 {
    static BEGAN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    BEGAN.get_or_init(Instant::now).elapsed().as_secs()
}
