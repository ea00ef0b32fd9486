//! The messages and services that `proto/` declares, and their descriptors for reflection.

#![allow(missing_docs, clippy::doc_markdown, reason = "generated from proto/, where the comments are")]

tonic::include_proto!("viscache.v1");

/// The descriptor set of `proto/`, comments included.
pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));
