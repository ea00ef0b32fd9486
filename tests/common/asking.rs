//! Questions and answers over gRPC.

#![allow(dead_code, reason = "every test crate uses a part of this")]

use tonic::{Code, Status};
use tonic_types::StatusExt;
use viscache::serve::proto::{self, GenerateRequest, generate_event};

use crate::server::Server;

/// The field that a refusal names.
pub fn blamed_on(status: &Status) -> String {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let violations = status.get_details_bad_request().expect("a field is named").field_violations;
    violations.into_iter().next().unwrap().field
}

pub fn instruction(text: &str) -> Option<proto::Prompt> {
    let instruction = proto::Instruction { text: text.into(), input: String::new() };
    Some(proto::Prompt { prompt: Some(proto::prompt::Prompt::Instruction(instruction)) })
}

/// One answer, put together from its events, which must come in order.
#[derive(Debug, Default)]
pub struct Told {
    pub begin: Option<proto::Begin>,
    pub text: String,
    pub tokens: Vec<proto::Token>,
    pub summary: Option<proto::Summary>,
}

pub async fn ask(server: &Server, request: GenerateRequest) -> Result<[Told; 2], Status> {
    let mut events = server.generate().generate(request).await?.into_inner();
    let mut told = [Told::default(), Told::default()];
    while let Some(event) = events.message().await? {
        let one = &mut told[usize::from(event.cached)];
        assert!(one.summary.is_none(), "nothing follows a summary");
        match event.event.unwrap() {
            generate_event::Event::Begin(begin) => {
                assert!(one.begin.replace(begin).is_none() && one.tokens.is_empty())
            }
            generate_event::Event::Token(token) => {
                assert!(one.begin.is_some());
                one.text += &token.text;
                one.tokens.push(token);
            }
            generate_event::Event::Summary(summary) => {
                one.text += &summary.tail;
                assert_eq!(
                    (one.text.as_str(), one.tokens.len()),
                    (summary.text.as_str(), summary.answer_tokens as usize)
                );
                one.summary = Some(summary);
            }
        }
    }
    Ok(told)
}
