//! viscache
pub mod blend;
pub mod cache;
pub mod flow;
pub mod index;
pub mod kernels;
pub mod media;
pub mod models;
pub mod serve;
pub mod store;
pub mod text;
pub mod types;
