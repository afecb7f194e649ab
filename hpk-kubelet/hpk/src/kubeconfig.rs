//! kubeconfig files. Pure: text from data.
//!
//! Certificates and keys are embedded, so that a file can be used from anywhere the user can read it.

use base64::{Engine, engine::general_purpose::STANDARD};

/// What goes into one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kubeconfig<'a> {
    /// `https://host:port`
    pub server: &'a str,
    /// Name of the cluster and of the context.
    pub cluster: &'a str,
    /// Name of the user entry.
    pub user: &'a str,
    /// PEM.
    pub ca: &'a [u8],
    /// PEM.
    pub cert: &'a [u8],
    /// PEM.
    pub key: &'a [u8],
}

impl Kubeconfig<'_> {
    /// As YAML. Names are quoted as JSON strings, which YAML 1.2 contains.
    #[must_use]
    pub(crate) fn render(&self) -> String {
        let quote = |s: &str| serde_json::Value::from(s).to_string();
        let (cluster, user, server) = (quote(self.cluster), quote(self.user), quote(self.server));
        format!(
            "apiVersion: v1\n\
             kind: Config\n\
             current-context: {cluster}\n\
             clusters:\n\
             - name: {cluster}\n\
             \x20 cluster:\n\
             \x20   server: {server}\n\
             \x20   certificate-authority-data: {ca}\n\
             contexts:\n\
             - name: {cluster}\n\
             \x20 context:\n\
             \x20   cluster: {cluster}\n\
             \x20   user: {user}\n\
             users:\n\
             - name: {user}\n\
             \x20 user:\n\
             \x20   client-certificate-data: {cert}\n\
             \x20   client-key-data: {key}\n",
            ca = STANDARD.encode(self.ca),
            cert = STANDARD.encode(self.cert),
            key = STANDARD.encode(self.key),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubernetes_own_reader_understands_it() {
        let text = Kubeconfig {
            server: "https://10.77.0.1:6443",
            cluster: "hpk-my: \"site\"",
            user: "system:node:x",
            ca: b"CA",
            cert: b"CRT",
            key: b"KEY",
        }
        .render();
        let read = kube::config::Kubeconfig::from_yaml(&text).unwrap();
        assert_eq!(read.current_context.as_deref(), Some("hpk-my: \"site\""));
        let cluster = read.clusters[0].cluster.as_ref().unwrap();
        assert_eq!(cluster.server.as_deref(), Some("https://10.77.0.1:6443"));
        assert_eq!(cluster.certificate_authority_data.as_deref(), Some("Q0E="));
        assert_eq!(read.auth_infos[0].auth_info.as_ref().unwrap().client_certificate_data.as_deref(), Some("Q1JU"));
        assert_eq!(read.contexts[0].context.as_ref().unwrap().user.as_deref(), Some("system:node:x"));
    }
}
