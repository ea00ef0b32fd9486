//! The models, the senses' front ends and the cache's maths against the published programs.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../common/classifier.rs"]
mod classifier;
#[path = "../common/mod.rs"]
mod common;
#[path = "../common/decoder.rs"]
mod decoder;

mod adapter_texts;
mod adapter_v2;
mod blend;
mod card;
mod checkpoint;
#[cfg(feature = "cuda")]
mod cuda;
mod gradients;
mod illama;
mod illama_encoder;
mod illama_learning;
mod illama_preprocess;
mod illama_steps;
mod imagebind;
mod llama;
mod media;
mod nano;
mod point;
mod preprocess;
mod tokenizer;
