//! Why a job waits, for people: what Slurm's reasons mean, and which reservations are in the way. Pure.

use super::job::{number, text, time};
use jiff::Timestamp;
use serde_json::Value;

/// Most reservations that are named.
const NAMED: usize = 3;

/// A reservation of nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reservation {
    name: String,
    nodes: String,
    maintenance: bool,
    begins: Timestamp,
    ends: Timestamp,
}

impl Reservation {
    /// Those in the answer of `scontrol show reservation --json`; what cannot be read is left out.
    pub(crate) fn list(answer: &[u8]) -> Vec<Self> {
        let answer: Value = serde_json::from_slice(answer).unwrap_or_default();
        answer["reservations"].as_array().into_iter().flatten().filter_map(Self::parse).collect()
    }

    fn parse(value: &Value) -> Option<Self> {
        let flags = value["flags"].as_array().into_iter().flatten();
        Some(Self {
            name: Some(text(&value["name"])).filter(|name| !name.is_empty())?,
            nodes: text(&value["node_list"]),
            maintenance: flags.filter_map(Value::as_str).any(|flag| flag == "MAINT"),
            begins: time(&value["start_time"])?,
            ends: time(&value["end_time"])?,
        })
    }
}

/// Whether only reservations tell why this job of squeue's waits.
pub(crate) fn concerns_reservations(job: &Value) -> bool {
    match text(&job["state_reason"]).as_str() {
        "ReqNodeNotAvail" => is_in_the_way(job),
        "Reservation" => true,
        _ => false,
    }
}

/// `ReqNodeNotAvail, Reserved for maintenance`, `ReqNodeNotAvail, May be reserved for other job`.
fn is_in_the_way(job: &Value) -> bool {
    text(&job["state_description"]).contains("eserved")
}

/// Why this job of squeue's waits. `all`: the reservations, as far as they are known.
pub(crate) fn why(job: &Value, all: &[Reservation], now: Timestamp) -> String {
    let reason = text(&job["state_reason"]);
    match reason.as_str() {
        "ReqNodeNotAvail" if is_in_the_way(job) => in_the_way(job, all, now),
        "Reservation" => its_own(&text(&job["resv_name"]), all),
        _ => None,
    }
    .map_or_else(|| of_reason(&reason), |text| format!("{reason}: {text}"))
}

/// Reservations that a job with this time limit would run into, if it began now.
fn in_the_way(job: &Value, all: &[Reservation], now: Timestamp) -> Option<String> {
    let seconds = number(&job["time_limit"]).filter(|minutes| *minutes > 0).map(|minutes| minutes.saturating_mul(60));
    let end = seconds.map(|seconds| now.as_second().saturating_add(seconds));
    let meets = |r: &&Reservation| r.ends > now && end.is_none_or(|end| r.begins.as_second() < end);
    let mut met: Vec<&Reservation> = all.iter().filter(meets).collect();
    met.sort_by_key(|r| r.begins);
    met.truncate(NAMED);
    let first = met.first()?;
    let named = met.iter().map(|r| {
        let what = if r.maintenance { " (maintenance)" } else { "" };
        format!("{}{what} has {} from {} to {}", r.name, r.nodes, r.begins, r.ends)
    });
    let named = named.collect::<Vec<_>>().join(", ");
    let remedy = if first.begins > now {
        // Not how long that is, which changes with every look.
        let limit = if seconds.is_some() { "with a shorter time limit" } else { "with a time limit" };
        format!(
            "it begins when that is over; {limit}, which ends before {}, it can begin before \
             (spec.activeDeadlineSeconds, --time in the pod's flags, hpk up --default-time)",
            first.begins
        )
    } else {
        "it begins when that is over".to_owned()
    };
    Some(format!("reservation {named}: {remedy}"))
}

/// The reservation that the job asks for.
fn its_own(name: &str, all: &[Reservation]) -> Option<String> {
    let own = all.iter().find(|r| r.name == name)?;
    Some(format!("its reservation {name} is from {} to {}", own.begins, own.ends))
}

/// What Slurm's shorthand means, for the reasons that users meet most.
fn of_reason(reason: &str) -> String {
    let text = match reason {
        "" | "None" => "waits for Slurm's scheduler",
        "Resources" => "waits for free resources",
        "Priority" => "jobs of higher priority wait before it",
        "PartitionTimeLimit" => {
            "its time limit exceeds the partition's: lower --time in the pod's flags, or choose another partition"
        }
        "PartitionNodeLimit" => "it asks for more nodes than the partition allows",
        "PartitionConfig" | "BadConstraints" => {
            "no node of the partition can satisfy the request: lower it or choose another partition"
        }
        "PartitionDown" | "PartitionInactive" => "the partition is not up",
        "ReqNodeNotAvail" => "a node that it needs is not available",
        "Reservation" => "its reservation is not there yet",
        "InvalidAccount" | "InvalidQOS" | "QOSNotAllowed" => {
            "it may not run under this account or QOS: choose another one by --account or --qos in the pod's flags"
        }
        "JobHeldUser" => "it is held: scontrol release lets it go",
        "JobHeldAdmin" => "an administrator holds it, and only one can let it go",
        "Dependency" => "it waits for another job",
        "DependencyNeverSatisfied" => "the job that it depends on ended in another way: delete the pod",
        "BeginTime" => "its begin time has not come; a job that was put back waits some two minutes",
        "Licenses" => "it waits for licences",
        _ if reason.starts_with("Assoc") || reason.starts_with("QOS") => of_limit(reason),
        _ => return reason.to_owned(),
    };
    format!("{reason}: {text}").trim_start_matches(": ").to_owned()
}

/// Limits of an account or a QOS, of which there are some hundred: the name says what kind it is (resource_limits(5)).
fn of_limit(reason: &str) -> &'static str {
    let has = |part: &str| reason.contains(part);
    if has("PerJob") || has("PerNode") || has("MaxWall") || has("QOSMin") || has("QOSTimeLimit") {
        "it asks for more or less than one job may have under this account or QOS, and never begins: ask for other resources or another \
         time, or choose another account or QOS by --account or --qos in the pod's flags"
    } else if (has("Minutes") && !has("Run")) || has("GrpWall") || has("UsageThreshold") {
        "the account or QOS has used up its time: it begins when the site gives more"
    } else {
        "a limit of the account or QOS is reached: it begins when other jobs end"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn set(n: i64) -> Value {
        json!({"set": true, "infinite": false, "number": n})
    }

    /// As Slurm 24.11 answers.
    fn reservations() -> Vec<Reservation> {
        let one = |name: &str, flags: Value, start: i64, end: i64| json!({"name": name, "flags": flags, "node_list": "c[1-2]", "start_time": set(start), "end_time": set(end), "users": "root"});
        let answer = json!({"reservations": [
            one("later", json!([]), 90_000, 95_000), one("maint", json!(["MAINT", "SPEC_NODES"]), 10_000, 20_000),
            one("over", json!(["MAINT"]), 100, 200), json!({"name": "odd"}),
        ]});
        Reservation::list(answer.to_string().as_bytes())
    }

    fn waits(reason: &str, more: &Value) -> Value {
        let mut job = json!({"job_state": ["PENDING"], "state_reason": reason, "time_limit": set(1000)});
        job.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        job
    }

    #[test]
    fn a_reservation_in_the_way_is_told_with_its_end() {
        assert_eq!(reservations().len(), 3);
        let maint =
            waits("ReqNodeNotAvail", &json!({"state_description": "ReqNodeNotAvail, Reserved for maintenance"}));
        assert!(concerns_reservations(&maint));
        let text = why(&maint, &reservations(), at(5000));
        assert_eq!(
            text,
            "ReqNodeNotAvail: reservation maint (maintenance) has c[1-2] from 1970-01-01T02:46:40Z to 1970-01-01T05:33:20Z: it begins when \
             that is over; with a shorter time limit, which ends before 1970-01-01T02:46:40Z, it can begin before \
             (spec.activeDeadlineSeconds, --time in the pod's flags, hpk up --default-time)"
        );
        assert_eq!(why(&maint, &reservations(), at(5060)), text, "it says the same until something changes");
        assert!(why(&maint, &reservations(), at(15_000)).ends_with("05:33:20Z: it begins when that is over"));
        let mut endless = maint.clone();
        endless["time_limit"] = json!({"set": false, "infinite": true, "number": 0});
        let text = why(&endless, &reservations(), at(5000));
        assert!(
            text.contains("20Z, later has c[1-2]") && text.contains("with a time limit, which ends before"),
            "{text}"
        );
        // A site that shows no reservations.
        assert_eq!(why(&maint, &[], at(5000)), "ReqNodeNotAvail: a node that it needs is not available");
        let down = waits("ReqNodeNotAvail", &json!({"state_description": "ReqNodeNotAvail, UnavailableNodes:c1"}));
        assert!(!concerns_reservations(&down));
        assert_eq!(why(&down, &reservations(), at(5000)), "ReqNodeNotAvail: a node that it needs is not available");
    }

    #[test]
    fn a_reservation_of_its_own_is_told() {
        let own = waits("Reservation", &json!({"resv_name": "later"}));
        assert!(concerns_reservations(&own));
        let text = why(&own, &reservations(), at(5000));
        assert_eq!(text, "Reservation: its reservation later is from 1970-01-02T01:00:00Z to 1970-01-02T02:23:20Z");
    }

    #[test]
    fn limits_of_accounts_and_qos_are_told() {
        for (reason, text) in [
            ("AssocGrpCpuLimit", "when other jobs end"),
            ("AssocMaxJobsLimit", "when other jobs end"),
            ("QOSMaxJobsPerUserLimit", "when other jobs end"),
            ("QOSGrpCPURunMinutesLimit", "when other jobs end"),
            ("QOSMaxGRESPerUser", "when other jobs end"),
            ("AssocMaxWallDurationPerJobLimit", "never begins"),
            ("QOSMaxCpuPerJobLimit", "never begins"),
            ("QOSMaxMemoryPerNode", "never begins"),
            ("QOSMinGRES", "never begins"),
            ("AssocGrpCPUMinutesLimit", "when the site gives more"),
            ("QOSGrpWallLimit", "when the site gives more"),
            ("InvalidQOS", "choose another one"),
        ] {
            let said = of_reason(reason);
            assert!(said.starts_with(&format!("{reason}: ")) && said.contains(text), "{said}");
        }
        assert_eq!(of_reason(""), "waits for Slurm's scheduler");
        assert_eq!(of_reason("SomethingNew"), "SomethingNew");
    }
}
