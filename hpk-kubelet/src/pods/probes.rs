//! Probes and lifecycle hooks of a container, with named ports resolved and the container's variables in their commands.
//!
//! Of variables only those with a `value` are known here, as to upstream's prober (`ExpandContainerCommandOnlyStatic`).
//! Upstream does not expand the commands of hooks; here known names are, and nothing else of them is touched: `$$` is a shell's.

use crate::render::expand::{expand, expand_known};
use hpk_api::probe::{Handler, Lifecycle, Probe, Probes};
use k8s_openapi::api::core::v1::{self as core, Container};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// All probes of a container.
#[must_use]
pub(crate) fn probes(container: &Container) -> Probes {
    let make = |p: &Option<core::Probe>| p.as_ref().map(|p| probe(container, p));
    Probes {
        startup: make(&container.startup_probe),
        liveness: make(&container.liveness_probe),
        readiness: make(&container.readiness_probe),
    }
}

/// Hooks of a container.
#[must_use]
pub(crate) fn lifecycle(container: &Container) -> Lifecycle {
    let hooks = container.lifecycle.as_ref();
    let make = |h: Option<&core::LifecycleHandler>| h.map(|h| hook(container, h));
    Lifecycle {
        post_start: make(hooks.and_then(|h| h.post_start.as_ref())),
        pre_stop: make(hooks.and_then(|h| h.pre_stop.as_ref())),
    }
}

/// The last variable of a name wins.
fn variable<'a>(container: &'a Container, name: &str) -> Option<&'a str> {
    let last = container.env.iter().flatten().rfind(|variable| variable.name == name)?;
    if last.value_from.is_some() { None } else { Some(last.value.as_deref().unwrap_or_default()) }
}

fn probe(container: &Container, probe: &core::Probe) -> Probe {
    let handler = if let Some(exec) = &probe.exec {
        let words = exec.command.iter().flatten();
        Handler::Exec { command: words.map(|word| expand(word, |name| variable(container, name))).collect() }
    } else if let Some(get) = &probe.http_get {
        http(container, get)
    } else if let Some(tcp) = &probe.tcp_socket {
        match port(container, &tcp.port) {
            Ok(port) => Handler::TcpSocket { host: non_empty(tcp.host.as_ref()), port },
            Err(message) => Handler::Invalid { message },
        }
    } else if let Some(grpc) = &probe.grpc {
        match u16::try_from(grpc.port) {
            Ok(port) if port > 0 => Handler::Grpc { port, service: grpc.service.clone().unwrap_or_default() },
            _ => Handler::Invalid { message: format!("grpc.port {} is not a port number (1 to 65535)", grpc.port) },
        }
    } else {
        Handler::Invalid { message: format!("missing probe handler for container {}", container.name) }
    };
    Probe {
        handler,
        initial_delay_seconds: seconds(probe.initial_delay_seconds, 0, 0),
        timeout_seconds: seconds(probe.timeout_seconds, 1, 1),
        period_seconds: seconds(probe.period_seconds, 10, 1),
        success_threshold: seconds(probe.success_threshold, 1, 1),
        failure_threshold: seconds(probe.failure_threshold, 3, 1),
        termination_grace_period_seconds: probe.termination_grace_period_seconds.and_then(|s| u32::try_from(s).ok()),
    }
}

/// A number of the spec; absent or 0 means the default, as the API server's defaulting does.
fn seconds(given: Option<i32>, default: u32, least: u32) -> u32 {
    match given.and_then(|n| u32::try_from(n).ok()) {
        Some(0) | None => default,
        Some(n) => n.max(least),
    }
}

fn hook(container: &Container, hook: &core::LifecycleHandler) -> Handler {
    if let Some(exec) = &hook.exec {
        let words = exec.command.iter().flatten();
        Handler::Exec { command: words.map(|word| expand_known(word, |name| variable(container, name))).collect() }
    } else if let Some(get) = &hook.http_get {
        http(container, get)
    } else if let Some(sleep) = &hook.sleep {
        Handler::Sleep { seconds: u64::try_from(sleep.seconds).unwrap_or(0) }
    } else {
        // tcpSocket is in the API for backward compatibility only; upstream fails it at run time too.
        Handler::Invalid { message: "invalid handler: only exec, httpGet and sleep are supported".to_owned() }
    }
}

fn http(container: &Container, get: &core::HTTPGetAction) -> Handler {
    let port = match port(container, &get.port) {
        Ok(port) => port,
        Err(message) => return Handler::Invalid { message },
    };
    let path = get.path.clone().unwrap_or_default();
    Handler::HttpGet {
        scheme: get.scheme.as_deref().unwrap_or("HTTP").to_lowercase(),
        host: non_empty(get.host.as_ref()),
        port,
        path: if path.starts_with('/') { path } else { format!("/{path}") },
        headers: get.http_headers.iter().flatten().map(|h| (h.name.clone(), h.value.clone())).collect(),
    }
}

fn non_empty(text: Option<&String>) -> Option<String> {
    text.filter(|t| !t.is_empty()).cloned()
}

fn port(container: &Container, port: &IntOrString) -> Result<u16, String> {
    let number = match port {
        IntOrString::Int(n) => *n,
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|p| p.name.as_deref() == Some(name));
            match named {
                Some(p) => p.container_port,
                // A number in quotes, or nothing that upstream would find either.
                None => name.parse().map_err(|_| {
                    format!("couldn't find port: {name:?} in container {}: name one of its ports so", container.name)
                })?,
            }
        }
    };
    u16::try_from(number).ok().filter(|n| *n > 0).ok_or_else(|| format!("invalid port number: {number}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn container(extra: serde_json::Value) -> Container {
        let mut value = json!({"name": "c", "ports": [{"name": "web", "containerPort": 8080}]});
        value.as_object_mut().expect("map").extend(extra.as_object().expect("map").clone());
        serde_json::from_value(value).expect("container")
    }

    #[test]
    fn defaults_and_named_ports() {
        let probes = probes(&container(json!({
            "livenessProbe": {"httpGet": {"port": "web", "path": "x", "httpHeaders": [{"name": "A", "value": "b"}]}, "periodSeconds": 5},
            "readinessProbe": {"tcpSocket": {"port": "nope"}},
            "startupProbe": {"grpc": {"port": 9000}, "failureThreshold": 30, "terminationGracePeriodSeconds": 7},
        })));
        let liveness = probes.liveness.expect("liveness");
        assert_eq!(
            (liveness.period_seconds, liveness.timeout_seconds, liveness.success_threshold, liveness.failure_threshold),
            (5, 1, 1, 3)
        );
        assert_eq!(
            liveness.handler,
            Handler::HttpGet {
                scheme: "http".into(),
                host: None,
                port: 8080,
                path: "/x".into(),
                headers: vec![("A".into(), "b".into())],
            }
        );
        assert!(
            matches!(probes.readiness.expect("readiness").handler, Handler::Invalid { message } if message.contains("\"nope\""))
        );
        let startup = probes.startup.expect("startup");
        assert_eq!(startup.handler, Handler::Grpc { port: 9000, service: String::new() });
        assert_eq!(startup.termination_grace_period_seconds, Some(7));
    }

    #[test]
    fn variables_in_commands() {
        let command =
            json!({"exec": {"command": ["a", "$(WANT)", "$$(WANT)", "$(UNKNOWN)", "$(FIELD)", "$(EMPTY)$$"]}});
        let container = container(json!({
            "env": [{"name": "WANT", "value": "no"}, {"name": "WANT", "value": "yes"}, {"name": "EMPTY"},
                {"name": "FIELD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            "startupProbe": command, "lifecycle": {"preStop": command},
        }));
        let words = |handler: Option<Handler>| match handler {
            Some(Handler::Exec { command }) => command,
            other => panic!("{other:?}"),
        };
        let probe = words(probes(&container).startup.map(|probe| probe.handler));
        assert_eq!(probe, ["a", "yes", "$(WANT)", "$(UNKNOWN)", "$(FIELD)", "$"]);
        let hook = words(lifecycle(&container).pre_stop);
        assert_eq!(hook, ["a", "yes", "$(WANT)", "$(UNKNOWN)", "$(FIELD)", "$$"], "a shell's $$ is its own");
    }

    #[test]
    fn hooks() {
        let hooks = lifecycle(&container(
            json!({"lifecycle": {"preStop": {"sleep": {"seconds": 3}}, "postStart": {"exec": {"command": ["a"]}}}}),
        ));
        assert_eq!(hooks.pre_stop, Some(Handler::Sleep { seconds: 3 }));
        assert_eq!(hooks.post_start, Some(Handler::Exec { command: vec!["a".into()] }));
    }
}
