//! Another size for a job that waits. Pure: what `scontrol update` is told.

/// The arguments that give job `id`, which waits, what `asked` says: arguments of sbatch, of which CPUs and memory count.
///
/// # Errors
/// A job whose size is not said by these two: for people.
pub(super) fn update(id: &str, asked: &[String]) -> Result<Vec<String>, String> {
    let value = |flag: &str| asked.iter().rev().find_map(|word| word.strip_prefix(flag)?.strip_prefix('='));
    let one = value("--nodes") == Some("1") && value("--ntasks") == Some("1");
    let number = |flag: &str, unit: &str| value(flag).and_then(|v| v.strip_suffix(unit)?.parse::<u64>().ok());
    let (Some(cpus), Some(mib), true) = (number("--cpus-per-task", ""), number("--mem", "M"), one) else {
        return Err(
            "flags of the pod, or an MPI step, say what its job takes; delete the pod and make it anew".to_owned()
        );
    };
    Ok(vec![
        "update".to_owned(),
        format!("JobId={id}"),
        // All of them: Slurm keeps a request for CPUs in four places and changes only the one that is named.
        format!("TresPerTask=cpu={cpus}"),
        format!("CPUsPerTask={cpus}"),
        format!("NumCPUs={cpus}"),
        format!("MinCPUsNode={cpus}"),
        format!("MinMemoryNode={mib}"),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn what_scontrol_is_told() {
        let told = update("7", &words("--no-requeue --nodes=1 --ntasks=1 --cpus-per-task=4 --mem=300M --qos=high"))
            .expect("it can");
        assert_eq!(
            told.join(" "),
            "update JobId=7 TresPerTask=cpu=4 CPUsPerTask=4 NumCPUs=4 MinCPUsNode=4 MinMemoryNode=300"
        );
        for other in [
            "--nodes=1 --ntasks=1 --cpus-per-task=4 --mem-per-cpu=300M",
            "--nodes=1 --ntasks=1 --cpus-per-task=4 --mem=1G",
            "--nodes=2 --ntasks=1 --cpus-per-task=4 --mem=300M",
            "--ntasks=4 --cpus-per-task=4 --mem=300M",
            "--nodes=1 --ntasks=1 --cpus-per-gpu=4 --mem=300M",
        ] {
            assert!(update("7", &words(other)).is_err(), "{other}");
        }
    }
}
