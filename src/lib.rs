//! A training-free visual cache for multimodal models: build it from images, serve it over gRPC.
//!
//! A decoder trained on image–text pairs answers badly when it is handed the embedding of a text or a sound: it lies in
//! the right region of the joint space, but off the images. The cure needs no training: find the query's nearest
//! neighbours among many stored image embeddings, average them by `softmax(t · score)`, and mix the average back in
//! ([`blend`]; ImageBind-LLM, arXiv 2309.03905). This crate is the library behind `viscache` and `index-builder`.
//!
//! # The map
//!
//! A module uses only floors below its own (`tests/floors.rs` holds it to that):
//!
//! ```text
//! 5 edge     serve          gRPC and nothing else
//! 4 flows    flow           embed · search · enhance · upsert, each one readable function
//! 3 joins    cache          index + store: generations, changes, the single writer
//!            train          what learning is made of, but for the networks
//! 2 parts    models · index · store
//! 1 pure     media · text · scenes · kernels · blend
//! 0 ground   types · metrics · budget
//! ```
//!
//! # The two straight ways
//!
//! ```text
//! build    file ─ media::image ─ models::encoder ─ cache::Writer::put ─ cache::Writer::index ─► a generation
//! ask      serve ─ flow::enhance ─ (models) ─ blend::mix ─ cache::Snapshot::search ─ blend::blend ─► serve
//! ```

pub mod allocator;
pub mod batch;
pub mod blend;
pub mod budget;
pub mod cache;
pub mod flow;
pub mod index;
pub mod kernels;
pub mod media;
pub mod metrics;
pub mod models;
pub mod scenes;
pub mod serve;
pub mod store;
pub mod text;
pub mod train;
pub mod types;
