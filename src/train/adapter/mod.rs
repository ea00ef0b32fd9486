//! An adapter that learns to answer, about pictures or from texts alone.
//!
//! ```text
//! pretrain   captions     ─► gates, prefix or prompts, what is between pictures and the decoder
//! finetune   instructions ─► norms, biases, low-rank matrices; of the chat program scales too
//! joint      both in turn, a batch each: captions move the first, instructions the second
//!
//! pictures ─► sight.rs ─► embeddings, or pixels ─┐
//! texts ─► texts.rs ─► ids, labels, once ────────┴─► batches ─► models::llama::Learner ─► gradients
//! ```
//! | file | its one idea |
//! |---|---|
//! | `recipe.rs` | what a recipe says of it |
//! | `sight.rs` | what is shown beside a text |
//! | `seen.rs` | embeddings of pictures, computed once |
//! | `alternate.rs` | two kinds of batches in turn |
//! | `task.rs` | the task |
//!
//! Backbone, encoder and CLIP never move; what does not learn in a phase is the same afterwards, bit for bit. Joint training is the idea
//! of LLaMA-Adapter V2's paper; the published programs run one phase behind the other.
//!
//! Source: the training programs of ImageBind-LLM (arXiv 2309.03905) and LLaMA-Adapter V2 (2304.15010).

mod alternate;
mod recipe;
mod seen;
mod sight;
mod task;

pub use recipe::{AdapterRecipe, Family, Phase, Tests};
pub use task::{AdapterTask, Batch, Texts};
