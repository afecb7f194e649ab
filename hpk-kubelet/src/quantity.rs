//! The API's quantities as exact integers.

pub(crate) use hpk_api::quantity::{milli, value};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

/// [`milli`] of an API quantity; 0 for an unreadable one (the API server lets none through).
#[must_use]
pub(crate) fn milli_of(quantity: &Quantity) -> u64 {
    milli(&quantity.0).unwrap_or(0)
}

/// [`value`] of an API quantity; 0 for an unreadable one.
#[must_use]
pub(crate) fn value_of(quantity: &Quantity) -> u64 {
    value(&quantity.0).unwrap_or(0)
}

/// Millicores of `cpu`, units of everything else.
#[must_use]
pub(crate) fn amounts(map: Option<&BTreeMap<String, Quantity>>) -> BTreeMap<String, u64> {
    map.into_iter()
        .flatten()
        .map(|(name, q)| (name.clone(), if name == "cpu" { milli_of(q) } else { value_of(q) }))
        .collect()
}
