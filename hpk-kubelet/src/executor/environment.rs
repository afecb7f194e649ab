//! Variables of the kubelet that a run inherits, whoever runs it.

const NAMES: [&str; 10] =
    ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "MODULEPATH"];

/// Whether a run inherits this variable: enough to find Apptainer and its configuration.
pub(crate) fn inherited(name: &str) -> bool {
    NAMES.contains(&name) || name.starts_with("APPTAINER_CONFIG")
}
