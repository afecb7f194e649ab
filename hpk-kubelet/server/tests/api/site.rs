//! Fakes, named so: `FakeApiServer` answers TokenReview and SubjectAccessReview, `FakeSupervisor` answers the control
//! socket. The real ones judge in the end-to-end cases with kubectl.

use bytes::Bytes;
use hpk_api::control::{Answer, Greeting, Reply, Request, StreamEnd};
use hpk_api::frame::{self, channel};
use hpk_server::{Backend, ConnectError, LoopEnded, NodeStats, ServerConfig, SupervisorStream, TlsFiles};
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;

/// Token `good` is user `reader`, who may use subresource `metrics` only; `root` may do all.
async fn fake_api_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let answer = service_fn(|request: hyper::Request<hyper::body::Incoming>| async move {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let mut review: Value = serde_json::from_slice(&body).unwrap();
                review["status"] = if review["kind"] == "TokenReview" {
                    match review["spec"]["token"].as_str() {
                        Some("good") => json!({"authenticated": true, "user": {"username": "reader"}}),
                        _ => json!({"authenticated": false}),
                    }
                } else {
                    let subresource = &review["spec"]["resourceAttributes"]["subresource"];
                    json!({"allowed": review["spec"]["user"] == "root" || subresource == "metrics"})
                };
                let bytes = Bytes::from(review.to_string());
                let response = hyper::Response::builder().header("content-type", "application/json");
                Ok::<_, Infallible>(response.body(Full::new(bytes)).unwrap())
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), answer));
        }
    });
    address
}

/// Answers one request: logs are two lines; exec and attach echo their stdin and exit with 7 at its end; a port echoes.
async fn fake_supervisor(stream: tokio::io::DuplexStream) {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).await.unwrap();
    let Greeting::Hello { version } = serde_json::from_str(&line).unwrap();
    assert_eq!(version, hpk_api::VERSION);
    line.clear();
    stream.read_line(&mut line).await.unwrap();
    let request: Request = serde_json::from_str(&line).unwrap();
    let mut out = serde_json::to_vec(&Reply::Ok(Answer::Streaming)).unwrap();
    out.push(b'\n');
    let end = |end: &StreamEnd, out: &mut Vec<u8>| {
        frame::encode(channel::ERROR, &serde_json::to_vec(end).unwrap(), out);
    };
    match request {
        Request::Logs(options) => {
            assert_eq!(options.container, "c");
            frame::encode(channel::STDOUT, b"one\n", &mut out);
            frame::encode(channel::STDOUT, b"two\n", &mut out);
            end(&StreamEnd::Success, &mut out);
            stream.write_all(&out).await.unwrap();
        }
        request @ (Request::Exec(_) | Request::Attach(_) | Request::PortForward { .. }) => {
            let last = match request {
                Request::Exec(options) => {
                    assert_eq!(options.command, ["sh", "-c", "cat"]);
                    StreamEnd::Exit { code: 7 }
                }
                Request::PortForward { port } => {
                    assert_eq!(port, 8080);
                    StreamEnd::Success
                }
                _ => StreamEnd::Success,
            };
            stream.write_all(&out).await.unwrap();
            loop {
                let mut head = [0; frame::HEADER];
                stream.read_exact(&mut head).await.unwrap();
                let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
                let mut payload = vec![0; length];
                stream.read_exact(&mut payload).await.unwrap();
                let mut out = Vec::new();
                if head[0] == channel::CLOSE {
                    frame::encode(channel::CLOSE, &[channel::STDOUT], &mut out);
                    end(&last, &mut out);
                    stream.write_all(&out).await.unwrap();
                    break;
                }
                frame::encode(channel::STDOUT, &payload, &mut out);
                stream.write_all(&out).await.unwrap();
            }
        }
        other => panic!("{other:?}"),
    }
    // Open until the client hangs up.
    let _ = stream.read_to_end(&mut Vec::new()).await;
}

struct FakeKubelet {
    pod: Arc<Pod>,
}

impl Backend for FakeKubelet {
    async fn pods(&self) -> Vec<Arc<Pod>> {
        vec![self.pod.clone()]
    }

    async fn find_pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>> {
        ((namespace, name) == ("n", "p")).then(|| self.pod.clone())
    }

    async fn open_supervisor(&self, uid: &str) -> Result<SupervisorStream, ConnectError> {
        assert_eq!(uid, "u");
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        tokio::spawn(fake_supervisor(theirs));
        Ok(Box::new(ours))
    }

    fn log_folder(&self) -> PathBuf {
        PathBuf::from("/nonexistent")
    }

    fn pod_folder(&self, _: &str) -> PathBuf {
        PathBuf::from("/nonexistent")
    }

    async fn node_stats(&self) -> NodeStats {
        NodeStats::default()
    }

    async fn metrics(&self) -> String {
        "ours 1\n".to_owned()
    }

    async fn healthy(&self) -> Result<(), LoopEnded> {
        Ok(())
    }

    fn configuration(&self) -> Value {
        json!({"kubeletconfig": {}})
    }
}

pub(crate) struct Authority(Issuer<'static, KeyPair>, pub(crate) String);

pub(crate) fn authority() -> Authority {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    Authority(Issuer::new(params, key), certificate.pem())
}

/// Certificate and key, PEM.
pub(crate) fn leaf(authority: &Authority, name: &str) -> (String, String) {
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, &authority.0).unwrap();
    (certificate.pem(), key.serialize_pem())
}

pub(crate) struct Site {
    pub(crate) address: SocketAddr,
    pub(crate) ca: Authority,
    pub(crate) front_proxy: Authority,
    _folder: tempfile::TempDir,
}

pub(crate) async fn site() -> Site {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| -> PathBuf {
        let path: &Path = folder.path();
        std::fs::write(path.join(name), text).unwrap();
        path.join(name)
    };
    let (ca, front_proxy) = (authority(), authority());
    let (certificate, key) = leaf(&ca, "kubelet");
    let tls = TlsFiles {
        certificate: put("s.crt", &certificate),
        key: put("s.key", &key),
        client_ca: put("ca.crt", &ca.1),
        front_proxy_ca: Some(put("fp.crt", &front_proxy.1)),
    };
    let _ = rustls::crypto::ring::default_provider().install_default();
    let api = format!("http://{}", fake_api_server().await).parse().unwrap();
    let client = kube::Client::try_from(kube::Config::new(api)).unwrap();
    let pod = json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u"},
        "spec": {"containers": [{"name": "c"}]},
        "status": {"phase": "Running", "containerStatuses": [{"name": "c", "image": "", "imageID": "",
            "ready": true, "restartCount": 0, "state": {"running": {}}}]},
    });
    let kubelet = FakeKubelet { pod: Arc::new(serde_json::from_value(pod).unwrap()) };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let config = ServerConfig { nodes: vec!["hpk".to_owned()], tls, client };
    hpk_server::start(listener, config, Arc::new(kubelet)).unwrap();
    Site { address, ca, front_proxy, _folder: folder }
}

impl Site {
    pub(crate) async fn connect(&self, identity: Option<(String, String)>) -> TlsStream<TcpStream> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.ca.1.as_bytes()).unwrap()).unwrap();
        let config = rustls::ClientConfig::builder().with_root_certificates(roots);
        let config = match identity {
            Some((certificate, key)) => config
                .with_client_auth_cert(
                    vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
                    PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
                )
                .unwrap(),
            None => config.with_no_client_auth(),
        };
        let socket = TcpStream::connect(self.address).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        connector.connect("localhost".try_into().unwrap(), socket).await.unwrap()
    }

    /// Status line's code and everything after it.
    pub(crate) async fn ask(&self, identity: Option<(String, String)>, request: &str, headers: &str) -> (u16, String) {
        let mut stream = self.connect(identity).await;
        let text = format!("{request} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n");
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        (answer["HTTP/1.1 ".len()..][..3].parse().unwrap(), answer)
    }

    pub(crate) fn user(&self, name: &str) -> Option<(String, String)> {
        Some(leaf(&self.ca, name))
    }
}
