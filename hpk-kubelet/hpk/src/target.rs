//! What `hpk expose` is told to expose.

/// What is exposed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// `pod/NAME`
    Pod(String),
    /// `service/NAME`
    Service(String),
}

impl std::str::FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some(("pod" | "pods" | "po", name)) if !name.is_empty() => Ok(Self::Pod(name.to_owned())),
            Some(("service" | "services" | "svc", name)) if !name.is_empty() => Ok(Self::Service(name.to_owned())),
            _ => Err("expected pod/NAME or service/NAME".to_owned()),
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pod(name) => write!(f, "pod/{name}"),
            Self::Service(name) => write!(f, "service/{name}"),
        }
    }
}
