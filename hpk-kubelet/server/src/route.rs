//! Which request is which: paths and methods of upstream's kubelet server, as data.

/// A request that is served here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// `/healthz` and `/healthz/<check>`.
    Health(Option<String>),
    Pods,
    RunningPods,
    Logs {
        namespace: String,
        pod: String,
        container: String,
    },
    Exec(Target),
    Attach(Target),
    Run(Target),
    PortForward {
        namespace: String,
        pod: String,
        uid: Option<String>,
    },
    Summary,
    Metrics,
    ResourceMetrics,
    CadvisorMetrics,
    ProbeMetrics,
    Configz,
    /// `/logs/` and `/logs/<file>`.
    NodeLogs(Option<String>),
}

/// A container by its path parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) namespace: String,
    pub(crate) pod: String,
    pub(crate) uid: Option<String>,
    pub(crate) container: String,
}

/// Why there is no route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRoute {
    NotFound,
    /// The path exists, not with this method; the methods that do.
    MethodNotAllowed(&'static str),
    /// A part of the kubelet that is switched off.
    Disabled(&'static str),
}

/// Finds the route of a request; `path` is percent-decoded by its segments here.
pub(crate) fn find(method: &str, path: &str) -> Result<Route, NoRoute> {
    let segments: Vec<String> = path.split('/').filter(|s| !s.is_empty()).map(decode).collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let (route, allowed): (Route, &'static str) = match segments.as_slice() {
        ["healthz"] => (Route::Health(None), "GET"),
        ["healthz", check @ ("ping" | "log" | "syncloop")] => (Route::Health(Some((*check).to_owned())), "GET"),
        ["pods"] => (Route::Pods, "GET"),
        ["runningpods"] => (Route::RunningPods, "GET"),
        ["containerLogs", namespace, pod, container] => (
            Route::Logs {
                namespace: (*namespace).to_owned(),
                pod: (*pod).to_owned(),
                container: (*container).to_owned(),
            },
            "GET",
        ),
        ["exec", rest @ ..] => (Route::Exec(target(rest)?), "GET, POST"),
        ["attach", rest @ ..] => (Route::Attach(target(rest)?), "GET, POST"),
        ["run", rest @ ..] => (Route::Run(target(rest)?), "POST"),
        ["portForward", namespace, pod] => {
            (Route::PortForward { namespace: (*namespace).to_owned(), pod: (*pod).to_owned(), uid: None }, "GET, POST")
        }
        ["portForward", namespace, pod, uid] => (
            Route::PortForward {
                namespace: (*namespace).to_owned(),
                pod: (*pod).to_owned(),
                uid: Some((*uid).to_owned()),
            },
            "GET, POST",
        ),
        ["stats", "summary"] => (Route::Summary, "GET"),
        ["metrics"] => (Route::Metrics, "GET"),
        ["metrics", "resource"] => (Route::ResourceMetrics, "GET"),
        ["metrics", "cadvisor"] => (Route::CadvisorMetrics, "GET"),
        ["metrics", "probes"] => (Route::ProbeMetrics, "GET"),
        ["configz"] => (Route::Configz, "GET"),
        ["logs"] => (Route::NodeLogs(None), "GET"),
        ["logs", file] => (Route::NodeLogs(Some((*file).to_owned())), "GET"),
        ["debug", "pprof", ..] => return Err(NoRoute::Disabled("profiling endpoint is disabled.\n")),
        ["debug", "flags", ..] => return Err(NoRoute::Disabled("flags endpoint is disabled.\n")),
        _ => return Err(NoRoute::NotFound),
    };
    if allowed.split(", ").any(|m| m == method) { Ok(route) } else { Err(NoRoute::MethodNotAllowed(allowed)) }
}

fn target(rest: &[&str]) -> Result<Target, NoRoute> {
    match rest {
        [namespace, pod, container] => Ok(Target {
            namespace: (*namespace).to_owned(),
            pod: (*pod).to_owned(),
            uid: None,
            container: (*container).to_owned(),
        }),
        [namespace, pod, uid, container] => Ok(Target {
            namespace: (*namespace).to_owned(),
            pod: (*pod).to_owned(),
            uid: Some((*uid).to_owned()),
            container: (*container).to_owned(),
        }),
        _ => Err(NoRoute::NotFound),
    }
}

/// The subresources of `nodes` of which one must be allowed (upstream auth.go, KubeletFineGrainedAuthz on).
pub(crate) fn subresources(path: &str) -> &'static [&'static str] {
    let under = |prefix: &str| path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if under("/pods") || under("/runningpods") {
        &["pods", "proxy"]
    } else if under("/healthz") {
        &["healthz", "proxy"]
    } else if under("/configz") {
        &["configz", "proxy"]
    } else if under("/stats") {
        &["stats"]
    } else if under("/metrics") {
        &["metrics"]
    } else if under("/logs") {
        &["log"]
    } else if under("/checkpoint") {
        &["checkpoint"]
    } else if under("/statusz") {
        &["statusz"]
    } else if under("/flagz") {
        &["configz"]
    } else {
        &["proxy"]
    }
}

/// The API verb of a method; empty for methods without one.
pub(crate) fn verb(method: &str) -> &'static str {
    match method {
        "POST" => "create",
        "GET" => "get",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        _ => "",
    }
}

/// Percent-decoding; malformed escapes stay as they are.
pub(crate) fn decode(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// A decoded query string, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(query: Option<&str>) -> Self {
        Self(form_urlencoded::parse(query.unwrap_or("").as_bytes()).into_owned().collect())
    }

    /// First value of a key.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// All values of a key.
    pub(crate) fn all(&self, key: &str) -> Vec<String> {
        self.0.iter().filter(|(k, _)| k == key).map(|(_, v)| v.clone()).collect()
    }

    /// The kubelet's own flags: only `1` counts.
    pub(crate) fn is_one(&self, key: &str) -> bool {
        self.get(key) == Some("1")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_methods_find_their_routes() {
        assert_eq!(find("GET", "/pods"), Ok(Route::Pods));
        assert_eq!(find("GET", "/runningpods/"), Ok(Route::RunningPods));
        assert_eq!(find("POST", "/pods"), Err(NoRoute::MethodNotAllowed("GET")));
        assert_eq!(find("GET", "/run/a/b/c"), Err(NoRoute::MethodNotAllowed("POST")));
        assert_eq!(find("GET", "/nope"), Err(NoRoute::NotFound));
        assert_eq!(find("GET", "/exec/a/b"), Err(NoRoute::NotFound));
        assert_eq!(find("GET", "/logs/"), Ok(Route::NodeLogs(None)));
        assert_eq!(find("GET", "/logs/x.log"), Ok(Route::NodeLogs(Some("x.log".to_owned()))));
        assert_eq!(find("GET", "/logs/x/y"), Err(NoRoute::NotFound));
        assert!(matches!(find("GET", "/debug/pprof/heap"), Err(NoRoute::Disabled(_))));
        let Ok(Route::Exec(t)) = find("POST", "/exec/ns/pod/uid-1/c") else { panic!() };
        assert_eq!((t.uid.as_deref(), t.container.as_str()), (Some("uid-1"), "c"));
        let Ok(Route::Attach(t)) = find("GET", "/attach/ns/p%2dod/c") else { panic!() };
        assert_eq!((t.uid, t.pod.as_str()), (None, "p-od"));
    }

    #[test]
    fn subresources_are_upstreams() {
        for (path, wanted) in [
            ("/pods", &["pods", "proxy"][..]),
            ("/podsx", &["proxy"]),
            ("/runningpods/", &["pods", "proxy"]),
            ("/metrics/resource", &["metrics"]),
            ("/stats/summary", &["stats"]),
            ("/exec/a/b/c", &["proxy"]),
            ("/healthz/ping", &["healthz", "proxy"]),
            ("/logs/", &["log"]),
        ] {
            assert_eq!(subresources(path), wanted, "{path}");
        }
    }

    #[test]
    fn queries_are_decoded() {
        let q = Query::parse(Some("command=sh&command=-c&command=echo+a%20b%26c%2B&input=1&tty=true&x"));
        assert_eq!(q.all("command"), ["sh", "-c", "echo a b&c+"]);
        assert!(q.is_one("input") && !q.is_one("tty"));
        assert_eq!(q.get("x"), Some(""));
        assert_eq!(Query::parse(Some("a=%zz%4")).get("a"), Some("%zz%4"));
    }
}
