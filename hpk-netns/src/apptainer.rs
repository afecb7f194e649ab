//! What this node's Apptainer was built with and what its administrator has configured. Reads only.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Apptainer as the site has it here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Site {
    /// Ordinary users have what it does by root's rights.
    pub(crate) setuid: bool,
    /// Where networks are configured.
    pub(crate) folder: PathBuf,
    /// By their names.
    pub(crate) networks: Vec<SiteNetwork>,
}

/// A network that `--network` takes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SiteNetwork {
    pub(crate) name: String,
    /// A plug-in of it declares the capability `portMappings`.
    pub(crate) maps_ports: bool,
}

impl Site {
    /// Asks the program and its configuration.
    pub(crate) fn of(apptainer: &Path) -> Self {
        let output = Command::new(apptainer).arg("buildcfg").stdin(Stdio::null()).output();
        let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
        let value = |key: &str| text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('=')).unwrap_or_default();
        let conf = std::fs::read_to_string(value("APPTAINER_CONF_FILE")).unwrap_or_default();
        let folder = setting(&conf, "cni configuration path")
            .unwrap_or_else(|| Path::new(value("APPTAINER_CONFDIR")).join("network").display().to_string());
        let allowed = setting(&conf, "allow setuid").is_none_or(|word| word == "yes");
        let networks = networks(Path::new(&folder));
        Self { setuid: value("APPTAINER_SUID_INSTALL") == "1" && allowed, folder: folder.into(), networks }
    }

    /// Whether a network is known and maps host ports.
    pub(crate) fn maps_ports(&self, name: &str) -> bool {
        self.networks.iter().any(|network| network.name == name && network.maps_ports)
    }
}

/// The value of a line `key = value`.
fn setting(conf: &str, key: &str) -> Option<String> {
    let lines = conf.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let value = lines.rev().find_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix('='))?;
    Some(value.trim().to_owned()).filter(|value| !value.is_empty())
}

/// Those of a folder's lists and single plug-ins. Of two with one name the first file counts.
fn networks(folder: &Path) -> Vec<SiteNetwork> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
    let mut files: Vec<PathBuf> = entries
        .filter(|path| path.extension().is_some_and(|e| ["conflist", "conf", "json"].iter().any(|w| e == *w)))
        .collect();
    files.sort();
    let mut all: Vec<SiteNetwork> = Vec::with_capacity(files.len());
    for path in files {
        let Some(network) = std::fs::read(&path).ok().as_deref().and_then(network) else { continue };
        if all.iter().all(|known| known.name != network.name) {
            all.push(network);
        }
    }
    all.sort_unstable();
    all
}

fn network(text: &[u8]) -> Option<SiteNetwork> {
    let value: Value = serde_json::from_slice(text).ok()?;
    let name = value.get("name")?.as_str()?.to_owned();
    let declares = |plugin: &Value| plugin.pointer("/capabilities/portMappings") == Some(&Value::Bool(true));
    let maps_ports = match value.get("plugins").and_then(Value::as_array) {
        Some(plugins) => plugins.iter().any(declares),
        None => declares(&value),
    };
    Some(SiteNetwork { name, maps_ports })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_apptainer() {
        let conf = "# cni configuration path =\n# a comment\nallow setuid = yes\ncni configuration path = /srv/net.d\n";
        assert_eq!(setting(conf, "cni configuration path").as_deref(), Some("/srv/net.d"));
        assert_eq!(setting(conf, "allow setuid").as_deref(), Some("yes"));
        assert_eq!(setting(conf, "allow net users"), None);
    }

    #[test]
    fn networks_are_named_in_their_files_with_what_they_can() {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in [
            (
                "10-b.conflist",
                r#"{"name":"b","plugins":[{"type":"ptp"},{"type":"portmap","capabilities":{"portMappings":true}}]}"#,
            ),
            ("20-b.conflist", r#"{"name":"b","plugins":[]}"#),
            ("00-a.conf", r#"{"name":"a","type":"ptp","capabilities":{"portMappings":false}}"#),
            ("x.txt", r#"{"name":"x"}"#),
            ("bad.conflist", "{"),
        ] {
            std::fs::write(dir.path().join(file), text).unwrap();
        }
        let networks = networks(dir.path());
        let shown: Vec<_> = networks.iter().map(|n| (n.name.as_str(), n.maps_ports)).collect();
        assert_eq!(shown, [("a", false), ("b", true)]);
        let site = Site { networks, ..Site::default() };
        assert!(site.maps_ports("b") && !site.maps_ports("a") && !site.maps_ports("c"));
    }
}
