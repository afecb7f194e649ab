//! Kubernetes' feature gates: what the user says, how the programs are told, and whether they know them.

use crate::components::image::tool;
use crate::decide::Programs;
use anyhow::{Context, Result, bail};
use hpk_api::cluster::{ClusterConfig, GENERIC_WORKLOAD};
use std::collections::BTreeMap;

/// `--feature-gates`: empty takes back what was set before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Choice(pub BTreeMap<String, bool>);

/// Reads a list of gates.
pub(crate) fn parse(text: &str) -> Result<Choice, String> {
    if text == "default" {
        return Ok(Choice(BTreeMap::new()));
    }
    let gate = |word: &str| {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        let named = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric());
        match value {
            "true" if named => Ok((name.to_owned(), true)),
            "false" if named => Ok((name.to_owned(), false)),
            _ => {
                Err(format!("{word:?}: must be the name of a gate with =true or =false, such as WorkloadWithJob=true"))
            }
        }
    };
    text.split(',').map(str::trim).map(gate).collect::<Result<_, _>>().map(Choice)
}

/// Arguments that each of Kubernetes' programs is given.
pub(crate) fn arguments(cluster: &ClusterConfig) -> Vec<String> {
    let gates: Vec<String> = cluster.gates().iter().map(|(name, on)| format!("{name}={on}")).collect();
    if gates.is_empty() { Vec::new() } else { vec![format!("--feature-gates={}", gates.join(","))] }
}

/// APIs that the API server serves only when it is told to.
pub(crate) fn apis(cluster: &ClusterConfig) -> Vec<String> {
    // Kubernetes serves no new API in beta by itself.
    if cluster.has_pod_groups() {
        vec!["--runtime-config=scheduling.k8s.io/v1beta1=true".to_owned()]
    } else {
        Vec::new()
    }
}

/// Has kube-apiserver read the gates: it knows which there are. All of Kubernetes' programs know the same.
///
/// # Errors
/// What it says against them.
pub(crate) fn check(programs: &Programs, cluster: &ClusterConfig) -> Result<()> {
    let mut command = tool(programs, "kube-apiserver", &[]);
    command.arg("--version").args(arguments(cluster));
    let output =
        command.output().with_context(|| format!("asking {:?} about --feature-gates", command.get_program()))?;
    if !output.status.success() {
        bail!("--feature-gates: {}", words(&String::from_utf8_lossy(&output.stderr)));
    }
    Ok(())
}

/// What the program says, without what stands before it on the line.
fn words(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let error = lines.iter().find_map(|line| line.split_once("rror: ").map(|(_, rest)| rest.trim_matches('"')));
    let said = error.or_else(|| lines.last().copied()).unwrap_or("kube-apiserver refuses them");
    format!("{said} (hpk up --feature-gates default takes back what was set)")
}

/// What is to be told of gates that change what HPK can do.
pub(crate) fn without(cluster: &ClusterConfig) -> Option<String> {
    (!cluster.has_pod_groups()).then(|| format!("{GENERIC_WORKLOAD} is off: there are no PodGroups"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::tests::layout;

    #[test]
    fn lists_of_gates() {
        let one = |name: &str, on| BTreeMap::from([(name.to_owned(), on)]);
        assert_eq!(parse("default"), Ok(Choice(BTreeMap::new())));
        assert_eq!(parse("A=true"), Ok(Choice(one("A", true))));
        assert_eq!(parse("A=true, B=false").map(|c| c.0.len()), Ok(2));
        for wrong in ["", "A", "A=yes", "=true", "A=true,,B=true", "A B=true", "A=true;B=true"] {
            assert!(parse(wrong).is_err_and(|why| why.contains("=true or =false")), "{wrong}");
        }
    }

    #[test]
    fn gangs_are_on_unless_they_are_switched_off() {
        let mut cluster = layout().cluster;
        assert_eq!(arguments(&cluster), ["--feature-gates=GenericWorkload=true"]);
        assert_eq!(apis(&cluster).len(), 1);
        cluster.feature_gates = parse("WorkloadWithJob=true").unwrap().0;
        assert_eq!(arguments(&cluster), ["--feature-gates=GenericWorkload=true,WorkloadWithJob=true"]);
        cluster.feature_gates = parse("GenericWorkload=false").unwrap().0;
        assert_eq!(arguments(&cluster), ["--feature-gates=GenericWorkload=false"]);
        assert!(apis(&cluster).is_empty() && without(&cluster).is_some());
    }

    #[test]
    fn the_programs_own_words_are_passed_on() {
        let text = "I1128 x\nError: unrecognized feature gate: Foo\n";
        assert!(words(text).starts_with("unrecognized feature gate: Foo (hpk up"), "{}", words(text));
        assert!(words("").starts_with("kube-apiserver refuses them"));
    }
}
