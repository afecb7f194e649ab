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

/// A flag's value, of the user's flags: `--name=value`, or the value as the next argument.
pub(crate) fn given<'a>(flags: &'a [String], name: &str) -> Option<&'a str> {
    flags.iter().enumerate().rev().find_map(|(at, flag)| match flag.strip_prefix(name)? {
        "" => flags.get(at + 1).map(String::as_str),
        rest => rest.strip_prefix('='),
    })
}

/// Arguments of srun for one process beside the step, on one of its nodes.
pub(crate) fn beside(job: &str, node: &str, command: &[OsString]) -> Vec<OsString> {
    let words = ["--overlap", "--nodes=1", "--ntasks=1", "--mpi=none", "--quiet", "--input=0"];
    let mut argv: Vec<OsString> = words.into_iter().map(OsString::from).collect();
    // Else Slurm passes on whole lines only.
    argv.extend(["--unbuffered", "--job-name=hpk-session", "--chdir=/"].map(OsString::from));
    argv.extend([format!("--jobid={job}").into(), format!("--nodelist={node}").into()]);
    argv.extend_from_slice(command);
    argv
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
    fn a_value_in_either_form() {
        let flags = |list: &[&str]| list.iter().map(|&flag| flag.to_owned()).collect::<Vec<_>>();
        assert_eq!(given(&flags(&["--mpi=pmi2"]), "--mpi"), Some("pmi2"));
        assert_eq!(given(&flags(&["--mpi", "none", "--exact"]), "--mpi"), Some("none"));
        assert_eq!(given(&flags(&["--mpi=pmix", "--mpi=none"]), "--mpi"), Some("none"));
        assert_eq!(given(&flags(&["--mpix=1", "--exact"]), "--mpi"), None);
    }
}
