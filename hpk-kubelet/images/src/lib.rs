//! hpk-images
