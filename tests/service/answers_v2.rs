//! LLaMA-Adapter V2's decoders and the experts, as a client meets them: real gRPC, golden models, a real OCR program.

use std::path::PathBuf;

use tempfile::TempDir;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use viscache::batch::{GenerateOptions, Generator};
use viscache::cache::RowsMode;
use viscache::flow::{App, ExpertSettings, Experts, Limits};
use viscache::models::llm::{Llm, LlmOptions};
use viscache::serve::proto::{self, CacheMode, DecoderFamily, GenerateRequest, StopReason};

use crate::asking::{Told, ask, blamed_on, instruction};
use crate::common::{of_one_root, read};
use crate::server::{self, Server, image, media_part, query, text};
use crate::store;

/// The golden model of this name with the tokenizer that its ids are of, as a folder that a server can be given.
fn golden(name: &str) -> Option<(LlmOptions, TempDir)> {
    let model = format!("llama_adapter_v2/{name}");
    let [folder, tokenizer] = of_one_root([&model, "imagebind_llm_decoder/tokenizer.model"])?;
    let place = TempDir::new().unwrap();
    let to = |file: &str| place.path().join(file);
    std::fs::copy(folder.join("config.json"), to("params.json")).unwrap();
    std::fs::copy(folder.join("weights.safetensors"), to("whole.safetensors")).unwrap();
    std::fs::copy(tokenizer, to("tokenizer.model")).unwrap();
    Some((LlmOptions { backbone: Some(to("whole.safetensors")), ..LlmOptions::default() }, place))
}

fn app(folder: &TempDir, llm: Llm) -> App {
    store::make_scenes(folder.path());
    let mut app = store::app(folder.path(), Some(store::encoder()), RowsMode::Ram, Limits::default());
    app.generator = Some(Generator::start(llm, GenerateOptions::default()).unwrap());
    app
}

fn request(prompt: Option<proto::Prompt>, query: Option<proto::Query>) -> GenerateRequest {
    GenerateRequest {
        conditioning: Some(proto::Conditioning { prompt, query, ..Default::default() }),
        sampling: Some(proto::Sampling { temperature: Some(0.0), ..Default::default() }),
        max_tokens: Some(12),
        ..Default::default()
    }
}

/// As [`request`], of a model with random weights: hot, so that it says something before it ends.
fn hot(prompt: Option<proto::Prompt>, query: Option<proto::Query>) -> GenerateRequest {
    let sampling =
        proto::Sampling { temperature: Some(5.0), top_p: Some(1.0), seed: Some(3), ..Default::default() };
    GenerateRequest { sampling: Some(sampling), ..request(prompt, query) }
}

fn picture() -> Vec<u8> {
    store::scene(0)
}

fn reason(status: &Status) -> String {
    status.get_details_error_info().unwrap().reason
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decoder_that_looks_at_pictures_itself() {
    let Some((options, model)) = golden("mm_tiny_lora") else { return };
    let folder = TempDir::new().unwrap();
    let llm = Llm::open(&options).unwrap();
    // What it must say: the same picture and prompt, without a server.
    let pixels = llm.prepare_picture(&picture(), Limits::default().media.image).unwrap();
    let side = llm.decoder().picture().unwrap().side();
    let tokens = llm.decoder().visual_of_picture(&pixels).unwrap();
    let sizes: serde_json::Value = serde_json::from_slice(&read(&model.path().join("params.json"))).unwrap();
    let size = |name: &str| sizes[name].as_u64().unwrap() as usize;
    let expected = (3 * side * side, (size("query_len"), size("dim")));
    assert_eq!((pixels.len(), tokens.dims2().unwrap()), expected);
    let server = Server::start(app(&folder, llm)).await;
    let seen = |bytes: &[u8]| Some(query(vec![media_part(image(bytes), None)]));

    let [told, none] = ask(&server, hot(instruction("Describe it"), seen(&picture()))).await.unwrap();
    assert!(none.begin.is_none());
    let begin = told.begin.unwrap();
    assert!(begin.source.is_none() && begin.decoder.unwrap().family() == DecoderFamily::V2Multimodal);
    let [blind, _] = ask(&server, hot(instruction("Describe it"), None)).await.unwrap();
    let [other, _] = ask(&server, hot(instruction("Describe it"), seen(&store::scene(2)))).await.unwrap();
    let said = |told: &Told| told.tokens.iter().map(|token| token.id).collect::<Vec<_>>();
    let answer: Vec<u32> = told.tokens.iter().map(|token| token.id).collect();
    assert!(answer != said(&blind) && said(&other) != said(&blind) && !answer.is_empty(), "{answer:?}");
    // Whatever it cannot look at is refused by name.
    for bad in [
        query(vec![media_part(text("a dog"), None)]),
        query(vec![media_part(image(&picture()), None), media_part(image(&picture()), None)]),
        query(vec![server::row_part(&[1.0; 128], None)]),
    ] {
        let status = ask(&server, request(instruction("What?"), Some(bad))).await.unwrap_err();
        assert_eq!(blamed_on(&status), "conditioning.query", "{status:?}");
    }
    let status = ask(&server, request(instruction("What?"), seen(b"no picture"))).await.unwrap_err();
    assert_eq!(reason(&status), "BAD_MEDIA", "{status:?}");
    for mode in [CacheMode::On, CacheMode::Compare] {
        let mut asked = request(instruction("What?"), seen(&picture()));
        asked.conditioning.as_mut().unwrap().cache_mode = mode.into();
        assert_eq!(blamed_on(&ask(&server, asked).await.unwrap_err()), "conditioning.cache_mode");
    }
    let described = server.cache().describe(proto::DescribeRequest::default()).await.unwrap().into_inner();
    assert_eq!(described.decoder.unwrap().family(), DecoderFamily::V2Multimodal);
    // It judges answers too.
    let judged = proto::ScoreRequest {
        conditioning: request(instruction("Describe it"), seen(&picture())).conditioning,
        answers: vec![told.text, " something else".into()],
        include_end: false,
    };
    let scores = server.generate().score(judged).await.unwrap().into_inner().scores;
    assert!(scores.iter().all(|score| score.status.as_ref().unwrap().code == 0), "{scores:?}");
    server.stop().await;
}

fn conversation(template: &str, turns: &[&str]) -> Option<proto::Prompt> {
    let speakers = [proto::Speaker::Human, proto::Speaker::Assistant];
    let turns = turns
        .iter()
        .enumerate()
        .map(|(i, text)| proto::Turn { speaker: speakers[i % 2].into(), text: (*text).to_owned() });
    let said = proto::Conversation {
        template: template.into(),
        system: Some("Be short.".into()),
        turns: turns.collect(),
    };
    Some(proto::Prompt { prompt: Some(proto::prompt::Prompt::Conversation(said)) })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decoder_that_talks() {
    let Some((options, _model)) = golden("chat65b_tiny") else { return };
    let folder = TempDir::new().unwrap();
    let server = Server::start(app(&folder, Llm::open(&options).unwrap())).await;
    let [told, _] = ask(&server, hot(conversation("bair_v1", &["Hi"]), None)).await.unwrap();
    let begin = told.begin.unwrap();
    let decoder = begin.decoder.unwrap();
    assert_eq!((begin.dropped_tokens, decoder.family()), (0, DecoderFamily::V2Chat));
    let ended = told.summary.unwrap().stop_reason();
    assert_eq!(ended == StopReason::MaxTokens, told.tokens.len() == 12, "{ended:?}");
    // What has grown too long loses its beginning, and says how much.
    let long = "word ".repeat(2 * decoder.max_positions as usize);
    let [cut, _] =
        ask(&server, request(conversation("bair_v1", &[&long, "Yes.", "Hi"]), None)).await.unwrap();
    let begin = cut.begin.unwrap();
    assert!(begin.dropped_tokens > decoder.max_positions, "{begin:?}");
    assert_eq!(begin.prompt_tokens, begin.decoder.unwrap().max_positions - 12);

    let blamed = async |prompt: Option<proto::Prompt>, query: Option<proto::Query>| {
        blamed_on(&ask(&server, request(prompt, query)).await.unwrap_err())
    };
    assert_eq!(blamed(conversation("v9", &["Hi"]), None).await, "conditioning.prompt.conversation.template");
    let many = vec!["x"; 1025];
    assert_eq!(blamed(conversation("v1", &many), None).await, "conditioning.prompt.conversation.turns");
    let nobody = proto::Conversation {
        turns: vec![proto::Turn { text: "Hi".into(), ..Default::default() }],
        ..Default::default()
    };
    let nobody = Some(proto::Prompt { prompt: Some(proto::prompt::Prompt::Conversation(nobody)) });
    assert_eq!(blamed(nobody, None).await, "conditioning.prompt.conversation.turns[0].speaker");
    let seen = Some(query(vec![media_part(image(&picture()), None)]));
    assert_eq!(blamed(conversation("v1", &["Hi"]), seen).await, "conditioning.query");
    let status = ask(&server, request(conversation("v1", &[]), None)).await.unwrap_err();
    assert_eq!(reason(&status), "BAD_PROMPT");
    server.stop().await;
}

fn sign() -> Vec<u8> {
    read(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/assets/sign.png"))
}

/// A question about a picture, with experts.
fn about(bytes: &[u8], experts: &[proto::Expert], input: &str) -> GenerateRequest {
    let asked = proto::Instruction { text: "What is it?".into(), input: input.into() };
    let prompt = Some(proto::Prompt { prompt: Some(proto::prompt::Prompt::Instruction(asked)) });
    let mut request = request(prompt, Some(query(vec![media_part(image(bytes), None)])));
    request.conditioning.as_mut().unwrap().experts = experts.iter().map(|&e| e.into()).collect();
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn experts_join_the_prompt() {
    use proto::Expert::{Caption, Ocr};
    let folder = TempDir::new().unwrap();
    let server = Server::start(app(&folder, store::llm())).await;
    let [_, told] = ask(&server, about(&sign(), &[Ocr, Ocr], ""))
        .await
        .expect("tesseract is installed (.ci/run does it)");
    let begin = told.begin.unwrap();
    let [found] = &begin.findings[..] else { panic!("{begin:?}") };
    assert_eq!(
        (found.expert(), found.text.as_str()),
        (Ocr, "Text in the picture: 1. NO DOGS 2. OPEN 24 HOURS")
    );
    // The prompt is that of the instruction with this input, and the answer with it.
    let [_, by_hand] = ask(&server, about(&sign(), &[], &found.text)).await.unwrap();
    assert_eq!(begin.prompt_tokens, by_hand.begin.unwrap().prompt_tokens);
    assert_eq!(told.text, by_hand.text);
    let [_, plain] = ask(&server, about(&sign(), &[], "")).await.unwrap();
    assert!(plain.begin.unwrap().prompt_tokens < begin.prompt_tokens);

    // The captioner is the served decoder, asked first; where nothing is written, nothing is added.
    let [_, both] = ask(&server, about(&store::scene(0), &[Caption, Ocr], "Look closely.")).await.unwrap();
    let findings = both.begin.unwrap().findings;
    let [caption, ocr] = &findings[..] else { panic!("{findings:?}") };
    assert!(caption.text.contains("red") && caption.text.contains("background"), "{}", caption.text);
    assert_eq!((ocr.expert(), ocr.text.as_str()), (Ocr, ""));
    let [_, by_hand] =
        ask(&server, about(&store::scene(0), &[], &format!("Look closely.\n{}", caption.text)))
            .await
            .unwrap();
    assert_eq!(both.text, by_hand.text);

    // A question without a place for it, or without a picture.
    let mut raw = about(&sign(), &[Ocr], "");
    raw.conditioning.as_mut().unwrap().prompt =
        Some(proto::Prompt { prompt: Some(proto::prompt::Prompt::Raw("What?".into())) });
    assert_eq!(blamed_on(&ask(&server, raw).await.unwrap_err()), "conditioning.experts");
    let mut blind = about(&sign(), &[Ocr], "");
    blind.conditioning.as_mut().unwrap().query = Some(query(vec![media_part(text("a sign"), None)]));
    assert_eq!(blamed_on(&ask(&server, blind).await.unwrap_err()), "conditioning.experts");
    let mut unknown = about(&sign(), &[], "");
    unknown.conditioning.as_mut().unwrap().experts = vec![7];
    assert_eq!(blamed_on(&ask(&server, unknown).await.unwrap_err()), "conditioning.experts[0]");
    assert_eq!(reason(&ask(&server, about(b"no picture", &[Ocr], "")).await.unwrap_err()), "BAD_MEDIA");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn experts_of_another_kind() {
    use proto::Expert::{Caption, Ocr};
    let folder = TempDir::new().unwrap();
    // No such program; a captioner of its own beside a decoder that cannot caption.
    let settings = ExpertSettings { ocr_program: "no-such-program".into(), ..ExpertSettings::default() };
    let own = Generator::start(store::llm(), GenerateOptions::default()).unwrap();
    let Some((options, _model)) = golden("mm_tiny_lora") else { return };
    let mut app = app(&folder, Llm::open(&options).unwrap());
    app.experts = Experts { settings, captioner: Some(own) };
    let server = Server::start(app).await;
    let status = ask(&server, about(&sign(), &[Ocr], "")).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::FailedPrecondition, "EXPERT_UNAVAILABLE"));
    assert!(status.message().contains("install tesseract-ocr"), "{}", status.message());
    let [told, _] = ask(&server, about(&store::scene(0), &[Caption], "")).await.unwrap();
    let begin = told.begin.unwrap();
    assert!(begin.findings[0].text.contains("red"), "{begin:?}");
    assert_eq!(begin.decoder.unwrap().family(), DecoderFamily::V2Multimodal);
    server.stop().await;
}
