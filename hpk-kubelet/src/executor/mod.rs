//! What runs pods. [`run`] is what everything above knows of it; [`slurm`] is how a Slurm cluster does it.

pub mod run;
pub mod slurm;
