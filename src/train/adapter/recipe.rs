//! What a recipe says of an adapter.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::models::learning::adamw;
use crate::models::llama::{self, AdapterSizes, Group};
use crate::text::{ChatTemplate, Template};
use crate::train::Error;
use crate::train::data::{Instructions, Source};
use crate::train::texts::Form;

/// Whose adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Family {
    /// ImageBind-LLM's: it is shown embeddings.
    ImagebindLlm,
    /// LLaMA-Adapter V2's, multimodal: it looks at pictures through CLIP.
    LlamaAdapterV2,
    /// LLaMA-Adapter V2's chat program's: it is shown nothing.
    Chat,
}

impl Family {
    /// As the decoder calls it.
    pub(super) fn of_decoder(self) -> llama::Family {
        match self {
            Family::ImagebindLlm => llama::Family::ImageBindLlm,
            Family::LlamaAdapterV2 => llama::Family::V2Picture,
            Family::Chat => llama::Family::V2Chat,
        }
    }
}

/// What learns, and by which data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Captions move gates, prefix or prompts, and what is between pictures and the decoder.
    Pretrain,
    /// Instructions move norms, biases and low-rank matrices; of the chat program scales as well, and prompts with their gates.
    Finetune,
    /// Both, in turn.
    Joint,
}

/// What is taught, by which data, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterRecipe {
    /// Whose adapter.
    pub family: Family,
    /// What of it learns.
    pub phase: Phase,
    /// The LLaMA: `nano` for the built-in one's backbone, or as `--decoder` takes it.
    pub backbone: String,
    /// Its `tokenizer.model`, when it is not beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
    /// The adapter that is gone on with: a file, or the folder of a run. A finetune of an adapter that looks needs one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start: Option<PathBuf>,
    /// What ImageBind-LLM's pictures are embedded by: `nano`, or a checkpoint of ImageBind's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoder: Option<String>,
    /// Sizes of that checkpoint as JSON; those of `imagebind_huge` where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoder_sizes: Option<PathBuf>,
    /// What LLaMA-Adapter V2 looks through: CLIP's file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip: Option<PathBuf>,
    /// Of its pictures, the least and most that is shown in training, as shares of the area.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crop: Option<[f64; 2]>,
    /// The format of the chat program's conversations; `v1` where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conversation: Option<String>,
    /// Tokens of a text, at most; the published program's where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<usize>,
    /// Sizes of what is new.
    #[serde(default)]
    pub sizes: AdapterSizes,
    /// Pictures with captions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub captions: Option<Source>,
    /// Instructions with answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instructions: Option<Instructions>,
    /// What it is tested by.
    #[serde(default)]
    pub test: Tests,
    /// Memory for embeddings, MiB.
    #[serde(default = "AdapterRecipe::memory_mib")]
    pub memory_mib: usize,
    /// How the optimiser moves weights.
    #[serde(default = "adamw::Settings::adapters")]
    pub optimiser: adamw::Settings,
    /// Hold the activations of one block at a time; each is computed twice for that.
    #[serde(default)]
    pub blockwise: bool,
}

impl AdapterRecipe {
    /// Default of [`memory_mib`](field@AdapterRecipe::memory_mib).
    pub const DEFAULT_MEMORY_MIB: usize = 8192;
    /// Default of [`crop`](field@AdapterRecipe::crop).
    pub const DEFAULT_CROP: [f64; 2] = [0.9, 1.0];

    fn memory_mib() -> usize {
        Self::DEFAULT_MEMORY_MIB
    }

    /// Refuses a recipe whose parts do not belong together.
    ///
    /// # Errors
    /// [`Error::Contradiction`].
    pub(super) fn check(&self) -> Result<(), Error> {
        let why = match (self.family, self.phase, &self.captions, &self.instructions) {
            (Family::Chat, Phase::Pretrain | Phase::Joint, ..) => {
                "the chat program looks at nothing: its phase is `finetune`"
            }
            (Family::Chat, _, None, Some(_)) if self.test.captions.is_some() => {
                "the chat program looks at nothing: it is tested by `instructions`"
            }
            (_, Phase::Pretrain, Some(_), None)
            | (_, Phase::Finetune, None, Some(_))
            | (_, Phase::Joint, Some(_), Some(_)) => "",
            (_, Phase::Pretrain, ..) => "the phase `pretrain` learns from `captions` alone",
            (_, Phase::Finetune, ..) => "the phase `finetune` learns from `instructions` alone",
            (_, Phase::Joint, ..) => "the phase `joint` needs `captions` and `instructions`",
        };
        let classes = |source: &Option<Source>| matches!(source, Some(Source::Folder(_) | Source::Cifar(_)));
        let looks = self.family != Family::Chat;
        let others = [
            (
                classes(&self.captions) || classes(&self.test.captions),
                "`captions` come from a `table`, from `tars` or from `scenes`: folders have classes",
            ),
            (
                looks && self.phase == Phase::Finetune && self.start.is_none(),
                "a finetune goes on with an adapter that has learned to look: name it by `start`",
            ),
            (
                self.family == Family::ImagebindLlm && self.encoder.is_none(),
                "ImageBind-LLM is shown embeddings: name by `encoder` what makes them",
            ),
            (
                self.family != Family::ImagebindLlm
                    && (self.encoder.is_some() || self.encoder_sizes.is_some()),
                "ImageBind-LLM alone is shown embeddings: the others have no `encoder`",
            ),
            (
                self.family == Family::LlamaAdapterV2 && self.clip.is_none(),
                "LLaMA-Adapter V2 looks at pictures through CLIP ViT-L/14: name its file by `clip`",
            ),
            (
                self.family != Family::LlamaAdapterV2 && (self.clip.is_some() || self.crop.is_some()),
                "LLaMA-Adapter V2 alone looks at pictures itself: the others have no `clip` and no `crop`",
            ),
            (
                looks && self.conversation.is_some(),
                "`conversation` is of the chat program: the others learn from instructions",
            ),
        ];
        let other = others.into_iter().find(|(wrong, _)| *wrong).map(|(_, why)| why);
        match (why, other) {
            ("", None) => Ok(()),
            ("", Some(why)) | (why, _) => Err(Error::Contradiction(why)),
        }
    }

    /// How what is asked and answered becomes a text.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a format that there is not.
    pub(super) fn form(&self) -> Result<Form, Error> {
        Ok(match self.family {
            Family::ImagebindLlm => Form::Instruction(Template::ImageBindLlm),
            Family::LlamaAdapterV2 => Form::Instruction(Template::V2Multimodal),
            Family::Chat => {
                let word = self.conversation.as_deref().unwrap_or(ChatTemplate::default().word());
                let template = ChatTemplate::named(word).ok_or_else(|| Error::Parameter {
                    name: "adapter.conversation",
                    value: word.to_owned(),
                    allowed: "v1, conv_v1 or bair_v1",
                })?;
                Form::Conversation(template)
            }
        })
    }

    /// Tokens of a text where the recipe does not say.
    pub(super) fn usual_length(&self) -> usize {
        match (self.family, self.phase) {
            (Family::Chat, _) => 2048,
            (_, Phase::Pretrain) => 96,
            (_, Phase::Finetune | Phase::Joint) => 512,
        }
    }

    /// What learns: by captions, by instructions, or both in this order.
    pub(super) fn groups(&self) -> Vec<Group> {
        let [first, second] = match self.family {
            Family::ImagebindLlm => [Group::BIND_PRETRAIN, Group::BIND_FINETUNE],
            Family::LlamaAdapterV2 if self.sizes.rank(llama::Family::V2Picture) > 0 => {
                [Group::V2_PRETRAIN, Group::V2_FINETUNE_LORA]
            }
            Family::LlamaAdapterV2 => [Group::V2_PRETRAIN, Group::V2_FINETUNE],
            Family::Chat => [Group::CHAT; 2],
        };
        match self.phase {
            Phase::Pretrain => vec![first],
            Phase::Finetune => vec![second],
            Phase::Joint => vec![first, second],
        }
    }
}

/// Data that are not learned.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tests {
    /// Pictures with captions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub captions: Option<Source>,
    /// Instructions with answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instructions: Option<Instructions>,
}
