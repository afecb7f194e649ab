//! What the owner of a pod without a link is told: why, in the words of its node, and what to do.

use std::net::SocketAddr;

/// How hpk-netns begins what it says of the link in the job's output.
const LINK: &str = "hpk-netns: link to the kubelet: ";

/// The event of a pod that has no link; `output`: the end of its job's.
pub(super) fn text(output: &str, address: SocketAddr, node: Option<&str>) -> String {
    let node = node.unwrap_or("its node");
    let said = output.lines().rev().find_map(|line| line.strip_prefix(LINK));
    let cause = said.map_or_else(
        || format!("{node} has not said why"),
        |said| format!("{node} says: {}", said.trim_end_matches("; dialling on")),
    );
    format!(
        "the pod has no link to the kubelet: it runs on, and learns nothing new of Services, NetworkPolicies and its \
         volumes' contents. {cause}. Compute nodes must reach TCP {address} (hpk doctor looks); until then Slurm carries \
         the link (srun --overlap) where it can"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_link_is_told_with_the_nodes_own_last_word() {
        let address = "10.77.0.1:7000".parse().unwrap();
        let output = "hpk-netns: link to the kubelet: closed by the other end; dialling on\nx\n\
                      hpk-netns: link to the kubelet: dialling 10.77.0.1:6999: Connection refused (os error 111); dialling on\n";
        let told = text(output, address, Some("c1"));
        assert!(
            told.contains("c1 says: dialling 10.77.0.1:6999: Connection refused (os error 111). Compute"),
            "{told}"
        );
        assert!(told.contains("TCP 10.77.0.1:7000"), "{told}");
        assert!(text("", address, None).contains("its node has not said why"));
    }
}
