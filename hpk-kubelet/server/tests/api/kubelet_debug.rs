//! The API with a client that is not kubectl: kube's own, which speaks to kubelets directly.

use crate::site::{Site, site};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::AsyncReadExt as _;
use kube::api::{AttachParams, LogParams};
use kube::config::AuthInfo;
use kube::core::kubelet_debug::KubeletDebugParams;
use kube::{Client, Config};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const POD: KubeletDebugParams<'static> = KubeletDebugParams { name: "p", namespace: "n", pod_uid: None };

fn client(site: &Site) -> Client {
    let (certificate, key) = site.user("root").unwrap();
    let mut config = Config::new(format!("https://localhost:{}", site.address.port()).parse().unwrap());
    config.root_cert = Some(vec![pem::contents(&site.ca.1)]);
    config.auth_info = AuthInfo {
        client_certificate_data: Some(STANDARD.encode(certificate)),
        client_key_data: Some(STANDARD.encode(key).into()),
        ..AuthInfo::default()
    };
    Client::try_from(config).unwrap()
}

mod pem {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;

    /// DER of the one certificate in a text.
    pub(super) fn contents(text: &str) -> Vec<u8> {
        CertificateDer::from_pem_slice(text.as_bytes()).unwrap().to_vec()
    }
}

#[tokio::test]
async fn logs() {
    let site = site().await;
    let mut text = String::new();
    let logs = client(&site).kubelet_node_logs(&POD, "c", &LogParams::default()).await.unwrap();
    std::pin::pin!(logs).read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "one\ntwo\n");
}

#[tokio::test]
async fn exec_with_its_exit_code() {
    let site = site().await;
    let params = AttachParams::default().stdin(true).stderr(false);
    let command = ["sh", "-c", "cat"];
    let mut process = client(&site).kubelet_node_exec(&POD, "c", command, &params).await.unwrap();
    let (mut stdin, mut stdout) = (process.stdin().unwrap(), process.stdout().unwrap());
    let status = process.take_status().unwrap();
    stdin.write_all(b"hello").await.unwrap();
    stdin.shutdown().await.unwrap();
    drop(stdin);
    let mut echoed = Vec::new();
    stdout.read_to_end(&mut echoed).await.unwrap();
    assert_eq!(echoed, b"hello");
    let status = status.await.unwrap();
    let causes = status.details.unwrap().causes.unwrap();
    assert_eq!((status.reason.as_deref(), causes[0].message.as_deref()), (Some("NonZeroExitCode"), Some("7")));
}

#[tokio::test]
async fn attach_to_a_running_process() {
    let site = site().await;
    let params = AttachParams::default().stdin(true).stderr(false);
    let mut process = client(&site).kubelet_node_attach(&POD, "c", &params).await.unwrap();
    let (mut stdin, mut stdout) = (process.stdin().unwrap(), process.stdout().unwrap());
    stdin.write_all(b"hello").await.unwrap();
    let mut echoed = [0; 5];
    stdout.read_exact(&mut echoed).await.unwrap();
    assert_eq!(&echoed, b"hello");
}

#[tokio::test]
async fn port_forward_over_the_older_websocket() {
    let site = site().await;
    let mut forwarder = client(&site).kubelet_node_portforward(&POD, &[8080]).await.unwrap();
    let mut stream = forwarder.take_stream(8080).unwrap();
    stream.write_all(b"hello").await.unwrap();
    let mut echoed = [0; 5];
    stream.read_exact(&mut echoed).await.unwrap();
    assert_eq!(&echoed, b"hello");
}
