//! Every field that a pod can have, and what becomes of it. Nothing is ignored in silence: a field is carried out,
//! or refused, or announced by an event, or not the kubelet's.
//!
//! The fields are asked of the API's own types, so the table is complete for the version of Kubernetes that HPK is
//! built for, and the test fails when a newer one has more.

use crate::pods::admit;
use crate::pods::security;
use crate::pods::unsupported::unsupported;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize;
use serde::de::value::Error;
use serde::de::{Deserializer, Visitor};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// What becomes of a field.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// Carried out: the kubelet's sources name it.
    Done,
    /// The API server's, the scheduler's or a controller's business: nothing is left to do on a node.
    Elsewhere,
    /// With such a value (JSON), an event names the field, or the pod is refused by a message that names it.
    Told(&'static str),
    /// A value to be filled in by the code that handles the type in the field: its own rows.
    Inner,
}
use Fate::{Done, Elsewhere, Inner, Told};

/// A type of the API: how to learn its fields, where one of its fields goes in a pod, its rows.
struct Type {
    name: &'static str,
    fields: fn() -> Vec<&'static str>,
    place: fn(Value) -> Value,
    rows: &'static [(&'static str, Fate)],
}

/// A deserializer that gives nothing but the names of the fields that it is asked for.
struct Names<'a>(&'a mut Vec<&'static str>);

impl<'de> Deserializer<'de> for Names<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(serde::de::Error::custom("only structs have names"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Error> {
        self.0.extend_from_slice(fields);
        Err(serde::de::Error::custom("that is all"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

fn names<T: for<'de> Deserialize<'de>>() -> Vec<&'static str> {
    let mut list = Vec::new();
    assert!(T::deserialize(Names(&mut list)).is_err());
    list
}

fn spec(mut part: Value) -> Value {
    if part.get("containers").is_none() {
        part["containers"] = json!([{"name": "c"}]);
    }
    part
}

fn container(mut part: Value) -> Value {
    part["name"] = json!("c");
    spec(json!({"containers": [part]}))
}

fn volume(mut part: Value) -> Value {
    part["name"] = json!("v");
    spec(json!({"volumes": [part]}))
}

fn probe(part: Value) -> Value {
    container(json!({"livenessProbe": part}))
}

fn projection(part: Value) -> Value {
    volume(json!({"projected": {"sources": [part]}}))
}

const TYPES: &[Type] = &[
    Type {
        name: "PodSpec",
        fields: names::<core::PodSpec>,
        place: spec,
        rows: &[
            ("activeDeadlineSeconds", Done),
            ("affinity", Elsewhere),
            ("automountServiceAccountToken", Elsewhere),
            ("containers", Inner),
            ("dnsConfig", Done),
            ("dnsPolicy", Done),
            ("enableServiceLinks", Done),
            ("ephemeralContainers", Inner),
            ("evictionResponders", Elsewhere),
            ("hostAliases", Done),
            ("hostIPC", Told("true")),
            ("hostNetwork", Done),
            ("hostPID", Told("true")),
            // False is how it always is.
            ("hostUsers", Told("true")),
            ("hostname", Done),
            ("hostnameOverride", Done),
            ("imagePullSecrets", Done),
            ("initContainers", Inner),
            ("nodeName", Elsewhere),
            ("nodeSelector", Elsewhere),
            ("os", Told(r#"{"name": "windows"}"#)),
            ("overhead", Done),
            ("preemptionPolicy", Elsewhere),
            ("priority", Done),
            // Becomes `priority` at admission.
            ("priorityClassName", Elsewhere),
            ("readinessGates", Done),
            ("resourceClaims", Told(r#"[{"name": "gpu", "resourceClaimName": "x"}]"#)),
            ("resources", Done),
            ("restartPolicy", Done),
            ("runtimeClassName", Done),
            ("schedulerName", Elsewhere),
            ("schedulingGates", Elsewhere),
            ("schedulingGroup", Elsewhere),
            ("securityContext", Inner),
            // The deprecated name of serviceAccountName; the API server keeps both alike.
            ("serviceAccount", Elsewhere),
            ("serviceAccountName", Done),
            ("setHostnameAsFQDN", Done),
            ("shareProcessNamespace", Done),
            ("subdomain", Done),
            ("terminationGracePeriodSeconds", Done),
            ("tolerations", Elsewhere),
            ("topologySpreadConstraints", Elsewhere),
            ("volumes", Inner),
        ],
    },
    Type {
        name: "PodSecurityContext",
        fields: names::<core::PodSecurityContext>,
        place: |part| spec(json!({"securityContext": part})),
        rows: &[
            ("appArmorProfile", Told(r#"{"type": "Localhost", "localhostProfile": "x"}"#)),
            ("fsGroup", Done),
            ("fsGroupChangePolicy", Done),
            ("runAsGroup", Done),
            ("runAsNonRoot", Done),
            ("runAsUser", Done),
            ("seLinuxChangePolicy", Told(r#""Recursive""#)),
            ("seLinuxOptions", Told(r#"{"level": "s0"}"#)),
            ("seccompProfile", Told(r#"{"type": "Localhost", "localhostProfile": "x"}"#)),
            ("supplementalGroups", Done),
            ("supplementalGroupsPolicy", Told(r#""Strict""#)),
            ("sysctls", Told(r#"[{"name": "kernel.msgmax", "value": "1"}]"#)),
            ("windowsOptions", Told("{}")),
        ],
    },
    Type {
        name: "Container",
        fields: names::<core::Container>,
        place: container,
        rows: &[
            ("args", Done),
            ("command", Done),
            ("env", Inner),
            ("envFrom", Done),
            ("image", Done),
            ("imagePullPolicy", Done),
            ("lifecycle", Done),
            ("livenessProbe", Inner),
            ("name", Done),
            ("ports", Inner),
            ("readinessProbe", Inner),
            ("resizePolicy", Told(r#"[{"resourceName": "cpu", "restartPolicy": "RestartContainer"}]"#)),
            ("resources", Told(r#"{"limits": {"hugepages-2Mi": "2Mi"}}"#)),
            ("restartPolicy", Done),
            ("restartPolicyRules", Done),
            ("securityContext", Inner),
            ("startupProbe", Inner),
            ("stdin", Done),
            ("stdinOnce", Done),
            ("terminationMessagePath", Done),
            ("terminationMessagePolicy", Done),
            ("tty", Done),
            ("volumeDevices", Told(r#"[{"name": "v", "devicePath": "/dev/x"}]"#)),
            ("volumeMounts", Inner),
            ("workingDir", Done),
        ],
    },
    Type {
        name: "SecurityContext",
        fields: names::<core::SecurityContext>,
        place: |part| container(json!({"securityContext": part})),
        rows: &[
            ("allowPrivilegeEscalation", Done),
            ("appArmorProfile", Told(r#"{"type": "Localhost", "localhostProfile": "x"}"#)),
            ("capabilities", Done),
            ("privileged", Done),
            ("procMount", Done),
            ("readOnlyRootFilesystem", Done),
            ("runAsGroup", Done),
            ("runAsNonRoot", Done),
            ("runAsUser", Done),
            ("seLinuxOptions", Told(r#"{"level": "s0"}"#)),
            ("seccompProfile", Told(r#"{"type": "Localhost", "localhostProfile": "x"}"#)),
            ("windowsOptions", Told("{}")),
        ],
    },
    Type {
        name: "ContainerPort",
        fields: names::<core::ContainerPort>,
        place: |mut part| {
            part["containerPort"] = json!(1);
            container(json!({"ports": [part]}))
        },
        rows: &[("containerPort", Done), ("hostIP", Done), ("hostPort", Done), ("name", Done), ("protocol", Elsewhere)],
    },
    Type {
        name: "VolumeMount",
        fields: names::<core::VolumeMount>,
        place: |mut part| {
            part["mountPath"] = json!("/m");
            part["name"] = json!("v");
            container(json!({"volumeMounts": [part]}))
        },
        rows: &[
            ("bindMountOptions", Told(r#"["noexec"]"#)),
            ("mountPath", Done),
            ("mountPropagation", Told(r#""Bidirectional""#)),
            ("name", Done),
            ("readOnly", Done),
            ("recursiveReadOnly", Done),
            ("subPath", Done),
            ("subPathExpr", Done),
        ],
    },
    Type {
        name: "EnvVarSource",
        fields: names::<core::EnvVarSource>,
        place: |part| container(json!({"env": [{"name": "E", "valueFrom": part}]})),
        rows: &[
            ("configMapKeyRef", Done),
            ("fieldRef", Done),
            ("fileKeyRef", Done),
            ("resourceFieldRef", Done),
            ("secretKeyRef", Done),
        ],
    },
    Type {
        name: "EnvFromSource",
        fields: names::<core::EnvFromSource>,
        place: |part| container(json!({"envFrom": [part]})),
        rows: &[("configMapRef", Done), ("prefix", Done), ("secretRef", Done)],
    },
    Type {
        name: "Probe",
        fields: names::<core::Probe>,
        place: probe,
        rows: &[
            ("exec", Done),
            ("failureThreshold", Done),
            ("grpc", Inner),
            ("httpGet", Done),
            ("initialDelaySeconds", Done),
            ("periodSeconds", Done),
            ("successThreshold", Done),
            ("tcpSocket", Done),
            ("terminationGracePeriodSeconds", Done),
            ("timeoutSeconds", Done),
        ],
    },
    Type {
        name: "GRPCAction",
        fields: names::<core::GRPCAction>,
        place: |mut part| {
            part["port"] = json!(1);
            probe(json!({"grpc": part}))
        },
        rows: &[("mode", Told(r#""TLS""#)), ("port", Done), ("service", Done)],
    },
    Type {
        name: "HTTPGetAction",
        fields: names::<core::HTTPGetAction>,
        place: |part| probe(json!({"httpGet": part})),
        rows: &[
            ("host", Done),
            ("httpHeaders", Done),
            ("path", Done),
            ("port", Done),
            ("protocol", Told(r#""H2C""#)),
            ("scheme", Done),
        ],
    },
    Type {
        name: "Lifecycle",
        fields: names::<core::Lifecycle>,
        place: |part| container(json!({"lifecycle": part})),
        rows: &[("postStart", Inner), ("preStop", Inner), ("stopSignal", Done)],
    },
    Type {
        name: "LifecycleHandler",
        fields: names::<core::LifecycleHandler>,
        place: |part| container(json!({"lifecycle": {"preStop": part}})),
        // A tcpSocket hook fails when it runs, by an event, as upstream's does.
        rows: &[("exec", Done), ("httpGet", Done), ("sleep", Done), ("tcpSocket", Done)],
    },
    Type {
        name: "Volume",
        fields: names::<core::Volume>,
        place: volume,
        rows: &[
            ("awsElasticBlockStore", Told(r#"{"volumeID": "x"}"#)),
            ("azureDisk", Told(r#"{"diskName": "x", "diskURI": "x"}"#)),
            ("azureFile", Told(r#"{"secretName": "x", "shareName": "x"}"#)),
            ("cephfs", Told(r#"{"monitors": []}"#)),
            ("cinder", Told(r#"{"volumeID": "x"}"#)),
            ("configMap", Inner),
            ("csi", Told(r#"{"driver": "x"}"#)),
            ("downwardAPI", Inner),
            ("emptyDir", Inner),
            ("ephemeral", Done),
            ("fc", Told("{}")),
            ("flexVolume", Told(r#"{"driver": "x"}"#)),
            ("flocker", Told("{}")),
            ("gcePersistentDisk", Told(r#"{"pdName": "x"}"#)),
            ("gitRepo", Told(r#"{"repository": "x"}"#)),
            ("glusterfs", Told(r#"{"endpoints": "x", "path": "x"}"#)),
            ("hostPath", Inner),
            ("image", Inner),
            ("iscsi", Told(r#"{"iqn": "x", "lun": 0, "targetPortal": "x"}"#)),
            ("name", Done),
            ("nfs", Done),
            ("persistentVolumeClaim", Done),
            ("photonPersistentDisk", Told(r#"{"pdID": "x"}"#)),
            ("portworxVolume", Told(r#"{"volumeID": "x"}"#)),
            ("projected", Inner),
            ("quobyte", Told(r#"{"registry": "x", "volume": "x"}"#)),
            ("rbd", Told(r#"{"image": "x", "monitors": []}"#)),
            ("scaleIO", Told(r#"{"gateway": "x", "secretRef": {"name": "x"}, "system": "x"}"#)),
            ("secret", Inner),
            ("storageos", Told("{}")),
            ("vsphereVolume", Told(r#"{"volumePath": "x"}"#)),
        ],
    },
    Type {
        name: "EmptyDirVolumeSource",
        fields: names::<core::EmptyDirVolumeSource>,
        place: |part| volume(json!({"emptyDir": part})),
        rows: &[("medium", Told(r#""HugePages""#)), ("mode", Told("493")), ("sizeLimit", Done)],
    },
    Type {
        name: "HostPathVolumeSource",
        fields: names::<core::HostPathVolumeSource>,
        place: |part| volume(json!({"hostPath": part})),
        rows: &[("path", Done), ("type", Done)],
    },
    Type {
        name: "ImageVolumeSource",
        fields: names::<core::ImageVolumeSource>,
        place: |part| volume(json!({"image": part})),
        rows: &[("pullPolicy", Done), ("reference", Done)],
    },
    Type {
        name: "ConfigMapVolumeSource",
        fields: names::<core::ConfigMapVolumeSource>,
        place: |part| volume(json!({"configMap": part})),
        rows: &[
            ("defaultMode", Done),
            ("defaultUser", Told("1")),
            ("items", Told(r#"[{"key": "k", "path": "p", "user": 1}]"#)),
            ("name", Done),
            ("optional", Done),
        ],
    },
    Type {
        name: "SecretVolumeSource",
        fields: names::<core::SecretVolumeSource>,
        place: |part| volume(json!({"secret": part})),
        rows: &[
            ("defaultMode", Done),
            ("defaultUser", Told("1")),
            ("items", Told(r#"[{"key": "k", "path": "p", "user": 1}]"#)),
            ("optional", Done),
            ("secretName", Done),
        ],
    },
    Type {
        name: "DownwardAPIVolumeSource",
        fields: names::<core::DownwardAPIVolumeSource>,
        place: |part| volume(json!({"downwardAPI": part})),
        rows: &[("defaultMode", Done), ("defaultUser", Told("1")), ("items", Told(r#"[{"path": "p", "user": 1}]"#))],
    },
    Type {
        name: "ProjectedVolumeSource",
        fields: names::<core::ProjectedVolumeSource>,
        place: |part| volume(json!({"projected": part})),
        rows: &[("defaultMode", Done), ("defaultUser", Told("1")), ("sources", Inner)],
    },
    Type {
        name: "VolumeProjection",
        fields: names::<core::VolumeProjection>,
        place: projection,
        rows: &[
            ("clusterTrustBundle", Told(r#"{"path": "p", "user": 1}"#)),
            ("configMap", Told(r#"{"name": "x", "items": [{"key": "k", "path": "p", "user": 1}]}"#)),
            ("downwardAPI", Told(r#"{"items": [{"path": "p", "user": 1}]}"#)),
            ("podCertificate", Told(r#"{"keyType": "RSA4096", "signerName": "x"}"#)),
            ("secret", Told(r#"{"name": "x", "items": [{"key": "k", "path": "p", "user": 1}]}"#)),
            ("serviceAccountToken", Told(r#"{"path": "p", "user": 1}"#)),
        ],
    },
];

#[test]
fn the_table_has_every_field_of_the_api_and_no_other() {
    for kind in TYPES {
        let real: BTreeSet<&str> = (kind.fields)().into_iter().collect();
        let listed: BTreeSet<&str> = kind.rows.iter().map(|(field, _)| *field).collect();
        assert_eq!(listed.len(), kind.rows.len(), "{}: a field is listed twice", kind.name);
        let missing: Vec<_> = real.difference(&listed).collect();
        let gone: Vec<_> = listed.difference(&real).collect();
        assert!(
            missing.is_empty() && gone.is_empty(),
            "{}: decide what becomes of {missing:?}, carry it out or let unsupported() tell it; gone: {gone:?}",
            kind.name
        );
    }
    // An ephemeral container has a container's fields, and one more.
    let mut ephemeral = names::<core::EphemeralContainer>();
    ephemeral.retain(|f| *f != "targetContainerName");
    assert_eq!(ephemeral, names::<core::Container>());
}

/// What users are told about a pod: events for fields without effect, refusals.
fn words(pod: &Pod) -> Vec<String> {
    let mut all: Vec<String> = unsupported(pod).iter().map(super::Unsupported::message).collect();
    all.extend(admit::refuse(pod).map(|r| r.message));
    for container in pod.spec.iter().flat_map(|s| &s.containers) {
        all.extend(security::security(pod, container, "", false).err().map(|e| e.to_string()));
    }
    all
}

#[test]
fn what_is_not_carried_out_is_told_by_name() {
    for kind in TYPES {
        for (field, fate) in kind.rows {
            let Told(value) = fate else { continue };
            let value: Value = serde_json::from_str(value).expect("a row's JSON");
            let spec = (kind.place)(json!({*field: value}));
            let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec.clone()}))
                .unwrap_or_else(|e| panic!("{}.{field}: {e} in {spec}", kind.name));
            let told = words(&pod);
            // Within one list of files the items' owners are told together; the others by their own name.
            let named = |text: &String| {
                let text = text.to_lowercase();
                text.contains(&field.to_lowercase())
                    || (spec.to_string().contains("\"user\"") && text.contains("user"))
                    || (*field == "sysctls" && text.contains("sysctl"))
                    || (*field == "os" && text.contains("os field"))
            };
            assert!(told.iter().any(named), "{}.{field} with {value} is not told: {told:?}", kind.name);
        }
    }
}

/// Text of all sources of the kubelet but this list and its function: what is carried out is named in them.
fn sources() -> String {
    fn add(folder: &std::path::Path, all: &mut String) {
        for entry in std::fs::read_dir(folder).expect("folder").map(|e| e.expect("entry").path()) {
            let name = entry.file_name().expect("name").to_string_lossy().into_owned();
            if entry.is_dir() && name != "unsupported" {
                add(&entry, all);
            // A copy of all fields (ephemeral.rs) says nothing of their use.
            } else if name.ends_with(".rs") && !["unsupported.rs", "ephemeral.rs", "tests.rs"].contains(&name.as_str())
            {
                let text = std::fs::read_to_string(&entry).expect("source");
                let code = text.split("#[cfg(test)]").next().unwrap_or_default();
                all.push_str(code);
            }
        }
    }
    let mut all = String::new();
    // The network's facts are carried out by a crate of their own.
    for folder in [concat!(env!("CARGO_MANIFEST_DIR"), "/src"), concat!(env!("CARGO_MANIFEST_DIR"), "/net/src")] {
        add(std::path::Path::new(folder), &mut all);
    }
    all
}

/// `envFrom` → `env_from`, `setHostnameAsFQDN` → `set_hostname_as_fqdn`, `type` → `type_`.
fn snake(field: &str) -> String {
    let mut out = String::new();
    let mut upper_before = true;
    for c in field.chars() {
        if c.is_uppercase() && !upper_before {
            out.push('_');
        }
        upper_before = c.is_uppercase();
        out.extend(c.to_lowercase());
    }
    if out == "type" { "type_".to_owned() } else { out }
}

#[test]
fn what_is_carried_out_is_in_the_sources() {
    let sources = sources();
    let words: BTreeSet<&str> = sources.split(|c: char| !(c.is_alphanumeric() || c == '_')).collect();
    for kind in TYPES {
        for (field, fate) in kind.rows {
            if matches!(fate, Done | Inner) && !(kind.name == "PodSpec" && *field == "priority") {
                assert!(words.contains(snake(field).as_str()), "{}.{field}: no source reads it", kind.name);
            }
        }
    }
}
