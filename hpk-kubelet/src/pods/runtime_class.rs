//! Handlers of RuntimeClasses. Every pod runs under Apptainer; a handler that promises something else (gVisor's or Kata's
//! walls, for example) must not be taken for it.

use k8s_openapi::api::node::v1::RuntimeClass;
use kube::{Api, Client};
use thiserror::Error;

/// What a pod has here in any case: a runtime without further walls, and the GPUs that it asks for.
const HANDLERS: [&str; 6] = ["apptainer", "crun", "nvidia", "nvidia-cdi", "nvidia-legacy", "runc"];

/// Why a pod cannot run now, for an event.
#[derive(Debug, Error)]
pub(crate) enum RuntimeClassError {
    #[error("spec.runtimeClassName: RuntimeClass {class:?}: {source}")]
    Read { class: String, source: kube::Error },
    #[error("spec.runtimeClassName: there is no RuntimeClass {0:?}")]
    Missing(String),
    #[error(
        "spec.runtimeClassName: handler {handler:?} of RuntimeClass {class:?} is not configured here, where pods run under Apptainer: use a RuntimeClass with one of the handlers {}",
        HANDLERS.join(", ")
    )]
    Handler { class: String, handler: String },
}

/// Checks the handler of the RuntimeClass that a pod names.
///
/// # Errors
/// The class cannot be read, is not there, or has a handler that is not ours.
pub(crate) async fn check(client: Client, class: &str) -> Result<(), RuntimeClassError> {
    let found = Api::<RuntimeClass>::all(client).get_opt(class).await;
    match found.map_err(|source| RuntimeClassError::Read { class: class.to_owned(), source })? {
        Some(found) => handler(class, &found.handler),
        None => Err(RuntimeClassError::Missing(class.to_owned())),
    }
}

fn handler(class: &str, handler: &str) -> Result<(), RuntimeClassError> {
    if HANDLERS.contains(&handler) {
        return Ok(());
    }
    Err(RuntimeClassError::Handler { class: class.to_owned(), handler: handler.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handler_with_other_promises_is_refused_by_name() {
        assert!(HANDLERS.iter().all(|name| handler("any", name).is_ok()));
        let refused = handler("strong", "gvisor").unwrap_err().to_string();
        assert!(
            refused.contains("\"gvisor\"") && refused.contains("\"strong\"") && refused.contains("runc"),
            "{refused}"
        );
    }
}
