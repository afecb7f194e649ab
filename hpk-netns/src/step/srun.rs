//! The command line of srun for a step. Pure.

use std::ffi::OsString;
use std::path::Path;

/// What a step is started from.
pub(crate) struct Parts<'a> {
    /// The user's flags: they come last and so win.
    pub(crate) flags: &'a [String],
    /// `--mpi` for a user who gives none.
    pub(crate) mpi: Option<&'a str>,
    /// The job's `--cpus-per-task`: srun does not take it from the job by itself.
    pub(crate) cpus_per_task: Option<&'a str>,
    /// This program on all nodes.
    pub(crate) program: &'a Path,
    /// The pod's folder.
    pub(crate) pod: &'a Path,
    pub(crate) instance: u32,
}

/// Arguments of srun.
pub(crate) fn arguments(parts: &Parts<'_>) -> Vec<OsString> {
    // One rank's bad end is the step's; orders go to all ranks by their standard input; sbatch --export is not for them.
    let mut argv: Vec<OsString> =
        ["--kill-on-bad-exit=1", "--input=all", "--export=ALL"].into_iter().map(OsString::from).collect();
    let given = |name: &str| parts.flags.iter().any(|flag| flag == name || flag.starts_with(&format!("{name}=")));
    if let Some(mpi) = parts.mpi.filter(|_| !given("--mpi")) {
        argv.push(format!("--mpi={mpi}").into());
    }
    if let Some(cpus) = parts.cpus_per_task.filter(|_| !given("--cpus-per-task") && !given("-c")) {
        argv.push(format!("--cpus-per-task={cpus}").into());
    }
    argv.extend(parts.flags.iter().map(OsString::from));
    argv.push(parts.program.into());
    argv.push("rank".into());
    argv.push(parts.pod.into());
    argv.push(parts.instance.to_string().into());
    argv
}

/// `--mpi` for what srun has (`srun --mpi=list`): PMIx where it is, for every current MPI library speaks it.
pub(crate) fn choose_mpi(list: &str) -> Option<&'static str> {
    list.split(|c: char| c.is_whitespace() || c == ',').any(|word| word == "pmix").then_some("pmix")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(flags: &[&str]) -> String {
        let flags: Vec<String> = flags.iter().map(|&flag| flag.to_owned()).collect();
        let (program, pod) = (Path::new("/p/hpk-netns"), Path::new("/h/pods/u"));
        let parts = Parts { flags: &flags, mpi: Some("pmix"), cpus_per_task: Some("2"), program, pod, instance: 3 };
        let argv = arguments(&parts);
        argv.iter().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_users_flags_win() {
        let ours = "--kill-on-bad-exit=1 --input=all --export=ALL";
        let end = "/p/hpk-netns rank /h/pods/u 3";
        assert_eq!(line(&[]), format!("{ours} --mpi=pmix --cpus-per-task=2 {end}"));
        assert_eq!(line(&["--mpi=pmi2", "-c", "1"]), format!("{ours} --mpi=pmi2 -c 1 {end}"));
        assert_eq!(line(&["--mpi", "none"]), format!("{ours} --cpus-per-task=2 --mpi none {end}"));
    }

    #[test]
    fn pmix_where_slurm_has_it() {
        let list =
            "MPI plugin types are...\n\tnone\n\tpmix\n\tpmi2\nspecific pmix plugin versions available: pmix_v5\n";
        assert_eq!(choose_mpi(list), Some("pmix"));
        assert_eq!(choose_mpi("MPI plugin types are...\n\tnone\n\tpmi2\n"), None);
    }
}
