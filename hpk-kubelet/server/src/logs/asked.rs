//! Which log is asked for: the query's options, and the instance of the container.

use crate::respond::{Body, text};
use crate::route::Query;
use hpk_api::control::LogOptions;
use hpk_api::cri_log::Stream;
use hyper::{Response, StatusCode};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

/// A query that is not served, with upstream's code and text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum BadQuery {
    Undecodable,
    Invalid,
    Stream(String),
}

impl BadQuery {
    pub(super) fn response(&self) -> Response<Body> {
        match self {
            Self::Undecodable => text(StatusCode::BAD_REQUEST, r#"{"message": "Unable to decode query."}"#),
            Self::Invalid => text(StatusCode::UNPROCESSABLE_ENTITY, r#"{"message": "Invalid request."}"#),
            Self::Stream(name) => text(StatusCode::BAD_REQUEST, format!("invalid stream type {name:?}")),
        }
    }
}

/// Reads PodLogOptions from the query.
pub(super) fn options(query: &Query, container: &str, now: Timestamp) -> Result<LogOptions, BadQuery> {
    let number = |key: &str| -> Result<Option<i64>, BadQuery> {
        match query.get(key) {
            None | Some("") => Ok(None),
            Some(value) => value.parse().map(Some).map_err(|_| BadQuery::Undecodable),
        }
    };
    let flag = |key: &str| match query.get(key) {
        None => false,
        Some(value) => !value.eq_ignore_ascii_case("false") && value != "0",
    };
    let at_least = |value: Option<i64>, least: i64| match value {
        Some(v) if v < least => Err(BadQuery::Invalid),
        Some(v) => u64::try_from(v).map(Some).map_err(|_| BadQuery::Invalid),
        None => Ok(None),
    };
    let tail = match query.get("tail") {
        Some("all") => None,
        Some(value) if !value.is_empty() => Some(value.parse().map_err(|_| BadQuery::Undecodable)?),
        _ => number("tailLines")?,
    };
    let since_time = match query.get("sinceTime") {
        None | Some("") => None,
        Some(value) => Some(value.parse::<Timestamp>().map_err(|_| BadQuery::Undecodable)?),
    };
    let since_seconds = at_least(number("sinceSeconds")?, 1)?;
    let since = match (since_seconds, since_time) {
        (Some(_), Some(_)) => return Err(BadQuery::Invalid),
        (Some(seconds), None) => {
            let seconds = i64::try_from(seconds).map_err(|_| BadQuery::Invalid)?;
            Some(now.checked_sub(jiff::SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MIN))
        }
        (None, time) => time,
    };
    let stream = match query.get("stream") {
        None | Some("" | "All") => None,
        Some("Stdout") => Some(Stream::Stdout),
        Some("Stderr") => Some(Stream::Stderr),
        Some(other) => return Err(BadQuery::Stream(other.to_owned())),
    };
    let tail_lines = at_least(tail, 0)?;
    // Upstream's API validation: a tail of one stream alone is not offered.
    if stream.is_some() && tail_lines.is_some() {
        return Err(BadQuery::Invalid);
    }
    Ok(LogOptions {
        container: container.to_owned(),
        previous: flag("previous"),
        follow: flag("follow"),
        tail_lines,
        since,
        limit_bytes: at_least(number("limitBytes")?, 1)?,
        timestamps: flag("timestamps"),
        stream,
        positions: true,
    })
}

/// A container's status, whatever its kind.
pub(super) fn status_of<'a>(pod: &'a Pod, container: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses]
        .into_iter()
        .flatten()
        .flatten()
        .find(|s| s.name == container)
}

/// Whether the spec has such a container.
pub(crate) fn has_container(pod: &Pod, container: &str) -> bool {
    let Some(spec) = &pod.spec else { return false };
    spec.containers.iter().any(|c| c.name == container)
        || spec.init_containers.iter().flatten().any(|c| c.name == container)
        || spec.ephemeral_containers.iter().flatten().any(|c| c.name == container)
}

/// The instance whose log is meant, by its restart count; or upstream's text why there is none
/// (kubelet_pods.go, validateContainerLogStatus).
pub(super) fn instance(pod: &Pod, container: &str, previous: bool) -> Result<u32, String> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let what = format!("container {container:?} in pod {name:?}");
    let status = status_of(pod, container).ok_or_else(|| format!("{what} is not available"))?;
    let state = status.state.clone().unwrap_or_default();
    let last = status.last_state.as_ref().and_then(|s| s.terminated.as_ref());
    let last_ran = last.is_some_and(|t| t.container_id.as_deref().is_some_and(|id| !id.is_empty()));
    let count = u32::try_from(status.restart_count).unwrap_or(0);
    // The log number of lastState: one before a current instance, the same when none has been started since.
    let before = if state.running.is_some() || state.terminated.is_some() { count.saturating_sub(1) } else { count };
    if previous {
        return if last_ran { Ok(before) } else { Err(format!("previous terminated {what} not found")) };
    }
    if state.running.is_some() {
        return Ok(count);
    }
    if let Some(terminated) = &state.terminated {
        return match terminated.container_id.as_deref() {
            Some(id) if !id.is_empty() => Ok(count),
            _ if last_ran => Ok(before),
            _ => Err(format!("{what} is terminated")),
        };
    }
    if last.is_some() {
        return if last_ran { Ok(before) } else { Err(format!("{what} is terminated")) };
    }
    Err(match state.waiting.and_then(|w| w.reason).as_deref() {
        Some("ErrImagePull") => format!("{what} is waiting to start: image can't be pulled"),
        Some("ImagePullBackOff") => format!("{what} is waiting to start: trying and failing to pull image"),
        Some(reason) => format!("{what} is waiting to start: {reason}"),
        None => format!("{what} is waiting to start - no logs yet"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(state: &serde_json::Value, last: &serde_json::Value, count: i32) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n"},
            "spec": {"containers": [{"name": "c"}]},
            "status": {"containerStatuses": [{"name": "c", "image": "i", "imageID": "", "ready": false,
                "restartCount": count, "state": state, "lastState": last}]}
        }))
        .unwrap()
    }

    #[test]
    fn the_instance_follows_the_status_and_errors_are_upstreams() {
        let none = json!({});
        let running = json!({"running": {}});
        let ended = json!({"terminated": {"exitCode": 1, "containerID": "hpk://1"}});
        let never = json!({"terminated": {"exitCode": 128}});
        let waiting = |reason: &str| json!({"waiting": {"reason": reason}});
        for (state, last, count, previous, wanted) in [
            (&running, &none, 0, false, Ok(0)),
            (&running, &ended, 2, false, Ok(2)),
            (&running, &ended, 2, true, Ok(1)),
            (&running, &none, 0, true, Err(r#"previous terminated container "c" in pod "p" not found"#)),
            (&ended, &none, 0, false, Ok(0)),
            (&ended, &ended, 1, true, Ok(0)),
            (&never, &ended, 1, false, Ok(0)),
            (&never, &none, 0, false, Err(r#"container "c" in pod "p" is terminated"#)),
            (&waiting("CrashLoopBackOff"), &ended, 3, false, Ok(3)),
            (&waiting("CrashLoopBackOff"), &ended, 3, true, Ok(3)),
            (
                &waiting("ErrImagePull"),
                &none,
                0,
                false,
                Err(r#"container "c" in pod "p" is waiting to start: image can't be pulled"#),
            ),
            (
                &waiting("ImagePullBackOff"),
                &none,
                0,
                false,
                Err(r#"container "c" in pod "p" is waiting to start: trying and failing to pull image"#),
            ),
            (
                &waiting("ContainerCreating"),
                &none,
                0,
                false,
                Err(r#"container "c" in pod "p" is waiting to start: ContainerCreating"#),
            ),
            (&none, &none, 0, false, Err(r#"container "c" in pod "p" is waiting to start - no logs yet"#)),
        ] {
            let got = instance(&pod(state, last, count), "c", previous);
            assert_eq!(got, wanted.map_err(str::to_owned), "{state} {last} previous={previous}");
        }
        assert_eq!(
            instance(&pod(&running, &none, 0), "x", false).unwrap_err(),
            r#"container "x" in pod "p" is not available"#
        );
    }

    #[test]
    fn queries_are_read_as_upstream_reads_them() {
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let parse = |q: &str| options(&Query::parse(Some(q)), "c", now);
        let all = parse("follow=true&previous=1&tailLines=5&limitBytes=10&timestamps=true&sinceSeconds=60").unwrap();
        assert!(all.follow && all.previous && all.timestamps);
        assert_eq!((all.tail_lines, all.limit_bytes), (Some(5), Some(10)));
        assert_eq!(all.since, Some("2026-01-01T00:00:00Z".parse().unwrap()));
        assert_eq!(parse("tail=all&tailLines=3").unwrap().tail_lines, None);
        assert!(!parse("follow=false").unwrap().follow);
        assert_eq!(parse("stream=Stderr").unwrap().stream, Some(Stream::Stderr));
        assert_eq!(parse("stream=stdin"), Err(BadQuery::Stream("stdin".to_owned())));
        for bad in ["tailLines=x", "sinceTime=yesterday", "limitBytes=1e3"] {
            assert_eq!(parse(bad), Err(BadQuery::Undecodable), "{bad}");
        }
        for bad in [
            "tailLines=-1",
            "limitBytes=0",
            "sinceSeconds=0",
            "sinceSeconds=5&sinceTime=2026-01-01T00:00:00Z",
            "stream=Stdout&tailLines=1",
        ] {
            assert_eq!(parse(bad), Err(BadQuery::Invalid), "{bad}");
        }
    }
}
