//! Handlers of RuntimeClasses. Every pod runs under Apptainer; a handler that promises something else (gVisor's or Kata's
//! walls, for example) must not be taken for it.

use k8s_openapi::api::node::v1::RuntimeClass;
use kube::{Api, Client};

/// What a pod has here in any case: a runtime without further walls, and the GPUs that it asks for.
const HANDLERS: [&str; 6] = ["apptainer", "crun", "nvidia", "nvidia-cdi", "nvidia-legacy", "runc"];

/// Checks the handler of the RuntimeClass that a pod names.
///
/// # Errors
/// Why the pod cannot run now, for an event.
pub(crate) async fn check(client: Client, class: &str) -> Result<(), String> {
    let found = Api::<RuntimeClass>::all(client).get_opt(class).await;
    match found.map_err(|e| format!("spec.runtimeClassName: RuntimeClass {class:?}: {e}"))? {
        Some(found) => handler(class, &found.handler),
        None => Err(format!("spec.runtimeClassName: there is no RuntimeClass {class:?}")),
    }
}

fn handler(class: &str, handler: &str) -> Result<(), String> {
    if HANDLERS.contains(&handler) {
        return Ok(());
    }
    Err(format!(
        "spec.runtimeClassName: handler {handler:?} of RuntimeClass {class:?} is not configured here, where pods run under \
         Apptainer: use a RuntimeClass with one of the handlers {}",
        HANDLERS.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handler_with_other_promises_is_refused_by_name() {
        assert_eq!(HANDLERS.map(|name| handler("any", name)), HANDLERS.map(|_| Ok(())));
        let refused = handler("strong", "gvisor").unwrap_err();
        assert!(
            refused.contains("\"gvisor\"") && refused.contains("\"strong\"") && refused.contains("runc"),
            "{refused}"
        );
    }
}
