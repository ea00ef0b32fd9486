//! The single table that turns domain errors into gRPC statuses.
//!
//! | reason | code | what to do |
//! |---|---|---|
//! | `INVALID_ARGUMENT` | INVALID_ARGUMENT | mend the field that is named; trying again does not help |
//! | `DEGENERATE` | INVALID_ARGUMENT | the vectors cancel out; the message says what to change |
//! | `BAD_MEDIA` | INVALID_ARGUMENT | the file or text cannot be read; send another |
//! | `CACHE_NOT_FOUND`, `ALIAS_NOT_FOUND`, `ITEM_NOT_FOUND`, `GENERATION_NOT_FOUND` | NOT_FOUND | name another |
//! | `NAME_TAKEN` | ALREADY_EXISTS | a cache or an alias has the name; take another |
//! | `IS_ALIAS` | FAILED_PRECONDITION | name the cache itself, which the message does |
//! | `HAS_ALIASES` | FAILED_PRECONDITION | move or delete the aliases first, or set `force` |
//! | `TOO_MANY_CACHES`, `NO_STORE` | FAILED_PRECONDITION | look after the store: delete caches, raise the limit, name one |
//! | `AMBIGUOUS_URI` | FAILED_PRECONDITION | several items have the uri; name the id, or delete all but one |
//! | `REQUEST_ID_REUSED` | ALREADY_EXISTS | another request had this id; take a new one |
//! | `NO_MATCH` | NOT_FOUND | no item matches the filter, so an Enhance has nothing to blend; loosen it |
//! | `CACHE_UNAVAILABLE`, `FINGERPRINT_MISMATCH`, `NOT_INDEXED` | FAILED_PRECONDITION | look after the cache |
//! | `NOT_CALIBRATED` | FAILED_PRECONDITION | run `index-builder index`, or give `ef_search` in place of a target |
//! | `READ_ONLY` | FAILED_PRECONDITION | ask a server that was started with `--writable` |
//! | `MODEL_NOT_LOADED` | FAILED_PRECONDITION | send embeddings, or a server with a model |
//! | `DECODER_NOT_LOADED` | FAILED_PRECONDITION | ask a server with a decoder |
//! | `BAD_PROMPT` | INVALID_ARGUMENT | shorten the prompt, or send one |
//! | `FFMPEG_MISSING` | FAILED_PRECONDITION | install ffmpeg beside the server, or send frames |
//! | `EXPERT_UNAVAILABLE` | FAILED_PRECONDITION | install the expert's program beside the server, mend the setting, or ask without it |
//! | `TOO_MANY_REQUESTS`, `MODEL_BUSY`, `REQUEST_MEMORY` | RESOURCE_EXHAUSTED | try again after the stated delay |
//! | `REQUEST_TOO_LARGE` | INVALID_ARGUMENT | send less at a time: it would take more memory than all requests together may |
//! | `MEMORY_BUDGET` | RESOURCE_EXHAUSTED | the cache is full: delete items, or raise the budget |
//! | `STORE_LOCKED`, `COMPACTING` | UNAVAILABLE | try again after the stated delay |
//! | `STOPPING` | UNAVAILABLE | the server stops; ask another, or the same one after a while |
//! | `OVERTAKEN` | ABORTED | another generation was published meanwhile; ask again if it is still wanted |
//! | `DEADLINE` | DEADLINE_EXCEEDED | allow more time or send less |
//! | `CANCELLED` | CANCELLED | – |
//! | `DATA_DAMAGED` | DATA_LOSS | run `index-builder verify`; the log has the causes |
//! | `INTERNAL` | INTERNAL | a bug or a broken disk; the log has the causes |
//!
//! What is nobody's business but the operator's (INTERNAL, DATA_LOSS, and a store that another process holds) goes into the log, with
//! method, peer and the id of the request, and the caller is told that it is there.
//!
//! Two statuses are not ours: a message larger than the limit is refused by the transport with the limit in its text, as
//! OUT_OF_RANGE before any of it is read, and as RESOURCE_EXHAUSTED where a compressed one turns out so while it is unpacked.
//!
//! Every other status carries `google.rpc.ErrorInfo` with the reason and the domain `viscache`; field errors carry
//! `BadRequest`, those worth retrying `RetryInfo`.

use std::collections::HashMap;
use std::time::Duration;

use prost::Message;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt, pb};
use tracing::{error, warn};

use crate::budget::Full;
use crate::flow::Refusal;
use crate::models::encoder::PrepareError;
use crate::store::RequestResult;
use crate::{blend, cache, flow, index, media, models, store};

const DOMAIN: &str = "viscache";
/// When a request may come back that was refused because of others, that a moment's work stands in the way of, and that minutes do.
const SOON: Duration = Duration::from_millis(200);
const LATER: Duration = Duration::from_secs(2);
const MUCH_LATER: Duration = Duration::from_secs(30);
/// Bytes of a sentence that is remembered with a request.
const REMEMBERED_BYTES: usize = 512;

/// The status of an error of a whole request.
pub(super) fn of(error: &flow::Error) -> Status {
    at(error, None)
}

/// The status of an error, blamed on a field of the request when it does not itself name one.
fn at(error: &flow::Error, field: Option<&str>) -> Status {
    let (code, reason) = classify(error);
    let message = match operators(code, reason) {
        Some(public) => {
            let cause = told(error);
            match code {
                Code::Unavailable => warn!(code = code_name(code), cause, "refused"),
                _ => error!(code = code_name(code), cause, "failed"),
            }
            public.to_owned()
        }
        None => told(error),
    };
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    if let flow::Error::Argument { field, description } = error {
        details.set_bad_request(vec![FieldViolation::new(field, description)]);
    }
    if let (Code::InvalidArgument, Some(field), true) = (code, field, details.bad_request().is_none()) {
        let field = match error {
            flow::Error::Part { part, .. } => format!("{field}.parts[{part}].media"),
            _ => field.to_owned(),
        };
        details.set_bad_request(vec![FieldViolation::new(field, &message)]);
    }
    if let Some(delay) = delay(reason) {
        details.set_retry_info(Some(delay));
    }
    Status::with_error_details(code, message, details)
}

/// What a caller is told in the place of causes that are the operator's.
fn operators(code: Code, reason: &str) -> Option<&'static str> {
    match (code, reason) {
        (Code::Internal, _) => {
            Some("the server failed at this; its log has the cause under the request's id")
        }
        (Code::DataLoss, _) => Some(
            "stored data is damaged; the server's log says which, and `index-builder verify` finds all of it",
        ),
        (_, "STORE_LOCKED") => {
            Some("another process writes to the server's store; try again when it has ended")
        }
        _ => None,
    }
}

/// When what was refused for this reason may come back; nothing where time alone mends nothing.
fn delay(reason: &str) -> Option<Duration> {
    match reason {
        "TOO_MANY_REQUESTS" | "MODEL_BUSY" | "REQUEST_MEMORY" => Some(SOON),
        "STORE_LOCKED" | "STOPPING" => Some(LATER),
        "COMPACTING" => Some(MUCH_LATER),
        _ => None,
    }
}

fn with_reason(code: Code, reason: &str, message: impl Into<String>) -> Status {
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    if let Some(delay) = delay(reason) {
        details.set_retry_info(Some(delay));
    }
    Status::with_error_details(code, message, details)
}

/// An error and what caused it, in a sentence.
fn told(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut source = error.source();
    // Transparent variants repeat their source's text; only what it adds is appended.
    while let Some(cause) = source {
        let text = cause.to_string();
        if !message.contains(&text) {
            message = format!("{message}: {text}");
        }
        source = cause.source();
    }
    message
}

/// Why an item was refused, as it is remembered for a request that comes again.
pub(super) fn remembered(refusal: &Refusal<'_>) -> RequestResult {
    let ((code, reason), mut message) = match refusal {
        Refusal::Before(error) => (classify(error), told(error)),
        Refusal::ByCache(error) => (classify_cache(error), told(error)),
    };
    message.truncate(message.floor_char_boundary(REMEMBERED_BYTES));
    RequestResult::Refused { code: code as i32, reason: reason.into(), message }
}

/// The outcome of an item of a request that came before.
///
/// * `field`: as [`outcome`] has it.
pub(super) fn again(result: &RequestResult, field: &str) -> pb::Status {
    let RequestResult::Refused { code, reason, message: told } = result else { return pb::Status::default() };
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
    let code = Code::from_i32(*code);
    if code == Code::InvalidArgument {
        details.set_bad_request(vec![FieldViolation::new(field, told)]);
    }
    message(&Status::with_error_details(code, told, details))
}

/// The status of a full house.
///
/// * `what`: that there are so many of: requests, or streams.
pub(super) fn exhausted(capacity: usize, what: &str) -> Status {
    let message = format!("{capacity} {what} are being worked on or waiting; try again shortly");
    with_reason(Code::ResourceExhausted, "TOO_MANY_REQUESTS", message)
}

/// The status of a request that there is no memory for.
pub(super) fn full(full: &Full) -> Status {
    of(&(*full).into())
}

/// The status of a message of too many parts.
///
/// * `most`: bytes that it may take when it is decoded.
pub(super) fn too_many_parts(most: u64) -> Status {
    let message = format!(
        "the message has so many parts that it takes more than {} MiB; send fewer at a time",
        most >> 20
    );
    with_reason(Code::InvalidArgument, "REQUEST_TOO_LARGE", message)
}

/// The status of what comes while the server stops.
pub(super) fn stopping() -> Status {
    of(&flow::Error::Stopping)
}

/// The status of work that crashed; the crash itself is in the log.
pub(super) fn crashed() -> Status {
    error!(code = code_name(Code::Internal), "the request's work crashed");
    with_reason(Code::Internal, "INTERNAL", "the request's work crashed; the server goes on")
}

/// The status of an item that is not there.
pub(super) fn no_item(id: u64) -> Status {
    let details = ErrorDetails::with_error_info("ITEM_NOT_FOUND", DOMAIN, HashMap::new());
    Status::with_error_details(Code::NotFound, format!("there is no item {id}"), details)
}

/// A status as a message, for one item of a batch.
pub(super) fn message(status: &Status) -> pb::Status {
    pb::Status::decode(status.details()).unwrap_or_else(|_| pb::Status {
        code: status.code() as i32,
        message: status.message().to_owned(),
        details: Vec::new(),
    })
}

/// The outcome of one item as a message.
///
/// * `field`: where the item stands in the request, such as `queries[3]`.
pub(super) fn outcome<T>(result: &Result<T, flow::Error>, field: &str) -> pb::Status {
    match result {
        Ok(_) => pb::Status::default(),
        Err(error) => message(&at(error, Some(field))),
    }
}

fn classify(error: &flow::Error) -> (Code, &'static str) {
    match error {
        flow::Error::Argument { .. } => (Code::InvalidArgument, "INVALID_ARGUMENT"),
        flow::Error::NoCache { .. } | flow::Error::NoDefaultCache(_) => (Code::NotFound, "CACHE_NOT_FOUND"),
        flow::Error::CacheUnavailable { .. } => (Code::FailedPrecondition, "CACHE_UNAVAILABLE"),
        flow::Error::ReadOnly => (Code::FailedPrecondition, "READ_ONLY"),
        flow::Error::NoStore => (Code::FailedPrecondition, "NO_STORE"),
        flow::Error::TooManyCaches { .. } => (Code::FailedPrecondition, "TOO_MANY_CACHES"),
        flow::Error::Fingerprint { .. } => (Code::FailedPrecondition, "FINGERPRINT_MISMATCH"),
        flow::Error::NoDecoder => (Code::FailedPrecondition, "DECODER_NOT_LOADED"),
        flow::Error::Prompt(_) => (Code::InvalidArgument, "BAD_PROMPT"),
        flow::Error::Form(_) => (Code::InvalidArgument, "BAD_FORM"),
        flow::Error::NoModel { .. } => (Code::FailedPrecondition, "MODEL_NOT_LOADED"),
        flow::Error::Part { source, .. } => classify(source),
        flow::Error::Prepare(PrepareError::Media(media::Error::NoRoom(_))) => {
            (Code::ResourceExhausted, "REQUEST_MEMORY")
        }
        flow::Error::Prepare(_) => (Code::InvalidArgument, "BAD_MEDIA"),
        flow::Error::Memory(full) if full.for_good() => (Code::InvalidArgument, "REQUEST_TOO_LARGE"),
        flow::Error::Memory(_) => (Code::ResourceExhausted, "REQUEST_MEMORY"),
        flow::Error::Stopping => (Code::Unavailable, "STOPPING"),
        flow::Error::Dead(_) => (Code::Internal, "INTERNAL"),
        flow::Error::Busy(_) => (Code::ResourceExhausted, "MODEL_BUSY"),
        flow::Error::Expert { .. } => (Code::FailedPrecondition, "EXPERT_UNAVAILABLE"),
        flow::Error::NoFfmpeg { .. } => (Code::FailedPrecondition, "FFMPEG_MISSING"),
        // From finite input, nothing finite: the input is absurd, or the weights are.
        flow::Error::Model(models::Error::Output(_)) => (Code::InvalidArgument, "BAD_MEDIA"),
        flow::Error::Model(_) => (Code::Internal, "INTERNAL"),
        flow::Error::Cache(error) => classify_cache(error),
        flow::Error::NoMatch => (Code::NotFound, "NO_MATCH"),
        flow::Error::Blend(error) => classify_blend(error),
        flow::Error::Deadline => (Code::DeadlineExceeded, "DEADLINE"),
        flow::Error::Cancelled => (Code::Cancelled, "CANCELLED"),
    }
}

fn classify_cache(error: &cache::Error) -> (Code, &'static str) {
    match error {
        cache::Error::Store(error) => classify_store(error),
        cache::Error::Index(error) => classify_index(error),
        cache::Error::Blend(error) => classify_blend(error),
        cache::Error::Dimension { .. } => (Code::InvalidArgument, "INVALID_ARGUMENT"),
        cache::Error::Origin { .. } => (Code::FailedPrecondition, "FINGERPRINT_MISMATCH"),
        cache::Error::NotIndexed(_) => (Code::FailedPrecondition, "NOT_INDEXED"),
        cache::Error::NotCalibrated(_) => (Code::FailedPrecondition, "NOT_CALIBRATED"),
        cache::Error::NoGeneration { .. } => (Code::NotFound, "GENERATION_NOT_FOUND"),
        cache::Error::Memory { .. } => (Code::ResourceExhausted, "MEMORY_BUDGET"),
        cache::Error::NotWritable(_) => (Code::FailedPrecondition, "READ_ONLY"),
        cache::Error::Full { .. } | cache::Error::CompactMemory { .. } => {
            (Code::ResourceExhausted, "MEMORY_BUDGET")
        }
        cache::Error::Compacting(_) => (Code::Unavailable, "COMPACTING"),
        cache::Error::Overtaken { .. } => (Code::Aborted, "OVERTAKEN"),
        cache::Error::NoFreeId(_) | cache::Error::NotAnId(..) => (Code::InvalidArgument, "INVALID_ARGUMENT"),
        cache::Error::Deleted(_) => (Code::NotFound, "CACHE_NOT_FOUND"),
        cache::Error::NoItem(_) => (Code::NotFound, "ITEM_NOT_FOUND"),
        cache::Error::TagBytes { .. } | cache::Error::NoUri => (Code::InvalidArgument, "INVALID_ARGUMENT"),
        cache::Error::AmbiguousUri { .. } => (Code::FailedPrecondition, "AMBIGUOUS_URI"),
        cache::Error::RequestReused(_) => (Code::AlreadyExists, "REQUEST_ID_REUSED"),
        cache::Error::Poisoned(_) | cache::Error::Thread(_) => (Code::Internal, "INTERNAL"),
        cache::Error::Row { .. } => (Code::DataLoss, "DATA_DAMAGED"),
    }
}

fn classify_store(error: &store::Error) -> (Code, &'static str) {
    match error {
        store::Error::Locked { .. } => (Code::Unavailable, "STORE_LOCKED"),
        store::Error::NoCache { .. } => (Code::NotFound, "CACHE_NOT_FOUND"),
        store::Error::CacheExists(_) | store::Error::AliasExists { .. } => {
            (Code::AlreadyExists, "NAME_TAKEN")
        }
        store::Error::IsAlias { .. } => (Code::FailedPrecondition, "IS_ALIAS"),
        store::Error::HasAliases { .. } => (Code::FailedPrecondition, "HAS_ALIASES"),
        store::Error::NoAlias { .. } => (Code::NotFound, "ALIAS_NOT_FOUND"),
        store::Error::Damaged { .. } => (Code::DataLoss, "DATA_DAMAGED"),
        store::Error::Missing { .. } | store::Error::TooNew { .. } | store::Error::ReadOnly => {
            (Code::FailedPrecondition, "CACHE_UNAVAILABLE")
        }
        store::Error::Rocks { .. }
        | store::Error::Unmerged { .. }
        | store::Error::Folder { .. }
        | store::Error::Scratch { .. } => (Code::Internal, "INTERNAL"),
    }
}

fn classify_index(error: &index::Error) -> (Code, &'static str) {
    match error {
        index::Error::Parameter { .. } | index::Error::Dimension { .. } => {
            (Code::InvalidArgument, "INVALID_ARGUMENT")
        }
        index::Error::Format(_) | index::Error::Damaged { .. } => (Code::DataLoss, "DATA_DAMAGED"),
        index::Error::Deadline => (Code::DeadlineExceeded, "DEADLINE"),
        index::Error::Empty => (Code::FailedPrecondition, "NOT_INDEXED"),
        index::Error::Memory { .. } => (Code::ResourceExhausted, "MEMORY_BUDGET"),
        index::Error::TooMany { .. } | index::Error::Write(_) | index::Error::Threads { .. } => {
            (Code::Internal, "INTERNAL")
        }
    }
}

fn classify_blend(error: &blend::Error) -> (Code, &'static str) {
    match error {
        blend::Error::Degenerate { .. } | blend::Error::NotFinite { .. } => {
            (Code::InvalidArgument, "DEGENERATE")
        }
        blend::Error::Parameter { .. }
        | blend::Error::NoInput
        | blend::Error::InputWeight { .. }
        | blend::Error::Dimension { .. } => (Code::InvalidArgument, "INVALID_ARGUMENT"),
        blend::Error::NoHits => (Code::FailedPrecondition, "NOT_INDEXED"),
    }
}

/// The canonical name of a gRPC code.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// How many results of a reply are none.
pub(super) fn failures<'a>(statuses: impl Iterator<Item = &'a Option<pb::Status>>) -> usize {
    statuses.filter(|status| status.as_ref().is_some_and(|s| s.code != 0)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_carries_reason_field_and_delay() {
        let argument = flow::Error::Argument { field: "queries[2]".into(), description: "is empty".into() };
        let details = of(&argument).get_error_details();
        assert_eq!(details.error_info().unwrap().reason, "INVALID_ARGUMENT");
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, "queries[2]");
        let busy = exhausted(7, "requests");
        assert!(busy.get_error_details().retry_info().unwrap().retry_delay.is_some());
        let item = message(&busy);
        assert_eq!((item.code, item.details.len()), (Code::ResourceExhausted as i32, 2));
    }
}
