//! Experts: what others find in a picture joins the prompt, as text.
//!
//! ```text
//! picture ─► each expert that is asked for ─► its words, in its wording ─► the prompt's input, behind the caller's own
//! ```
//! LLaMA-Adapter V2 describes this (arXiv 2304.15010, §3.4) and publishes no code for it, so the wording is ours, and a
//! setting. An expert who finds nothing adds nothing; one who is wrong misleads the decoder, which the paper warns of.
//!
//! | expert | who it is |
//! |---|---|
//! | `Ocr` | the program `tesseract`, on the picture as our own decoder reads it |
//! | `Captioner` | a decoder that is asked for a caption: the one that is served, or one of its own |

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use bytes::Bytes;
use image::{ImageEncoder, codecs::png::PngEncoder};
use serde::Deserialize;

use super::embed::contained;
use super::experts::{ExpertKind, Experts, Finding, PLACE};
use super::process::{self, Failure};
use super::room::room;
use super::see::see;
use super::{App, Call, Content, Error, MediaInput, Part, Query};
use crate::batch::{Event, Generator, Task};
use crate::media::{self, ImageOptions, Orientation};
use crate::models::llm::Prompt;

/// Words of an expert in a prompt, bytes.
const MAX_WORDS: usize = 4096;
/// Most bytes of tesseract's table.
const MAX_TABLE: u64 = 8 << 20;

/// Somebody who tells in words what is in a picture.
trait Expert {
    /// What is found in a picture file; nothing where there is nothing to tell.
    ///
    /// # Errors
    /// [`Error::Expert`] for one who cannot be asked; for a file that is no picture; deadline and cancellation.
    fn tell(&self, app: &App, picture: &Bytes, call: &Call) -> Result<Option<String>, Error>;
}

/// An expert of those there are.
fn expert(experts: &Experts, kind: ExpertKind) -> (Box<dyn Expert + '_>, &str) {
    let settings = &experts.settings;
    match kind {
        ExpertKind::Ocr => {
            let ocr = Ocr {
                program: &settings.ocr_program,
                language: &settings.ocr_language,
                confidence: settings.ocr_confidence,
                timeout: Duration::from_secs(settings.ocr_timeout_seconds.into()),
            };
            (Box::new(ocr), &settings.ocr_wording)
        }
        ExpertKind::Caption => {
            let captioner = Captioner {
                own: experts.captioner.as_ref(),
                instruction: &settings.caption_instruction,
                max_tokens: settings.caption_max_tokens,
            };
            (Box::new(captioner), &settings.caption_wording)
        }
    }
}

/// Asks experts about the pictures of a query and puts what they find into the prompt.
///
/// # Errors
/// [`Error::Argument`] for a question that has no place for it or no picture; as [`Expert::tell`].
pub(super) fn consult(
    app: &App,
    kinds: &[ExpertKind],
    query: Option<&Query>,
    prompt: &mut Prompt,
    call: &Call,
) -> Result<Vec<Finding>, Error> {
    if kinds.is_empty() {
        return Ok(Vec::new());
    }
    let refuse =
        |why: &str| Error::Argument { field: "conditioning.experts".into(), description: why.into() };
    let Prompt::Instruction { input, .. } = prompt else {
        return Err(refuse("what experts find goes into an instruction's input; this prompt is none"));
    };
    let pictures: Vec<&Bytes> = match query {
        Some(Query::Parts(parts)) => parts.iter().filter_map(Part::picture).collect(),
        Some(Query::Ready(_)) | None => Vec::new(),
    };
    if pictures.is_empty() {
        return Err(refuse("experts look at picture files, and the query has none"));
    }
    let mut asked: Vec<ExpertKind> = Vec::new();
    let mut findings = Vec::new();
    for &kind in kinds {
        if asked.contains(&kind) {
            continue;
        }
        asked.push(kind);
        let (expert, wording) = expert(&app.experts, kind);
        let begun = Instant::now();
        let mut words = Vec::new();
        for picture in &pictures {
            call.check()?;
            words.extend(expert.tell(app, picture, call)?);
        }
        let words = shortened(words.join(" "));
        let text = if words.is_empty() { words } else { wording.replace(PLACE, &words) };
        findings.push(Finding { expert: kind, text, took: begun.elapsed() });
    }
    let own = input.take().filter(|own| !own.is_empty());
    let found = findings.iter().map(|finding| finding.text.clone()).filter(|text| !text.is_empty());
    let all: Vec<String> = own.into_iter().chain(found).collect();
    *input = (!all.is_empty()).then(|| all.join("\n"));
    Ok(findings)
}

/// At most so many bytes as a prompt is given of one expert.
fn shortened(mut words: String) -> String {
    if words.len() > MAX_WORDS {
        words.truncate(words.floor_char_boundary(MAX_WORDS));
    }
    words
}

impl Part {
    /// Its bytes, where it is a picture file.
    fn picture(&self) -> Option<&Bytes> {
        match &self.content {
            Content::Media(MediaInput::Image(bytes)) => Some(bytes),
            _ => None,
        }
    }
}

/// Reads text in pictures, by the program `tesseract`.
struct Ocr<'a> {
    program: &'a Path,
    language: &'a str,
    confidence: f32,
    timeout: Duration,
}

impl Expert for Ocr<'_> {
    fn tell(&self, app: &App, picture: &Bytes, call: &Call) -> Result<Option<String>, Error> {
        let fail = |why: String| Error::Expert { expert: ExpertKind::Ocr, why };
        let _program = app.programs.take(call)?;
        // Our own decoder reads the file, under its limits; the program is given plain pixels.
        let options =
            ImageOptions { side: 1, orientation: Orientation::Apply, limits: app.limits.media.image };
        let _room = room(call, &MediaInput::Image(picture.clone()), &app.limits.media)?;
        let pixels = contained(|| Ok(media::image::decode(picture, &options)?))?;
        let mut png = Cursor::new(Vec::new());
        let (width, height) = (pixels.width as u32, pixels.height as u32);
        PngEncoder::new(&mut png)
            .write_image(&pixels.data, width, height, image::ExtendedColorType::Rgb8)
            .map_err(|e| fail(format!("the picture cannot be handed on: {e}")))?;
        let own = |e: std::io::Error| fail(format!("a temporary file cannot be written: {e}"));
        let file = tempfile::NamedTempFile::with_suffix(".png").map_err(own)?;
        std::fs::write(file.path(), png.get_ref()).map_err(own)?;
        let mut command = Command::new(self.program);
        command.arg(file.path()).args(["stdout", "-l", self.language, "--psm", "3", "tsv"]);
        let until = Instant::now() + self.timeout;
        let table = process::run(command, MAX_TABLE, until, call).map_err(|failure| match failure {
            Failure::Start(why) => fail(format!("{why}; install tesseract-ocr, or set experts.ocr_program")),
            Failure::Slow => fail(format!("reading takes longer than {} s", self.timeout.as_secs())),
            Failure::Much => fail("it finds more than a prompt can hold".into()),
            Failure::Refused(why) => fail(why),
            Failure::Gone(error) => error,
        })?;
        Ok(numbered(&lines(&table, self.confidence)))
    }
}

/// The lines of a picture in tesseract's table: words of one line share page, block, paragraph and line.
fn lines(table: &[u8], confidence: f32) -> Vec<String> {
    #[derive(Deserialize)]
    struct Row {
        page_num: u32,
        block_num: u32,
        par_num: u32,
        line_num: u32,
        conf: f32,
        text: String,
    }
    let mut reader =
        csv::ReaderBuilder::new().delimiter(b'\t').quoting(false).flexible(true).from_reader(table);
    let mut found: BTreeMap<[u32; 4], Vec<String>> = BTreeMap::new();
    for row in reader.deserialize::<Row>().flatten() {
        let word = row.text.trim();
        if !word.is_empty() && row.conf >= confidence {
            let place = [row.page_num, row.block_num, row.par_num, row.line_num];
            found.entry(place).or_default().push(word.to_owned());
        }
    }
    found.into_values().map(|words| words.join(" ")).collect()
}

/// `1. … 2. … 3. …`, as the paper shows it.
fn numbered(lines: &[String]) -> Option<String> {
    let all: Vec<String> = lines.iter().zip(1..).map(|(line, n)| format!("{n}. {line}")).collect();
    (!all.is_empty()).then(|| all.join(" "))
}

/// Asks a decoder for a caption.
struct Captioner<'a> {
    own: Option<&'a Generator>,
    instruction: &'a str,
    max_tokens: usize,
}

impl Expert for Captioner<'_> {
    fn tell(&self, app: &App, picture: &Bytes, call: &Call) -> Result<Option<String>, Error> {
        let generator = self.own.or(app.generator.as_ref()).ok_or(Error::NoDecoder)?;
        let llm = generator.llm();
        let content = Content::Media(MediaInput::Image(picture.clone()));
        let query = Query::Parts(vec![Part { content, weight: 1.0 }]);
        let seen = see(app, llm, query, call).map_err(|error| match error {
            Error::Argument { description, .. } => {
                Error::Expert { expert: ExpertKind::Caption, why: description }
            }
            other => other,
        })?;
        let prompt = Prompt::Instruction { instruction: self.instruction.into(), input: None };
        let (prompt, _) = llm.encode(&prompt, self.max_tokens)?;
        let task = Task {
            constraint: None,
            prompt,
            seen: Some(seen),
            max_tokens: self.max_tokens,
            top: 0,
            sampling: crate::models::llama::SampleParams { temperature: 0.0, ..llm.sampling() },
            stop: Vec::new(),
            wait: call.wait(),
        };
        let mut said = String::new();
        for mut events in generator.submit(vec![task])? {
            while let Some(event) = events.blocking_recv() {
                match event {
                    Event::Token { text, .. } => said += &text,
                    Event::Done(finish) => said += &finish.text,
                    Event::Failed(error) => return Err(error.into()),
                }
            }
        }
        let said = said.trim();
        Ok((!said.is_empty()).then(|| said.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str =
        "level\tpage_num\tblock_num\tpar_num\tline_num\tword_num\tleft\ttop\twidth\theight\tconf\ttext
1\t1\t0\t0\t0\t0\t0\t0\t300\t100\t-1\t
5\t1\t1\t1\t1\t1\t10\t10\t40\t12\t96.5\tOPEN
5\t1\t1\t1\t1\t2\t60\t10\t40\t12\t91\t\"24
5\t1\t1\t1\t1\t3\t60\t10\t40\t12\t12.0\t~|
5\t1\t2\t1\t1\t1\t10\t50\t40\t12\t88\tNo
5\t1\t2\t1\t1\t2\t10\t50\t40\t12\t88\tdogs
";

    #[test]
    fn lines_are_put_together_and_numbered() {
        let found = lines(TABLE.as_bytes(), 60.0);
        assert_eq!(found, ["OPEN \"24", "No dogs"]);
        assert_eq!(numbered(&found).unwrap(), "1. OPEN \"24 2. No dogs");
        assert_eq!(lines(TABLE.as_bytes(), 95.0), ["OPEN"]);
        assert_eq!(numbered(&lines(b"no table at all", 0.0)), None);
        assert_eq!(shortened("ä".repeat(4000)).len(), MAX_WORDS);
    }
}
