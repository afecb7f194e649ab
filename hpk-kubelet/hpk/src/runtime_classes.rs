//! RuntimeClasses that charts for GPUs name. The API server refuses a pod whose class does not exist; here every pod sees the
//! GPUs that it asks for, whatever its class.

use serde_json::{Value, json};

/// As NVIDIA's operator has them.
const NAMES: [&str; 3] = ["nvidia", "nvidia-cdi", "nvidia-legacy"];

pub(crate) fn all(labels: &Value) -> Vec<Value> {
    let class = |name: &str| {
        json!({
            "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass",
            "metadata": {"name": name, "labels": labels}, "handler": name,
        })
    };
    NAMES.map(class).into()
}
