//! Asks signers for pods' certificates by PodCertificateRequests. What to ask for and when is
//! [`crate::render::certificate`]'s to say.

use super::failed::{FetchError, failed};
use crate::render::certificate::{Answer, Asked, CertificateError, CertificateKey, Certificates};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{PodCertificateRequest, PodCertificateRequestSpec};
use k8s_openapi::api::core::v1::{Node, Pod, PodCertificateProjection, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, ResourceExt};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use std::collections::BTreeMap;

/// A renewal is put off by up to so many seconds, so that not all pods of a Deployment ask at once.
const JITTER: i64 = 300;

/// Brings a pod's certificates on: looks after requests that are under way and makes those that are due. Gives the refusals
/// of renewals, which no volume shows.
///
/// # Errors
/// Something could not be asked of the API server.
pub(crate) async fn advance(
    client: &Client,
    pod: &Pod,
    wanted: &BTreeMap<CertificateKey, PodCertificateProjection>,
    certificates: &mut Certificates,
) -> Result<Vec<CertificateError>, FetchError> {
    certificates.keep(wanted);
    let namespace = pod.namespace().unwrap_or_default();
    let requests: Api<PodCertificateRequest> = Api::namespaced(client.clone(), &namespace);
    let mut refusals = Vec::new();
    for (key, source) in wanted {
        let now = Timestamp::now();
        if let Some(name) = certificates.request(key).map(|asked| asked.name.clone()) {
            let found = requests.get_opt(&name).await.map_err(|e| failed("podcertificaterequest", &name, e))?;
            let jitter = i64::try_from(hpk_link::random() % JITTER.unsigned_abs()).unwrap_or(0);
            if let Err(refusal) = certificates.answered(key, Answer::of(found.as_ref()), now, jitter) {
                refusals.push(refusal);
            }
        }
        if certificates.wants(key, now) {
            let asked = ask(client, &requests, pod, source).await?;
            certificates.asked(key.clone(), asked);
        }
    }
    Ok(refusals)
}

/// A new key, and the request for its certificate.
async fn ask(
    client: &Client,
    requests: &Api<PodCertificateRequest>,
    pod: &Pod,
    source: &PodCertificateProjection,
) -> Result<Asked, FetchError> {
    let spec = pod.spec.clone().unwrap_or_default();
    let account = spec.service_account_name.unwrap_or_else(|| "default".to_owned());
    let node = spec.node_name.unwrap_or_default();
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let nodes: Api<Node> = Api::all(client.clone());
    let account_uid = accounts.get(&account).await.map_err(|e| failed("service account", &account, e))?.uid();
    let node_uid = nodes.get(&node).await.map_err(|e| failed("node", &node, e))?.uid();
    let (key, request) = key_and_proof(&source.key_type)
        .map_err(|e| failed("key for podCertificate", &source.key_type, kube::Error::Service(Box::new(e))))?;
    let request = PodCertificateRequest {
        metadata: ObjectMeta {
            generate_name: Some("req-".to_owned()),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Pod".to_owned(),
                name: pod.name_any(),
                uid: pod.uid().unwrap_or_default(),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        spec: PodCertificateRequestSpec {
            max_expiration_seconds: source.max_expiration_seconds,
            node_name: node,
            node_uid: node_uid.unwrap_or_default(),
            pod_name: pod.name_any(),
            pod_uid: pod.uid().unwrap_or_default(),
            service_account_name: account,
            service_account_uid: account_uid.unwrap_or_default(),
            signer_name: source.signer_name.clone(),
            stub_pkc_s10_request: ByteString(request),
            unverified_user_annotations: source.user_annotations.clone(),
        },
        status: None,
    };
    let made = requests
        .create(&PostParams::default(), &request)
        .await
        .map_err(|e| failed("podcertificaterequest", &source.signer_name, e))?;
    Ok(Asked { name: made.name_any(), version: made.resource_version(), key, at: Timestamp::now() })
}

/// A private key, PEM, and a PKCS#10 request that says nothing but that its sender has the key, DER.
fn key_and_proof(key_type: &str) -> Result<(String, Vec<u8>), rcgen::Error> {
    let algorithm = match key_type {
        "ECDSAP256" => &rcgen::PKCS_ECDSA_P256_SHA256,
        "ECDSAP384" => &rcgen::PKCS_ECDSA_P384_SHA384,
        "ED25519" => &rcgen::PKCS_ED25519,
        _ => return Err(rcgen::Error::KeyGenerationUnavailable),
    };
    let key = KeyPair::generate_for(algorithm)?;
    let mut empty = CertificateParams::new(Vec::new())?;
    empty.distinguished_name = DistinguishedName::new();
    let request = empty.serialize_request(&key)?;
    Ok((key.serialize_pem(), request.der().to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::certificate::KEY_TYPES;

    #[test]
    fn keys_of_all_types_prove_themselves_and_say_no_more() {
        for name in KEY_TYPES {
            let (key, request) = key_and_proof(name).expect(name);
            let key = KeyPair::from_pem(&key).expect(name);
            let der = key.public_key_raw();
            assert!(request.windows(der.len()).any(|part| part == der), "{name}: the request is for another key");
            assert!(!String::from_utf8_lossy(&request).contains("rcgen"), "{name}");
        }
        assert!(key_and_proof("RSA4096").is_err());
    }
}
