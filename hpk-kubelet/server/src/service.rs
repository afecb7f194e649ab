//! One request: admitted, routed, answered.

use crate::auth::{Auth, Refusal};
use crate::backend::{Backend, FrameReader, FrameWriter, LOST};
use crate::head;
use crate::logs;
use crate::metrics_api::{self, MetricsApi};
use crate::node_logs;
use crate::probes;
use crate::prometheus::{self, Family};
use crate::respond::{Body, json, method_not_allowed, text, with_type};
use crate::route::{self, NoRoute, Query, Route, Target};
use crate::stats::{self, NodeCpu, Rates};
use crate::stream::forward::{self, Dial};
use crate::stream::remote::{self, Wanted};
use crate::stream::{IDLE, upgrade};
use crate::tls::Holder;
use hpk_api::control::{AttachOptions, ErrorCode, ExecOptions, Request as ControlRequest, StreamEnd};
use hpk_api::frame::channel;
use hpk_control::stream_end;
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Output of `/run` that is kept, bytes.
const RUN_OUTPUT: usize = 16 << 20;

pub(crate) struct Service<B> {
    nodes: Vec<String>,
    auth: Auth,
    backend: Arc<B>,
    rates: Rates,
    node_cpu: NodeCpu,
    metrics_api: MetricsApi,
    requests: Counters,
}

/// Requests by their kind, for `/metrics`.
#[derive(Default)]
struct Counters {
    logs: AtomicU64,
    exec: AtomicU64,
    attach: AtomicU64,
    port_forward: AtomicU64,
    other: AtomicU64,
}

impl<B: Backend> Service<B> {
    pub(crate) fn new(nodes: Vec<String>, auth: Auth, backend: Arc<B>) -> Self {
        Self {
            nodes,
            auth,
            backend,
            rates: Rates::default(),
            node_cpu: NodeCpu::default(),
            metrics_api: MetricsApi::default(),
            requests: Counters::default(),
        }
    }

    fn first_node(&self) -> &str {
        self.nodes.first().map_or("", String::as_str)
    }

    /// Whether the caller may make this request.
    pub(crate) async fn admit<T>(&self, holder: Option<&Holder>, request: &Request<T>) -> Result<(), Refusal> {
        let path = request.uri().path();
        let user = self.auth.authenticate(holder, path, request.headers()).await?;
        self.auth.authorize(&user, request.method().as_str(), path).await
    }

    pub(crate) async fn serve(&self, request: Request<Incoming>) -> Response<Body> {
        if metrics_api::is_path(request.uri().path()) {
            let query = Query::parse(head::query(&request));
            let (method, path) = (request.method().as_str(), request.uri().path());
            return self.metrics_api.serve(&self.nodes, &self.backend, method, path, &query).await;
        }
        let route = match route::find(request.method().as_str(), request.uri().path()) {
            Ok(route) => route,
            Err(NoRoute::NotFound) => return text(StatusCode::NOT_FOUND, "404 page not found\n"),
            Err(NoRoute::MethodNotAllowed(allow)) => return method_not_allowed(allow),
            Err(NoRoute::Disabled(why)) => return text(StatusCode::METHOD_NOT_ALLOWED, why),
        };
        self.count(&route);
        let query = Query::parse(head::query(&request));
        match route {
            Route::Health(check) => self.health(check.as_deref()).await,
            Route::Pods => json(&list(self.backend.pods().await.iter().map(Arc::as_ref))),
            Route::RunningPods => {
                let pods = self.backend.pods().await;
                json(&list(pods.iter().map(Arc::as_ref).filter(|p| stats::is_running(p))))
            }
            Route::Logs { namespace, pod, container } => {
                logs::serve(&self.backend, &namespace, &pod, &container, &query).await
            }
            Route::Exec(target) => self.remote(request, &target, &query, Kind::Exec).await,
            Route::Attach(target) => self.remote(request, &target, &query, Kind::Attach).await,
            Route::Run(target) => self.run(&target, &query).await,
            Route::PortForward { namespace, pod, uid } => {
                self.port_forward(request, &namespace, &pod, uid.as_deref(), &query).await
            }
            Route::Summary => {
                let (samples, node) = tokio::join!(stats::collect(&self.backend), self.backend.node_stats());
                json(&stats::summary(
                    self.first_node(),
                    &node,
                    &samples,
                    (&self.rates, &self.node_cpu),
                    Timestamp::now(),
                ))
            }
            Route::ResourceMetrics => {
                let samples = stats::collect(&self.backend).await;
                metrics(stats::resource(&self.node_cpu, &samples, Timestamp::now()))
            }
            Route::CadvisorMetrics => {
                let (samples, node) = tokio::join!(stats::collect(&self.backend), self.backend.node_stats());
                metrics(stats::cadvisor(&node, &samples, Timestamp::now()))
            }
            Route::Metrics => metrics(self.own_metrics().await),
            Route::ProbeMetrics => metrics(probes::render(&probes::collect(&self.backend).await)),
            Route::Configz => json(&self.backend.configuration()),
            Route::NodeLogs(name) => {
                let folder = self.backend.log_folder();
                let served = tokio::task::spawn_blocking(move || node_logs::serve(&folder, name.as_deref())).await;
                served.unwrap_or_else(|e| text(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))
            }
        }
    }

    fn count(&self, route: &Route) {
        let counter = match route {
            Route::Logs { .. } => &self.requests.logs,
            Route::Exec(_) => &self.requests.exec,
            Route::Attach(_) => &self.requests.attach,
            Route::PortForward { .. } => &self.requests.port_forward,
            _ => &self.requests.other,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    async fn own_metrics(&self) -> String {
        let mut requests =
            Family::counter("kubelet_http_requests_total", "[ALPHA] Number of the http requests received");
        for (path, counter) in [
            ("containerLogs", &self.requests.logs),
            ("exec", &self.requests.exec),
            ("attach", &self.requests.attach),
            ("portForward", &self.requests.port_forward),
            ("other", &self.requests.other),
        ] {
            requests.sample(&[("path", path), ("server_type", "readwrite")], counter.load(Ordering::Relaxed));
        }
        let pods = self.backend.pods().await;
        let mut running =
            Family::gauge("kubelet_running_pods", "[BETA] Number of pods that have a running pod sandbox");
        running.sample(&[], pods.iter().filter(|p| stats::is_running(p)).count());
        let mut node = Family::gauge("kubelet_node_name", "[ALPHA] The node's name. The count is always 1.");
        node.sample(&[("node", self.first_node())], 1);
        let mut out = prometheus::text([requests, running, node]);
        out.push_str(&self.backend.metrics().await);
        out.push_str(&stats::volumes(&self.backend).await);
        out
    }

    async fn health(&self, check: Option<&str>) -> Response<Body> {
        match check {
            Some("ping" | "log") => text(StatusCode::OK, "ok"),
            _ => match self.backend.healthy().await {
                Ok(()) => text(StatusCode::OK, "ok"),
                Err(why) => text(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    format!("[+]ping ok\n[+]log ok\n[-]syncloop failed: {why}\nhealthz check failed\n"),
                ),
            },
        }
    }

    /// The pod of a path, checked against the uid when one is given.
    async fn pod(&self, namespace: &str, name: &str, uid: Option<&str>) -> Result<Arc<Pod>, Response<Body>> {
        let pod = self
            .backend
            .find_pod(namespace, name)
            .await
            .ok_or_else(|| text(StatusCode::NOT_FOUND, "pod does not exist"))?;
        match uid {
            Some(uid) if pod.metadata.uid.as_deref() != Some(uid) => Err(text(StatusCode::NOT_FOUND, "pod not found")),
            _ => Ok(pod),
        }
    }

    async fn remote(
        &self,
        mut request: Request<Incoming>,
        target: &Target,
        query: &Query,
        kind: Kind,
    ) -> Response<Body> {
        let wanted = match wanted(query) {
            Ok(wanted) => wanted,
            Err(why) => return text(StatusCode::BAD_REQUEST, why),
        };
        let pod = match self.pod(&target.namespace, &target.pod, None).await {
            Ok(pod) => pod,
            Err(response) => return response,
        };
        let uid_fits = target.uid.as_deref().is_none_or(|uid| pod.metadata.uid.as_deref() == Some(uid));
        if !uid_fits || !logs::has_container(&pod, &target.container) {
            // Upstream answers 500: its runtime's error has no code.
            return text(StatusCode::INTERNAL_SERVER_ERROR, format!("container not found (\"{}\")", target.container));
        }
        let (protocol, response) = match upgrade::remote(request.headers()) {
            Ok(agreed) => agreed,
            Err(refused) => return refused.response(),
        };
        let what = control_request(kind, target, query, wanted);
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        // Asked before the upgrade, so that a container that does not run is an HTTP error.
        let session = match self.open(&uid, &what).await {
            Ok(session) => session,
            Err(response) => return response,
        };
        let upgraded = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            match upgraded.await {
                Ok(io) => {
                    let io = Box::new(TokioIo::new(io));
                    let run = remote::serve(protocol, io, wanted, std::future::ready(Ok(session)));
                    if tokio::time::timeout(IDLE, run).await.is_err() {
                        tracing::info!("a streaming session ended after {} s", IDLE.as_secs());
                    }
                }
                Err(e) => tracing::debug!("upgrade: {e}"),
            }
        });
        response
    }

    /// Asks a supervisor for a session.
    async fn open(&self, uid: &str, what: &ControlRequest) -> Result<(FrameReader, FrameWriter), Response<Body>> {
        let stream = self
            .backend
            .open_session(uid)
            .await
            .map_err(|why| text(StatusCode::INTERNAL_SERVER_ERROR, why.to_string()))?;
        match hpk_control::stream::request(stream, what).await {
            Ok((_, reader, writer)) => Ok((reader, writer)),
            Err(e) => {
                let status = match e.code() {
                    Some(ErrorCode::NotFound) => StatusCode::NOT_FOUND,
                    Some(ErrorCode::BadRequest) => StatusCode::BAD_REQUEST,
                    _ => StatusCode::INTERNAL_SERVER_ERROR,
                };
                Err(text(status, e.to_string()))
            }
        }
    }

    /// `/run`: a command without a stream; its output when it succeeds.
    async fn run(&self, target: &Target, query: &Query) -> Response<Body> {
        let pod = match self.pod(&target.namespace, &target.pod, None).await {
            Ok(pod) => pod,
            Err(response) => return response,
        };
        let command = query.get("cmd").unwrap_or_default().split(' ').map(str::to_owned).collect();
        let options = ExecOptions {
            container: target.container.clone(),
            command,
            stdout: true,
            stderr: true,
            ..ExecOptions::default()
        };
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let (mut reader, _writer) = match self.open(&uid, &ControlRequest::Exec(options)).await {
            Ok(halves) => halves,
            Err(response) => return response,
        };
        let mut output = Vec::new();
        loop {
            match reader.next().await {
                Ok(Some((channel::STDOUT | channel::STDERR, bytes))) => {
                    let room = RUN_OUTPUT.saturating_sub(output.len());
                    output.extend_from_slice(&bytes[..bytes.len().min(room)]);
                }
                Ok(Some((channel::ERROR, payload))) => {
                    let text_of = String::from_utf8_lossy(&output).into_owned();
                    return match stream_end(&payload) {
                        StreamEnd::Success => with_type(StatusCode::OK, "application/json", output),
                        StreamEnd::Exit { code } => text(
                            StatusCode::INTERNAL_SERVER_ERROR,
                            format!("command '{}' exited with {code}: {text_of}", query.get("cmd").unwrap_or_default()),
                        ),
                        StreamEnd::Failed { message } => text(StatusCode::INTERNAL_SERVER_ERROR, message),
                    };
                }
                Ok(Some(_)) => {}
                Ok(None) => return text(StatusCode::INTERNAL_SERVER_ERROR, LOST),
                Err(e) => return text(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()),
            }
        }
    }

    async fn port_forward(
        &self,
        mut request: Request<Incoming>,
        namespace: &str,
        name: &str,
        uid: Option<&str>,
        query: &Query,
    ) -> Response<Body> {
        let agreed = upgrade::forward(request.headers());
        let tunnel = matches!(agreed, Ok((upgrade::Protocol::WebSocketTunnel, _)));
        let ports = if upgrade::is_websocket(request.headers()) && !tunnel {
            match ports(query) {
                Ok(ports) => ports,
                Err(why) => return text(StatusCode::BAD_REQUEST, why),
            }
        } else {
            Vec::new()
        };
        let pod = match self.pod(namespace, name, uid).await {
            Ok(pod) => pod,
            Err(response) => return response,
        };
        let (protocol, response) = match agreed {
            Ok(agreed) => agreed,
            Err(refused) => return refused.response(),
        };
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        // One try now, so that a pod that does not run is an HTTP error; later ones fail each for itself.
        if let Err(why) = self.backend.open_session(&uid).await {
            return text(StatusCode::INTERNAL_SERVER_ERROR, why.to_string());
        }
        let who = forward::Pod { name: name.to_owned(), uid: uid.clone() };
        let backend = self.backend.clone();
        let dial: Dial = Arc::new(move || {
            let (backend, uid) = (backend.clone(), uid.clone());
            Box::pin(async move { backend.open_session(&uid).await })
        });
        let upgraded = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            match upgraded.await {
                Ok(io) => forward::serve(protocol, Box::new(TokioIo::new(io)), who, ports, dial).await,
                Err(e) => tracing::debug!("upgrade: {e}"),
            }
        });
        response
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Exec,
    Attach,
}

fn control_request(kind: Kind, target: &Target, query: &Query, wanted: Wanted) -> ControlRequest {
    let container = target.container.clone();
    let Wanted { stdin, stdout, stderr, tty } = wanted;
    match kind {
        Kind::Exec => {
            let command = query.all("command");
            ControlRequest::Exec(ExecOptions { container, command, stdin, stdout, stderr, tty })
        }
        Kind::Attach => ControlRequest::Attach(AttachOptions { container, stdin, stdout, stderr, tty }),
    }
}

/// Streams of exec and attach; a terminal has no separate stderr.
fn wanted(query: &Query) -> Result<Wanted, &'static str> {
    let tty = query.is_one("tty");
    let wanted = Wanted {
        stdin: query.is_one("input"),
        stdout: query.is_one("output"),
        stderr: query.is_one("error") && !tty,
        tty,
    };
    if wanted.stdin || wanted.stdout || wanted.stderr {
        Ok(wanted)
    } else {
        Err("you must specify at least 1 of stdin, stdout, stderr")
    }
}

/// Ports of a WebSocket port-forward: `port=80,81&port=82`.
fn ports(query: &Query) -> Result<Vec<u16>, String> {
    let values = query.all("port");
    if values.is_empty() {
        return Err("query parameter \"port\" is required".to_owned());
    }
    let mut ports = Vec::new();
    for value in &values {
        if value.is_empty() {
            return Err("query parameter \"port\" cannot be empty".to_owned());
        }
        for part in value.split(',') {
            match part.parse::<u16>() {
                Ok(0) => return Err(format!("port {value:?} must be > 0")),
                Ok(port) => ports.push(port),
                Err(e) => return Err(format!("unable to parse {value:?} as a port: {e}")),
            }
        }
    }
    // Channel numbers are one byte, two for each port.
    if ports.len() > 127 {
        return Err("too many ports".to_owned());
    }
    Ok(ports)
}

/// A v1 PodList.
fn list<'a>(pods: impl Iterator<Item = &'a Pod>) -> serde_json::Value {
    let items: Vec<_> = pods.filter_map(|p| serde_json::to_value(p).ok()).collect();
    serde_json::json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})
}

fn metrics(body: String) -> Response<Body> {
    with_type(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8; escaping=underscores", body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_asked_for_by_ones() {
        let parse = |q: &str| wanted(&Query::parse(Some(q)));
        assert_eq!(
            parse("input=1&output=1&error=1&tty=1"),
            Ok(Wanted { stdin: true, stdout: true, stderr: false, tty: true })
        );
        assert!(parse("output=1&error=1").is_ok_and(|w| w.stderr && !w.stdin));
        assert!(parse("output=true").is_err());
        assert!(parse("tty=1").is_err());
    }

    #[test]
    fn ports_are_read_from_the_query() {
        let parse = |q: &str| ports(&Query::parse(Some(q)));
        assert_eq!(parse("port=80,81&port=82"), Ok(vec![80, 81, 82]));
        for bad in ["", "port=", "port=0", "port=99999", "port=x"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
