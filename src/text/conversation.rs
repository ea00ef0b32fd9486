//! Conversations in the format of the chat program: who said what, as one text that ends where the assistant is to speak.
//!
//! Source: the chat program of LLaMA-Adapter V2, `conversation.py` (after FastChat). `v1` begins with one finished example
//! exchange, which the published 65B model always sees; its text is data of that program, in `assets/chat/`.

use std::collections::BTreeMap;

use serde::Deserialize;

/// A conversation so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversation {
    /// The format.
    pub template: ChatTemplate,
    /// What the assistant is told first; `None` for the template's own words.
    pub system: Option<String>,
    /// What was said, in order. The assistant speaks next.
    pub turns: Vec<Turn>,
}

/// Something that was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// By whom.
    pub by: Speaker,
    /// What. Nothing inside is interpreted.
    pub text: String,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaker {
    /// Who asks.
    Human,
    /// The decoder.
    Assistant,
}

/// A format of conversations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ChatTemplate {
    /// `v1`, which the published model was trained with.
    #[default]
    V1,
    /// `conv_v1`: as `v1`, with another example. The program has it and offers it nowhere.
    ConvV1,
    /// `bair_v1`.
    BairV1,
}

/// What a format consists of.
struct Format {
    system: &'static str,
    roles: [&'static str; 2],
    /// Whether every conversation begins with an exchange that the assets have.
    example: bool,
    /// Behind the turns of the first and of the second speaker.
    separators: [&'static str; 2],
    stop: &'static str,
}

#[derive(Deserialize)]
struct Example {
    human: String,
    assistant: String,
}

const EXAMPLES: &str = include_str!("../../assets/chat/examples.json");

impl ChatTemplate {
    /// The formats there are.
    pub const ALL: [ChatTemplate; 3] = [ChatTemplate::V1, ChatTemplate::ConvV1, ChatTemplate::BairV1];

    /// Its name in the published program.
    pub fn word(self) -> &'static str {
        match self {
            ChatTemplate::V1 => "v1",
            ChatTemplate::ConvV1 => "conv_v1",
            ChatTemplate::BairV1 => "bair_v1",
        }
    }

    /// The format of a name.
    pub fn named(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|template| template.word() == word)
    }

    /// The text that ends an answer and is not part of it.
    pub fn stop(self) -> &'static str {
        self.format().stop
    }

    /// The exchange that every conversation of this format begins with.
    fn example(self) -> Option<[Turn; 2]> {
        let mut all: BTreeMap<String, Example> = serde_json::from_str(EXAMPLES).unwrap_or_default();
        let Example { human, assistant } = all.remove(self.word()).filter(|_| self.format().example)?;
        Some([Turn { by: Speaker::Human, text: human }, Turn { by: Speaker::Assistant, text: assistant }])
    }

    fn format(self) -> Format {
        match self {
            ChatTemplate::V1 | ChatTemplate::ConvV1 => Format {
                system: "A chat between a curious human and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the human's questions.",
                roles: ["Human", "Assistant"],
                example: true,
                separators: ["###", "###"],
                stop: "###",
            },
            ChatTemplate::BairV1 => Format {
                system: "BEGINNING OF CONVERSATION:",
                roles: ["USER", "GPT"],
                example: false,
                separators: [" ", "</s>"],
                stop: "</s>",
            },
        }
    }
}

impl Conversation {
    /// The prompt. A turn without text is one that is to be spoken.
    pub fn text(&self) -> String {
        match self.turns.last() {
            Some(turn) if turn.by == Speaker::Assistant && turn.text.is_empty() => self.said(),
            _ => {
                let [_, assistant] = self.template.format().roles;
                format!("{}{assistant}:", self.said())
            }
        }
    }

    /// What was said so far, and nobody's turn behind it.
    pub fn said(&self) -> String {
        let Format { system, roles, separators, .. } = self.template.format();
        let mut text = format!("{}{}", self.system.as_deref().unwrap_or(system), separators[0]);
        let example = self.template.example();
        // Separators alternate by place, whoever speaks.
        for (place, turn) in example.iter().flatten().chain(&self.turns).enumerate() {
            text += roles[usize::from(turn.by == Speaker::Assistant)];
            text += ":";
            if !turn.text.is_empty() {
                text += " ";
                text += &turn.text;
                text += separators[place % 2];
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(by: Speaker, text: &str) -> Turn {
        Turn { by, text: text.into() }
    }

    #[test]
    fn turns_are_put_behind_one_another() {
        let turns = vec![
            said(Speaker::Human, "Hi"),
            said(Speaker::Assistant, "Hello"),
            said(Speaker::Human, "Two birds?"),
        ];
        let bair = Conversation { template: ChatTemplate::BairV1, system: None, turns: turns.clone() };
        let expected = "BEGINNING OF CONVERSATION: USER: Hi GPT: Hello</s>USER: Two birds? GPT:";
        assert_eq!(bair.text(), expected);
        assert_eq!(format!("{} GPT:", bair.said().trim_end()), expected);
        let own = Conversation { template: ChatTemplate::V1, system: Some("Be short.".into()), turns };
        assert!(own.text().starts_with("Be short.###Human: What are"));
        assert!(own.text().ends_with("###Human: Hi###Assistant: Hello###Human: Two birds?###Assistant:"));
    }

    #[test]
    fn every_format_has_a_name_and_its_example() {
        for template in ChatTemplate::ALL {
            assert_eq!(ChatTemplate::named(template.word()), Some(template));
            assert_eq!(template.example().is_some(), template != ChatTemplate::BairV1);
        }
        assert_eq!(ChatTemplate::named("v2"), None);
    }
}
