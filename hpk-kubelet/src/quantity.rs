//! The API's quantities as exact integers.

pub use hpk_api::quantity::{milli, value};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// [`milli`] of an API quantity; 0 for an unreadable one (the API server lets none through).
#[must_use]
pub fn milli_of(quantity: &Quantity) -> u64 {
    milli(&quantity.0).unwrap_or(0)
}

/// [`value`] of an API quantity; 0 for an unreadable one.
#[must_use]
pub fn value_of(quantity: &Quantity) -> u64 {
    value(&quantity.0).unwrap_or(0)
}
