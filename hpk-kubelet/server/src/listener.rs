//! Accepting connections: TLS, then HTTP/1.1 with upgrades.

use crate::auth::{Auth, Refusal};
use crate::backend::{Backend, Stream};
use crate::head;
use crate::respond::{Body, text};
use crate::service::Service;
use crate::tls::{Tls, TlsError, TlsFiles};
use hpk_link::doorway::{Doorway, Visitor};
use hpk_link::lasting;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{setsockopt, sockopt};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// Time for the TLS handshake, and for the head of a request.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often the serving certificate is looked at on disk.
const REFRESH: Duration = Duration::from_secs(600);
/// Connections at a time; more wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 4096;
/// Of these, connections whose owner is not known: what strangers can occupy. Some 40 KiB each, and [`STRANGERS_HEAD`] for one
/// that sends it (bench/strangers).
const STRANGERS: usize = 256;
/// Bytes of the head of a request that comes without a certificate of ours, which is all that is read before it is known
/// whose it is: room for the longest token.
const STRANGERS_HEAD: usize = 16 << 10;
/// Bytes of the head of a request that comes with one, beside a long query ([`head`]).
const MAX_HEAD: usize = 128 << 10;

/// What the server needs beside its backend.
#[derive(Clone)]
pub struct ServerConfig {
    /// Names of the Nodes that it serves, at least one. The first stands for all of them in authorization.
    pub nodes: Vec<String>,
    /// Certificate, key, client CA.
    pub tls: TlsFiles,
    /// For TokenReview and SubjectAccessReview.
    pub client: kube::Client,
}

/// Serves on the listener until the runtime ends.
///
/// # Errors
/// When the certificate, its key or the client CA cannot be used.
pub fn start<B: Backend>(listener: TcpListener, config: ServerConfig, backend: Arc<B>) -> Result<(), TlsError> {
    let tls = Arc::new(Tls::load(&config.tls)?);
    let first = config.nodes.first().cloned().unwrap_or_default();
    let auth = Auth::new(config.client, first);
    let service = Arc::new(Service::new(config.nodes, auth, backend));
    let refreshed = tls.clone();
    lasting::spawn("certificates of the kubelet API", async move {
        loop {
            tokio::time::sleep(REFRESH).await;
            refreshed.refresh();
        }
    });
    lasting::spawn("kubelet API", accept(listener, tls, service));
    Ok(())
}

async fn accept<B: Backend>(listener: TcpListener, tls: Arc<Tls>, service: Arc<Service<B>>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let doorway = Doorway::new(STRANGERS);
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((socket, _)) => {
                let (tls, service, visitor) = (tls.clone(), service.clone(), doorway.enter().await);
                tokio::spawn(async move {
                    // Not held by upgraded streams, which outlive this.
                    let _slot = slot;
                    let out = visitor.out();
                    let served = tokio::select! {
                        served = connection(socket, &tls, service, visitor) => served,
                        () = out.cancelled() => Err("too many others came before it said who it is".into()),
                    };
                    if let Err(e) = served {
                        tracing::debug!("kubelet API connection: {e}");
                    }
                });
            }
            Err(e) => {
                tracing::warn!("kubelet API: accept: {e}");
                // Out of file descriptors, most likely: give the others time to end.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection<B: Backend>(
    socket: TcpStream,
    tls: &Tls,
    service: Arc<Service<B>>,
    visitor: Visitor,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    socket.set_nodelay(true)?;
    keep_alive(&socket)?;
    let acceptor = tokio_rustls::TlsAcceptor::from(tls.config.clone());
    let stream = tokio::time::timeout(PATIENCE, acceptor.accept(socket)).await??;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let holder = Arc::new(tls.identify(chain));
    let max_head = if holder.is_some() { MAX_HEAD } else { STRANGERS_HEAD };
    // A stranger until the first request of somebody who is known.
    let visitor = Arc::new(Mutex::new(Some(visitor)));
    let (stream, query): (Box<dyn Stream>, _) = if holder.is_some() {
        let (stream, query) = tokio::time::timeout(PATIENCE, head::shorten(stream)).await??;
        (Box::new(stream), query)
    } else {
        (Box::new(stream), None)
    };
    // Of the first request: clients open a connection for each exec.
    let query = Mutex::new(query);
    let handle = service_fn(move |mut request: Request<Incoming>| {
        let (service, holder, visitor) = (service.clone(), holder.clone(), visitor.clone());
        if let Some(query) = query.lock().unwrap_or_else(PoisonError::into_inner).take() {
            request.extensions_mut().insert(query);
        }
        async move {
            let admitted = service.admit(holder.as_ref().as_ref(), &request).await;
            if admitted != Err(Refusal::Unauthorized) {
                drop(visitor.lock().unwrap_or_else(PoisonError::into_inner).take());
            }
            Ok::<_, Infallible>(answer(&service, admitted, request).await)
        }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .max_buf_size(max_head)
        .serve_connection(TokioIo::new(stream), handle)
        .with_upgrades()
        .await?;
    Ok(())
}

/// A client whose machine is gone is found out by the kernel. No user timeout: it would end connections whose
/// client is only slow to read.
fn keep_alive(socket: &TcpStream) -> std::io::Result<()> {
    setsockopt(socket, sockopt::KeepAlive, &true)?;
    setsockopt(socket, sockopt::TcpKeepIdle, &60)?;
    setsockopt(socket, sockopt::TcpKeepInterval, &15)?;
    setsockopt(socket, sockopt::TcpKeepCount, &4)?;
    Ok(())
}

async fn answer<B: Backend>(
    service: &Arc<Service<B>>,
    admitted: Result<(), Refusal>,
    request: Request<Incoming>,
) -> Response<Body> {
    match admitted {
        Ok(()) => service.serve(request).await,
        Err(Refusal::Unauthorized) => {
            let mut answer = text(StatusCode::UNAUTHORIZED, "Unauthorized");
            // The next try costs a handshake.
            answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            answer
        }
        Err(Refusal::Forbidden(why)) => text(StatusCode::FORBIDDEN, why),
        Err(Refusal::Unknown(why)) => text(StatusCode::INTERNAL_SERVER_ERROR, why),
    }
}
