//! The prompts that the adapters were trained with, to the letter.
//!
//! Source: LLaMA-Adapter, `llama/utils.py` of ImageBind-LLM and of the V2 multimodal program (after Stanford Alpaca).

const ALONE: [&str; 2] = [
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n### Instruction:\n",
    "\n\n### Response:",
];
const WITH_INPUT: [&str; 3] = [
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a response that appropriately completes the request.\n\n### Instruction:\n",
    "\n\n### Input:\n",
    "\n\n### Response:",
];

/// Which program's rule for an empty input is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Template {
    /// ImageBind-LLM: an empty input is none.
    ImageBindLlm,
    /// The V2 multimodal program: an empty input is an input.
    V2Multimodal,
}

impl Template {
    /// The prompt for an instruction. Nothing inside of either text is interpreted.
    pub fn fill(self, instruction: &str, input: Option<&str>) -> String {
        let input = input.filter(|input| self == Template::V2Multimodal || !input.is_empty());
        match input {
            None => format!("{}{instruction}{}", ALONE[0], ALONE[1]),
            Some(input) => {
                format!("{}{instruction}{}{input}{}", WITH_INPUT[0], WITH_INPUT[1], WITH_INPUT[2])
            }
        }
    }
}
