//! Which experts there are, and how they are asked and quoted. `consult.rs` asks them.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::batch::Generator;

/// Where the words go in a wording.
pub(super) const PLACE: &str = "{}";

/// Who can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ExpertKind {
    /// What the picture shows.
    Caption,
    /// What is written in it.
    Ocr,
}

impl ExpertKind {
    /// A word for it.
    pub fn word(self) -> &'static str {
        match self {
            ExpertKind::Caption => "caption",
            ExpertKind::Ocr => "ocr",
        }
    }
}

/// How experts are asked and how they are quoted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExpertSettings {
    /// The program that reads text in pictures.
    pub ocr_program: PathBuf,
    /// Languages it is to expect, as it names them: `eng`, `eng+deu`.
    pub ocr_language: String,
    /// Words of which it is less sure are left out, 0 to 100.
    pub ocr_confidence: f32,
    /// Time that it may take.
    pub ocr_timeout_seconds: u32,
    /// How what it finds is quoted: `{}` stands for it, lines numbered.
    pub ocr_wording: String,
    /// The captioner's decoder, as the setting `decoder` names one; without it, the decoder that is served.
    pub captioner: Option<PathBuf>,
    /// The adapter of that decoder.
    pub captioner_adapter: Option<PathBuf>,
    /// CLIP, for that adapter.
    pub captioner_clip: Option<PathBuf>,
    /// The tokenizer of that decoder.
    pub captioner_tokenizer: Option<PathBuf>,
    /// What the captioner is asked.
    pub caption_instruction: String,
    /// Tokens of a caption at most.
    pub caption_max_tokens: usize,
    /// How a caption is quoted: `{}` stands for it.
    pub caption_wording: String,
}

impl Default for ExpertSettings {
    fn default() -> Self {
        ExpertSettings {
            ocr_program: "tesseract".into(),
            ocr_language: "eng".into(),
            ocr_confidence: 60.0,
            ocr_timeout_seconds: 20,
            ocr_wording: "Text in the picture: {}".into(),
            captioner: None,
            captioner_adapter: None,
            captioner_clip: None,
            captioner_tokenizer: None,
            caption_instruction: "Generate caption of this image".into(),
            caption_max_tokens: 64,
            caption_wording: "{}".into(),
        }
    }
}

impl ExpertSettings {
    /// What is wrong with them, by the name of the setting.
    pub fn problem(&self) -> Option<(&'static str, String)> {
        for (name, wording) in
            [("ocr_wording", &self.ocr_wording), ("caption_wording", &self.caption_wording)]
        {
            if !wording.contains(PLACE) {
                return Some((name, format!("`{wording}` has no place {PLACE} for what was found")));
            }
        }
        let sane = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '+' | '/');
        if self.ocr_language.is_empty() || !self.ocr_language.chars().all(sane) {
            return Some(("ocr_language", format!("`{}` is no list of languages", self.ocr_language)));
        }
        if !(0.0..=100.0).contains(&self.ocr_confidence) {
            return Some(("ocr_confidence", format!("{} is not from 0 to 100", self.ocr_confidence)));
        }
        if self.ocr_timeout_seconds == 0 || self.caption_max_tokens == 0 {
            return Some(("ocr_timeout_seconds and caption_max_tokens", "must be at least 1".into()));
        }
        let parts = [&self.captioner_adapter, &self.captioner_clip, &self.captioner_tokenizer];
        if self.captioner.is_none() && parts.iter().any(|part| part.is_some()) {
            return Some(("captioner", "is not set, but files that belong to it are".into()));
        }
        None
    }
}

/// What an expert found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Who.
    pub expert: ExpertKind,
    /// The words, as they stand in the prompt; empty where nothing was found.
    pub text: String,
    /// How long it took.
    pub took: Duration,
}

/// Those who can be asked here.
pub struct Experts {
    /// How they are asked and quoted.
    pub settings: ExpertSettings,
    /// The captioner's own decoder; without it, the one that is served.
    pub captioner: Option<Generator>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_cannot_work_are_told() {
        let with = |change: &dyn Fn(&mut ExpertSettings)| {
            let mut settings = ExpertSettings::default();
            change(&mut settings);
            settings.problem().map(|(name, _)| name)
        };
        assert_eq!(with(&|_| {}), None);
        assert_eq!(with(&|s| s.ocr_wording = "Text".into()), Some("ocr_wording"));
        assert_eq!(with(&|s| s.ocr_language = "eng; rm".into()), Some("ocr_language"));
        assert_eq!(with(&|s| s.ocr_confidence = f32::NAN), Some("ocr_confidence"));
        assert_eq!(with(&|s| s.captioner_clip = Some("clip.pt".into())), Some("captioner"));
    }
}
