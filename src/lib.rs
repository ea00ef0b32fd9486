//! A training-free visual cache for multimodal models.
pub mod types;
pub mod blend;
pub mod kernels;
pub mod index;
pub mod store;
pub mod cache;
pub mod text;
pub mod media;
