//! The networks: tensors in, tensors out.
//!
//! | network | source | checkpoint | licence of the weights |
//! |---|---|---|---|
//! | [`imagebind`], `huge` | facebookresearch/ImageBind, arXiv 2305.05665 | `imagebind_huge.pth`, or the same as safetensors | CC BY-NC-SA 4.0 |
//! | [`imagebind`], any size | – | a JSON file of sizes and a file of weights | the user's |
//! | [`illama`] | techmonsterwang/iLLaMA, arXiv 2404.06773 | `illama-*.pth` | as its repository states |
//! | [`segmenter`] | ours, over [`illama`] | what `viscache train` writes | the user's |
//! | [`llama`] with ImageBind-LLM's adapter | OpenGVLab/LLaMA-Adapter, arXiv 2309.03905 | LLaMA-7B (`consolidated.00.pth`, or converted) and the adapter's `7B.pth` | LLaMA's, non-commercial; the adapter's as its repository states |
//! | [`llama`] with LLaMA-Adapter V2, multimodal | OpenGVLab/LLaMA-Adapter, arXiv 2304.15010 | LLaMA-7B, the adapter's `BIAS-7B.pth` or `LORA-BIAS-7B.pth`, CLIP's `ViT-L-14.pt` | likewise; CLIP MIT |
//! | [`llama`] with LLaMA-Adapter V2, chat | the same, `llama_adapter_v2_chat65b` | LLaMA-65B in eight files and the tuned `.pth` | likewise |
//! | [`nano`] | trained by us on drawn scenes | compiled in | as this project |
//!
//! Computation is f32 on the CPU, or 8 bits for the matrix products where that is asked for ([`device`]). There one
//! input is one thread's work ([`encoder`]): a large batch is slower per input, because softmax and norms are not
//! blocked. With the feature `cuda` a whole batch goes to the card, in bf16 or f32.

#[cfg(feature = "cuda")]
mod cuda;
pub mod device;
pub mod encoder;
pub mod illama;
pub mod imagebind;
mod layers;
pub mod learning;
pub mod llama;
pub mod llm;
pub mod nano;
mod positions;
pub mod segmenter;
pub mod weights;

/// What networks are given and give.
pub use candle_core::Tensor;
pub use device::{DeviceKind, Placement};

/// Why a model cannot be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A device this build or machine does not have.
    #[error("device `{asked}` is not available: {why}")]
    Device {
        /// What was asked for.
        asked: String,
        /// Why not.
        why: String,
    },
    /// The weights file cannot be read.
    #[error("cannot read weights from {path}: {why}")]
    Weights {
        /// Which file.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// A tensor the model needs and the file lacks.
    #[error(
        "{path} has no tensor `{name}`, which the model needs with shape {expected:?}; do the sizes fit this checkpoint?"
    )]
    MissingTensor {
        /// Which file.
        path: String,
        /// Which tensor.
        name: String,
        /// The shape it should have.
        expected: Vec<usize>,
    },
    /// A tensor of another shape.
    #[error("tensor `{name}` in {path} has shape {received:?}, the model needs {expected:?}")]
    TensorShape {
        /// Which file.
        path: String,
        /// Which tensor.
        name: String,
        /// The shape the model needs.
        expected: Vec<usize>,
        /// The shape in the file.
        received: Vec<usize>,
    },
    /// A tensor nobody asked for.
    #[error(
        "{path} has a tensor `{name}` of shape {received:?} that the model has no place for (expected: no such tensor)"
    )]
    SurplusTensor {
        /// Which file.
        path: String,
        /// Which tensor.
        name: String,
        /// Its shape.
        received: Vec<usize>,
    },
    /// Sizes that make no network.
    #[error("unusable configuration: {0}")]
    Config(String),
    /// A modality that was not loaded.
    #[error("this model was loaded without {0}; start with that modality to embed it")]
    NotLoaded(crate::types::Modality),
    /// An input of a shape the network does not take.
    #[error("input of shape {received:?}: {why}")]
    Input {
        /// Its shape.
        received: Vec<usize>,
        /// What would be taken.
        why: String,
    },
    /// The network produced something that is not an embedding.
    #[error("the model's output is not an embedding")]
    Output(#[from] crate::types::Error),
    /// The tensor library failed.
    #[error("tensor arithmetic failed")]
    Tensor(#[from] candle_core::Error),
}
