pub use oci_spec::distribution::Reference;
