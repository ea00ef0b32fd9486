//! Answers over gRPC: with the cache and without it, as they grow, refused, cancelled, judged.

use std::time::{Duration, Instant};

use tempfile::TempDir;
use tonic::{Code, Status};
use tonic_types::StatusExt;
use viscache::batch::{GenerateOptions, Generator};
use viscache::cache::RowsMode;
use viscache::flow::Limits;
use viscache::serve::proto::{self, CacheMode, GenerateRequest, StopReason, generate_event};

use crate::asking::{Told, ask, blamed_on, instruction};
use crate::server::{Server, image, media_part, query, row_part, text};
use crate::store::{self, scene};

/// A server over the scenes with both models.
async fn serve(options: GenerateOptions) -> (Server, TempDir) {
    let folder = TempDir::new().unwrap();
    store::make_scenes(folder.path());
    let mut app = store::app(folder.path(), Some(store::encoder()), RowsMode::Ram, Limits::default());
    app.generator = Some(Generator::start(store::llm(), options).unwrap());
    (Server::start(app).await, folder)
}

/// A caption of a scene, greedily.
fn caption(query: Option<proto::Query>, mode: CacheMode) -> GenerateRequest {
    GenerateRequest {
        conditioning: Some(proto::Conditioning {
            prompt: instruction("Generate caption of this image"),
            query,
            cache_mode: mode.into(),
            ..Default::default()
        }),
        sampling: Some(proto::Sampling { temperature: Some(0.0), ..Default::default() }),
        ..Default::default()
    }
}

fn seen(i: usize) -> Option<proto::Query> {
    Some(query(vec![media_part(image(&scene(i)), None)]))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cache_off_on_and_both() {
    let (server, _folder) = serve(GenerateOptions::default()).await;
    let mut request = caption(seen(3), CacheMode::Unspecified);
    request.return_neighbors = true;
    request.logprobs = true;
    let [off, on] = ask(&server, request).await.unwrap();
    assert!(off.begin.is_none(), "one answer was asked for");
    let begin = on.begin.unwrap();
    assert_eq!((begin.prompt_tokens, begin.neighbors.len()), (37, 10));
    assert_eq!(begin.source.unwrap().cache, store::SCENES);
    assert!(begin.cosine > 0.9, "{}", begin.cosine);
    let summary = on.summary.unwrap();
    assert_eq!(summary.stop_reason(), StopReason::EndOfText);
    assert!(summary.text.contains(" background"), "{}", summary.text);
    assert!(on.tokens.iter().all(|token| token.logprob.is_some_and(|p| p <= 0.0)));

    let [off, none] = ask(&server, caption(seen(3), CacheMode::Off)).await.unwrap();
    assert!(none.begin.is_none() && off.begin.as_ref().unwrap().source.is_none());
    let words =
        Some(query(vec![media_part(text("a small red circle at the left on a white background"), None)]));
    let both = ask(&server, caption(words.clone(), CacheMode::Compare)).await.unwrap();
    let alone = ask(&server, caption(words.clone(), CacheMode::Off)).await.unwrap();
    assert_eq!(both[0].text, alone[0].text);
    let alone = ask(&server, caption(words, CacheMode::On)).await.unwrap();
    assert_eq!(both[1].text, alone[1].text);
    assert_ne!(both[0].text, both[1].text, "this text lies off the pictures");

    // A ready embedding, and no query at all.
    let row =
        store::encode(&store::encoder(), viscache::types::Modality::Image, &scene(3)).embedding.into_vec();
    let ready = ask(&server, caption(Some(query(vec![row_part(&row, None)])), CacheMode::Off)).await.unwrap();
    assert_eq!(ready[0].text, off.text);
    let [blind, _] = ask(&server, caption(None, CacheMode::On)).await.unwrap();
    assert!(blind.summary.is_some());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bounds_seeds_and_stop_texts() {
    let (server, _folder) = serve(GenerateOptions::default()).await;
    let with = |change: &dyn Fn(&mut GenerateRequest)| {
        let mut request = caption(seen(1), CacheMode::On);
        change(&mut request);
        request
    };
    let reason = |told: &[Told; 2]| told[1].summary.as_ref().unwrap().stop_reason();
    let told = ask(&server, with(&|r| r.max_tokens = Some(2))).await.unwrap();
    assert_eq!((told[1].tokens.len(), reason(&told)), (2, StopReason::MaxTokens));
    let told = ask(&server, with(&|r| r.max_tokens = Some(0))).await.unwrap();
    assert_eq!((told[1].text.as_str(), reason(&told)), ("", StopReason::MaxTokens));
    let told = ask(&server, with(&|r| r.stop = vec![" on a".into()])).await.unwrap();
    assert_eq!(reason(&told), StopReason::StopText);
    assert!(!told[1].text.contains(" on a"), "{}", told[1].text);
    let hot = |seed| {
        with(&move |r| {
            r.sampling = Some(proto::Sampling {
                temperature: Some(3.0),
                top_p: Some(1.0),
                seed,
                ..Default::default()
            });
            r.max_tokens = Some(30);
        })
    };
    // Without a seed one is drawn, and told: with it the same is said again.
    let drawn = ask(&server, hot(None)).await.unwrap();
    let (told, again) = (
        drawn[1].text.clone(),
        ask(&server, hot(drawn[1].begin.as_ref().map(|begin| begin.seed))).await.unwrap(),
    );
    assert_eq!(again[1].text, told);
    let (first, again, other) =
        tokio::join!(ask(&server, hot(Some(5))), ask(&server, hot(Some(5))), ask(&server, hot(Some(6))));
    let [first, again, other] = [first, again, other].map(|told| told.unwrap()[1].text.clone());
    assert_eq!(first, again, "a seed says the same beside others");
    assert_ne!(first, other);
    server.stop().await;
}

/// What is done to a good request.
type Change<'a> = &'a dyn Fn(&mut GenerateRequest);

#[tokio::test(flavor = "multi_thread")]
async fn absurd_questions_are_refused_by_name() {
    let (server, _folder) = serve(GenerateOptions::default()).await;
    let refused = async |change: &dyn Fn(&mut GenerateRequest)| {
        let mut request = caption(seen(1), CacheMode::On);
        change(&mut request);
        ask(&server, request).await.unwrap_err()
    };
    let sampling = |temperature, top_p| {
        Some(proto::Sampling { temperature, top_p, seed: Some(0), ..Default::default() })
    };
    let blamed: [(&str, Change); 8] = [
        ("sampling.temperature", &|r| r.sampling = sampling(Some(f32::NAN), None)),
        ("sampling.temperature", &|r| r.sampling = sampling(Some(-1.0), None)),
        ("sampling.top_p", &|r| r.sampling = sampling(None, Some(1.5))),
        ("stop", &|r| r.stop = vec!["x".into(); 9]),
        ("stop[0]", &|r| r.stop = vec![String::new()]),
        ("conditioning.prompt", &|r| r.conditioning.as_mut().unwrap().prompt = None),
        ("conditioning.cache_mode", &|r| r.conditioning.as_mut().unwrap().cache_mode = 77),
        ("conditioning.query", &|r| {
            r.conditioning.as_mut().unwrap().query = Some(query(vec![row_part(&[1.0, 2.0], None)]));
        }),
    ];
    for (field, change) in blamed {
        let status = refused(change).await;
        assert_eq!(blamed_on(&status), field, "{status:?}");
    }
    let reason = |status: &Status| status.get_details_error_info().unwrap().reason;
    let status = refused(&|r| r.conditioning.as_mut().unwrap().prompt = instruction("")).await;
    assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "BAD_PROMPT"));
    // Far more tokens than positions: both figures are told.
    let flood = "zebra ".repeat(5000);
    let status = refused(&|r| r.conditioning.as_mut().unwrap().prompt = instruction(&flood)).await;
    assert_eq!(reason(&status), "BAD_PROMPT");
    assert!(status.message().contains("160 positions"), "{}", status.message());
    let huge = "a".repeat(1 << 20);
    let status = refused(&|r| r.conditioning.as_mut().unwrap().prompt = instruction(&huge)).await;
    assert!(status.message().contains("at most 262144"), "{}", status.message());
    let status = refused(&|r| {
        let asked = r.conditioning.as_mut().unwrap();
        (asked.query, asked.cache_mode) = (None, CacheMode::Compare.into());
    })
    .await;
    assert_eq!(blamed_on(&status), "conditioning.cache_mode");
    assert!(ask(&server, caption(seen(0), CacheMode::On)).await.is_ok(), "the server lives");
    server.stop().await;

    // Without a decoder it says so.
    let folder = TempDir::new().unwrap();
    store::make_scenes(folder.path());
    let app = store::app(folder.path(), Some(store::encoder()), RowsMode::Ram, Limits::default());
    let server = Server::start(app).await;
    let status = ask(&server, caption(seen(0), CacheMode::On)).await.unwrap_err();
    assert_eq!(reason(&status), "DECODER_NOT_LOADED");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_of_the_form_that_was_asked_for() {
    let (server, _folder) = serve(GenerateOptions::default()).await;
    let hot = |form, seed| GenerateRequest {
        sampling: Some(proto::Sampling {
            temperature: Some(2.0),
            top_p: Some(1.0),
            seed: Some(seed),
            ..Default::default()
        }),
        max_tokens: Some(100),
        form: Some(proto::Form { form: Some(form) }),
        ..caption(seen(1), CacheMode::On)
    };
    let texts: Vec<String> = ["red", "green", "dark blue"].map(String::from).into();
    let choice = proto::form::Form::Choice(proto::Choice { texts: texts.clone() });
    let shape = proto::form::Form::Regex("[a-z]{3,8} (circle|star)s?".into());
    let schema = r#"{"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}, "count": {"type": "integer", "minimum": 0,
        "maximum": 99}}, "required": ["colour", "count"], "additionalProperties": false}"#;
    for seed in 0..8 {
        let told = ask(&server, hot(choice.clone(), seed)).await.unwrap();
        assert!(texts.contains(&told[1].text), "{}", told[1].text);
        assert_eq!(told[1].summary.as_ref().unwrap().stop_reason(), proto::StopReason::EndOfText);
        let told = ask(&server, hot(shape.clone(), seed)).await.unwrap();
        let (first, rest) = told[1].text.split_once(' ').unwrap();
        assert!((3..=8).contains(&first.len()) && (rest.starts_with("circle") || rest.starts_with("star")));
        let told = ask(&server, hot(proto::form::Form::JsonSchema(schema.into()), seed)).await.unwrap();
        let value: serde_json::Value = serde_json::from_str(&told[1].text).unwrap();
        assert!(value["colour"] == "red" || value["colour"] == "blue", "{value}");
        assert!(value["count"].as_u64().unwrap() <= 99, "{value}");
    }
    // What the decoder would have said anyway is said as ever, and as likely.
    let free =
        ask(&server, GenerateRequest { logprobs: true, ..caption(seen(1), CacheMode::On) }).await.unwrap();
    let any = proto::form::Form::Regex("(?s:.*)".into());
    let form = Some(proto::Form { form: Some(any) });
    let held = ask(&server, GenerateRequest { logprobs: true, form, ..caption(seen(1), CacheMode::On) });
    let held = held.await.unwrap();
    assert_eq!((&held[1].text, &held[1].tokens), (&free[1].text, &free[1].tokens));
    for (form, word) in [
        (None, "says nothing"),
        (Some(proto::form::Form::Choice(proto::Choice::default())), "no texts"),
        (Some(proto::form::Form::Regex("(".into())), "cannot be read"),
        (Some(proto::form::Form::JsonSchema("{".into())), "no JSON"),
        (Some(proto::form::Form::JsonSchema(r#"{"type": "colour"}"#.into())), "colour"),
    ] {
        let request = GenerateRequest { form: Some(proto::Form { form }), ..caption(seen(1), CacheMode::On) };
        let refused = ask(&server, request).await.err().unwrap();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains(word), "{refused}");
    }
}

/// A question whose answer is as long as there are positions.
fn long(seed: u64) -> GenerateRequest {
    let mut request = caption(seen(2), CacheMode::Off);
    request.sampling = Some(proto::Sampling {
        temperature: Some(50.0),
        top_p: Some(1.0),
        seed: Some(seed),
        ..Default::default()
    });
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn who_stalls_or_leaves_holds_nobody_up() {
    let (server, _folder) =
        serve(GenerateOptions { slots: 2, capacity: 4, ..GenerateOptions::default() }).await;
    // Callers who take the first event and nothing more, for a while.
    let mut stalled = Vec::new();
    for seed in 0..2 {
        let mut events = server.generate().generate(long(seed)).await.unwrap().into_inner();
        events.message().await.unwrap().unwrap();
        stalled.push(events);
    }
    let answer = ask(&server, caption(seen(1), CacheMode::On));
    let told = tokio::time::timeout(Duration::from_secs(20), answer).await.expect("it gets a slot").unwrap();
    assert!(told[1].summary.is_some());
    // One of them goes away, the other reads on to its end.
    drop(stalled.pop());
    let mut events = stalled.pop().unwrap();
    let mut ended = false;
    while let Some(event) = events.message().await.unwrap() {
        ended |= matches!(event.event, Some(generate_event::Event::Summary(_)));
    }
    assert!(ended);
    server.until_in_flight(0).await;

    // A deadline ends an answer, and the next one is served.
    let mut request = tonic::Request::new(long(9));
    request.set_timeout(Duration::from_millis(1));
    let failed = match server.generate().generate(request).await {
        Err(status) => status,
        Ok(events) => {
            let mut events = events.into_inner();
            loop {
                match events.message().await {
                    Err(status) => break status,
                    Ok(event) => assert!(event.is_some(), "the deadline passes before the end"),
                }
            }
        }
    };
    assert!(matches!(failed.code(), Code::DeadlineExceeded | Code::Cancelled), "{failed:?}");
    assert!(ask(&server, caption(seen(0), CacheMode::On)).await.is_ok());
    server.until_in_flight(0).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_line_refuses_and_says_when_to_come_back() {
    let (server, _folder) =
        serve(GenerateOptions { slots: 1, capacity: 1, ..GenerateOptions::default() }).await;
    let many = (0..12).map(|seed| ask(&server, long(seed)));
    let done = futures(many).await;
    let refused: Vec<&Status> = done.iter().filter_map(|told| told.as_ref().err()).collect();
    assert!(!refused.is_empty() && refused.len() < 12, "{}", refused.len());
    for status in refused {
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert!(status.get_details_retry_info().is_some());
    }
    // Two branches go in together or not at all.
    let both = ask(&server, caption(seen(1), CacheMode::Compare)).await.unwrap_err();
    assert_eq!(both.code(), Code::ResourceExhausted);
    server.stop().await;
}

/// All of them at the same time.
async fn futures<T>(all: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut all: Vec<_> = all.map(|one| (Box::pin(one), None)).collect();
    std::future::poll_fn(|context| {
        let mut ready = true;
        for (one, done) in &mut all {
            if done.is_none() {
                match one.as_mut().poll(context) {
                    std::task::Poll::Ready(value) => *done = Some(value),
                    std::task::Poll::Pending => ready = false,
                }
            }
        }
        if ready { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    all.into_iter().filter_map(|(_, done)| done).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_judged() {
    let (server, _folder) = serve(GenerateOptions::default()).await;
    let told = ask(&server, caption(seen(4), CacheMode::On)).await.unwrap();
    let request = |answers: &[&str]| proto::ScoreRequest {
        conditioning: caption(seen(4), CacheMode::On).conditioning,
        answers: answers.iter().map(|answer| (*answer).to_owned()).collect(),
        include_end: true,
    };
    let said = format!(" {}", told[1].text.trim());
    let wrong = " a large cyan star at the top on a striped background";
    let reply = server.generate().score(request(&[&said, wrong, ""])).await.unwrap().into_inner();
    let [good, bad, none] = &reply.scores[..] else { panic!("{reply:?}") };
    assert!(good.logprob > bad.logprob, "{} {}", good.logprob, bad.logprob);
    assert!((good.token_logprobs.iter().sum::<f32>() - good.logprob).abs() < 1e-4);
    assert_eq!(none.token_logprobs.len(), 1, "an empty answer is the token that ends it");
    assert_eq!(reply.source.unwrap().cache, store::SCENES);
    let refused = server.generate().score(request(&[])).await.unwrap_err();
    assert_eq!(blamed_on(&refused), "answers");
    let mut both = request(&["x"]);
    both.conditioning.as_mut().unwrap().cache_mode = CacheMode::Compare.into();
    assert_eq!(blamed_on(&server.generate().score(both).await.unwrap_err()), "conditioning.cache_mode");
    let long = "zebra ".repeat(300);
    let reply = server.generate().score(request(&[&long, &said])).await.unwrap().into_inner();
    assert_ne!(reply.scores[0].status.as_ref().unwrap().code, 0);
    assert_eq!(reply.scores[1].status.as_ref().unwrap().code, 0, "one bad answer fails alone");
    server.stop().await;
}

/// Judging bypasses the line of answers; it has one of its own, and keeps nobody else out.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_answers_to_judge_stalls_nobody() {
    let (server, _folder) = serve(GenerateOptions { capacity: 8, ..GenerateOptions::default() }).await;
    let request = || proto::ScoreRequest {
        conditioning: caption(seen(4), CacheMode::Off).conditioning,
        answers: vec![" a large cyan star at the top on a striped background".into(); 200],
        include_end: true,
    };
    let flood = (0..600).map(|_| {
        let mut client = server.generate();
        async move {
            let mut request = tonic::Request::new(request());
            request.set_timeout(Duration::from_secs(1));
            client.score(request).await
        }
    });
    let begun = Instant::now();
    let done = futures(flood).await;
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    for status in done.iter().filter_map(|told| told.as_ref().err()) {
        let usual = [Code::ResourceExhausted, Code::DeadlineExceeded, Code::Cancelled];
        assert!(usual.contains(&status.code()), "{status:?}");
    }
    // What was cut off is let go between two passes.
    server.until_in_flight(0).await;
    let begun = Instant::now();
    server.generate().score(request()).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    server.until_in_flight(0).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_answers_and_what_else_might_have_come() {
    let (server, _folder) = serve(GenerateOptions::default()).await;
    let hot = |seed, answers| GenerateRequest {
        sampling: Some(proto::Sampling {
            temperature: Some(3.0),
            top_p: Some(1.0),
            seed: Some(seed),
            ..Default::default()
        }),
        answers,
        ..caption(seen(1), CacheMode::Compare)
    };
    let mut texts = std::collections::BTreeMap::<(u32, bool), (u64, String)>::new();
    let mut events = server.generate().generate(hot(5, Some(3))).await.unwrap().into_inner();
    while let Some(event) = events.message().await.unwrap() {
        let told = texts.entry((event.index, event.cached)).or_default();
        match event.event.unwrap() {
            generate_event::Event::Begin(begin) => told.0 = begin.seed,
            generate_event::Event::Token(token) => told.1 += &token.text,
            generate_event::Event::Summary(summary) => told.1 += &summary.tail,
        }
    }
    assert_eq!(texts.len(), 6, "three of each");
    for ((index, cached), (seed, text)) in texts {
        assert_eq!(seed, 5 + u64::from(index));
        let alone = ask(&server, hot(seed, None)).await.unwrap();
        assert_eq!(alone[usize::from(cached)].text, text, "{index} {cached}");
    }

    let greedy = |bias: &[(u32, f32)]| GenerateRequest {
        top_logprobs: 5,
        logprobs: true,
        sampling: Some(proto::Sampling {
            temperature: Some(0.0),
            logit_bias: bias.iter().copied().collect(),
            ..Default::default()
        }),
        ..caption(seen(1), CacheMode::On)
    };
    let told = ask(&server, greedy(&[])).await.unwrap();
    for token in &told[1].tokens {
        assert_eq!((token.top.len(), token.top[0].id), (5, token.id));
        assert_eq!(Some(token.top[0].logprob), token.logprob);
        assert!(token.top.windows(2).all(|two| two[0].logprob >= two[1].logprob), "{token:?}");
    }
    let other = told[1].tokens[0].top[3].clone();
    let told = ask(&server, greedy(&[(other.id, 100.0)])).await.unwrap();
    assert_eq!(told[1].tokens[0].id, other.id, "what is made likely is said");
    assert!(told[1].tokens[0].logprob.unwrap() < -0.1, "and its probability is the model's");

    let sampling = |change: &dyn Fn(&mut proto::Sampling)| {
        let mut request = greedy(&[]);
        change(request.sampling.as_mut().unwrap());
        request
    };
    let with = |change: &dyn Fn(&mut GenerateRequest)| {
        let mut request = greedy(&[]);
        change(&mut request);
        request
    };
    for (field, request) in [
        ("answers", with(&|r| r.answers = Some(0))),
        ("answers", with(&|r| r.answers = Some(17))),
        ("top_logprobs", with(&|r| r.top_logprobs = 21)),
        ("sampling.top_k", sampling(&|s| s.top_k = Some(0))),
        ("sampling.min_p", sampling(&|s| s.min_p = Some(1.5))),
        ("sampling.repetition_penalty", sampling(&|s| s.repetition_penalty = Some(0.0))),
        ("sampling.logit_bias", greedy(&[(3, 101.0)])),
        ("sampling.logit_bias", greedy(&[(3, f32::NAN)])),
        ("sampling.logit_bias", greedy(&[(512, 1.0)])),
    ] {
        assert_eq!(blamed_on(&ask(&server, request).await.unwrap_err()), field);
    }
    server.stop().await;
}
