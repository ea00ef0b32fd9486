//! The builder as a person or a script meets it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../../../tests/common/classifier.rs"]
mod classifier;
#[path = "../common/mod.rs"]
mod common;
#[path = "../../../tests/common/power.rs"]
mod power;

mod build;
#[cfg(feature = "failpoints")]
mod current;
mod damage;
mod features;
mod import;
mod mixed;
mod resume;
