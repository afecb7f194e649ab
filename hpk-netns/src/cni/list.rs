//! A user's CNI configuration list, <https://www.cni.dev/docs/spec/#section-1-network-configuration-format>. Pure.
//!
//! Its first plug-in is our overlay, which makes the pod's network; the others are run upon what it made.

use hpk_api::net::NetworkList;
use serde_json::{Map, Value};

/// Type of the first plug-in.
pub(crate) const OVERLAY: &str = "hpk-overlay";
/// Versions of the specification that are spoken here.
const VERSIONS: [&str; 2] = ["1.0.0", "1.1.0"];
/// What a runtime puts into a plug-in's configuration.
const RUNTIMES: [&str; 2] = ["runtimeConfig", "prevResult"];

/// A list that was found good.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct List {
    pub(crate) version: &'static str,
    pub(crate) name: String,
    /// The user does not want CHECK.
    pub(crate) disable_check: bool,
    /// Without the first one.
    pub(crate) plugins: Vec<Plugin>,
}

/// One plug-in of it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Plugin {
    /// Name of its program.
    pub(crate) kind: String,
    /// As written, without what is the runtime's.
    pub(crate) conf: Map<String, Value>,
    /// Declared as true.
    pub(crate) capabilities: Vec<String>,
}

/// Why a list is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {field}{message}")]
pub(crate) struct ListError {
    file: String,
    /// With `: `; empty: the whole file.
    field: String,
    message: String,
}

impl List {
    /// Judges it.
    ///
    /// # Errors
    /// Names the file and the field.
    pub(crate) fn parse(list: &NetworkList) -> Result<Self, ListError> {
        let wrong = |field: &str, message: String| ListError {
            file: list.file.clone(),
            field: if field.is_empty() { String::new() } else { format!("{field}: ") },
            message,
        };
        let value: Value = serde_json::from_str(&list.text).map_err(|e| wrong("", format!("not JSON: {e}")))?;
        let Value::Object(mut all) = value else {
            return Err(wrong("", "must be a JSON object with cniVersion, name and plugins".to_owned()));
        };
        let version = text(&all, "cniVersion").map_err(|m| wrong("cniVersion", m))?;
        let version = VERSIONS.into_iter().find(|v| *v == version).ok_or_else(|| {
            wrong("cniVersion", format!("{version:?} is not spoken here: write {}", VERSIONS.join(" or ")))
        })?;
        let name = text(&all, "name").map_err(|m| wrong("name", m))?;
        if !is_name(&name) {
            return Err(wrong(
                "name",
                format!("{name:?}: must be letters, digits, '.', '_' and '-', a letter or digit first"),
            ));
        }
        let disable_check = match all.get("disableCheck") {
            None => false,
            Some(Value::Bool(value)) => *value,
            // Plug-ins' own library takes the word as well.
            Some(Value::String(word)) if word == "true" || word == "false" => word == "true",
            Some(other) => return Err(wrong("disableCheck", format!("{other}: must be true or false"))),
        };
        let Some(Value::Array(plugins)) = all.remove("plugins") else {
            return Err(wrong("plugins", format!("must be a list of plug-ins, {OVERLAY:?} first")));
        };
        let parsed = plugins.into_iter().enumerate().map(|(index, conf)| {
            plugin(conf).map_err(|(field, message)| wrong(&format!("plugins[{index}]{field}"), message))
        });
        let mut parsed = parsed.collect::<Result<Vec<_>, _>>()?;
        if parsed.first().is_none_or(|first| first.kind != OVERLAY) {
            let hint = "a network of the site's own is used by hpk up --network cni:NAME";
            return Err(wrong("plugins[0].type", format!("must be {OVERLAY:?}, the pods' own network; {hint}")));
        }
        parsed.remove(0);
        if let Some(index) = parsed.iter().position(|p| p.kind == OVERLAY) {
            return Err(wrong(&format!("plugins[{}].type", index + 1), format!("{OVERLAY:?} can only be the first")));
        }
        Ok(Self { version, name, disable_check, plugins: parsed })
    }

    /// Whether a plug-in carries out the pod's host ports.
    pub(crate) fn maps_ports(&self) -> bool {
        self.plugins.iter().any(|p| p.capabilities.iter().any(|c| c == "portMappings"))
    }
}

fn text(all: &Map<String, Value>, key: &str) -> Result<String, String> {
    match all.get(key) {
        Some(Value::String(text)) if !text.is_empty() => Ok(text.clone()),
        Some(other) => Err(format!("{other}: must be a text")),
        None => Err("is missing".to_owned()),
    }
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}

fn plugin(conf: Value) -> Result<Plugin, (String, String)> {
    let Value::Object(mut conf) = conf else { return Err((String::new(), "must be an object".to_owned())) };
    let kind = text(&conf, "type").map_err(|m| (".type".to_owned(), m))?;
    if !is_name(&kind) {
        return Err((".type".to_owned(), format!("{kind:?}: must be the name of a program, without a folder")));
    }
    if let Some(key) = RUNTIMES.iter().find(|key| conf.contains_key(**key)) {
        return Err((format!(".{key}"), "is given by hpk-netns: take it out".to_owned()));
    }
    let mut capabilities = Vec::new();
    match conf.remove("capabilities") {
        None => {}
        Some(Value::Object(declared)) => {
            for (name, value) in declared {
                match value {
                    Value::Bool(true) => capabilities.push(name),
                    Value::Bool(false) => {}
                    other => return Err((format!(".capabilities.{name}"), format!("{other}: must be true or false"))),
                }
            }
        }
        Some(other) => return Err((".capabilities".to_owned(), format!("{other}: must be an object"))),
    }
    Ok(Plugin { kind, conf, capabilities })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<List, String> {
        let list = NetworkList { file: "net.d/10.conflist".to_owned(), text: text.to_owned() };
        List::parse(&list).map_err(|e| e.to_string())
    }

    #[test]
    fn a_good_list() {
        let list = parse(
            r#"{"cniVersion":"1.0.0","name":"pods","more":1,"disableCheck":true,"plugins":[{"type":"hpk-overlay"},
               {"type":"tuning","sysctl":{"net.core.somaxconn":"512"}},
               {"type":"portmap","capabilities":{"portMappings":true,"ips":false}}]}"#,
        )
        .unwrap();
        assert_eq!((list.version, list.name.as_str(), list.disable_check), ("1.0.0", "pods", true));
        assert_eq!(list.plugins.len(), 2);
        assert!(list.plugins[0].conf.contains_key("sysctl") && !list.plugins[1].conf.contains_key("capabilities"));
        assert!(list.maps_ports());
    }

    #[test]
    fn a_bad_list_is_told_by_file_and_field() {
        for (text, field) in [
            ("{", "net.d/10.conflist: not JSON: "),
            ("[]", "net.d/10.conflist: must be a JSON object"),
            (r#"{"name":"a","plugins":[]}"#, "net.d/10.conflist: cniVersion: is missing"),
            (
                r#"{"cniVersion":"0.4.0","name":"a","plugins":[]}"#,
                "cniVersion: \"0.4.0\" is not spoken here: write 1.0.0",
            ),
            (r#"{"cniVersion":"1.0.0","name":"/a","plugins":[]}"#, "name: \"/a\""),
            (r#"{"cniVersion":"1.0.0","name":"a","plugins":{}}"#, "plugins: must be a list"),
            (r#"{"cniVersion":"1.0.0","name":"a","plugins":[]}"#, "plugins[0].type: must be \"hpk-overlay\""),
            (r#"{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"bridge"}]}"#, "plugins[0].type: must be"),
            (
                r#"{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"hpk-overlay"},{}]}"#,
                "plugins[1].type: is missing",
            ),
            (
                r#"{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"hpk-overlay"},{"type":"../x"}]}"#,
                "plugins[1].type: ",
            ),
            (
                r#"{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"hpk-overlay"},{"type":"hpk-overlay"}]}"#,
                "only be the first",
            ),
            (
                r#"{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"hpk-overlay"},{"type":"x","prevResult":{}}]}"#,
                "plugins[1].prevResult: ",
            ),
            (
                r#"{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"hpk-overlay"},{"type":"x","capabilities":{"b":1}}]}"#,
                "plugins[1].capabilities.b: 1: must be true or false",
            ),
            (r#"{"cniVersion":"1.0.0","name":"a","disableCheck":1,"plugins":[]}"#, "disableCheck: 1"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(field), "{text}: {error}");
        }
    }
}
