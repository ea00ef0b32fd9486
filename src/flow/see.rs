//! What a decoder sees in a query: one embedding, or a picture that it looks at itself.

use super::embed::contained;
use super::room::room;
use super::search::{embed_parts, embeddings};
use super::{App, Call, Content, Error, MediaInput, Part, Query};
use crate::batch::Seen;
use crate::blend;
use crate::models::llm::Llm;
use crate::types::Modality;

/// What a decoder sees in a query, before any cache.
///
/// # Errors
/// [`Error::Argument`] for a query that this decoder cannot look at.
pub(super) fn see(app: &App, llm: &Llm, query: Query, call: &Call) -> Result<Seen, Error> {
    let refuse = |description: String| Error::Argument { field: "conditioning.query".into(), description };
    let decoder = llm.decoder();
    if decoder.picture().is_some() {
        return look(app, llm, query, call);
    }
    let takes = decoder.embedding_width().ok_or_else(|| {
        refuse("the loaded decoder has nothing to look with: it answers from prompts alone".into())
    })?;
    let (mut queries, _) = embed_parts(app, vec![Ok(query)], call, |_, encoded| Ok(encoded.embedding))?;
    let mixed = match queries.pop().ok_or(Error::Cancelled)?? {
        Query::Ready(embedding) => embedding,
        Query::Parts(parts) => blend::mix(&embeddings(&parts))?,
    };
    if mixed.dim() != takes {
        return Err(refuse(format!("has {} components, the decoder takes {takes}", mixed.dim())));
    }
    Ok(Seen::Embedding(mixed))
}

/// What a decoder with eyes of its own sees in a picture.
fn look(app: &App, llm: &Llm, query: Query, call: &Call) -> Result<Seen, Error> {
    let refuse = |received: &str| Error::Argument {
        field: "conditioning.query".into(),
        description: format!("the loaded decoder looks at one picture itself; {received} were sent"),
    };
    let Query::Parts(parts) = query else { return Err(refuse("embeddings")) };
    let [Part { content: Content::Media(media), .. }] = &parts[..] else {
        return Err(refuse("several inputs, or embeddings,"));
    };
    // Decoding it and looking at it take a processor for a while.
    let _decode = app.decodes.take(call)?;
    let side = llm.decoder().picture().map_or(0, |picture| picture.side());
    let _room = room(call, media, &app.limits.media)
        .map_err(|e| Error::Part { part: 0, source: Box::new(e.into()) })?;
    let pixels = match media {
        MediaInput::Image(bytes) => contained(|| Ok(llm.prepare_picture(bytes, app.limits.media.image)?))
            .map_err(|e| Error::Part { part: 0, source: Box::new(e) })?,
        MediaInput::Ready(Modality::Image, shape, values) if shape.ends_with(&[3, side, side]) => {
            values.clone()
        }
        MediaInput::Ready(Modality::Image, shape, _) => {
            let description = format!("a picture has the shape [3, {side}, {side}], not {shape:?}");
            return Err(Error::Argument { field: "conditioning.query".into(), description });
        }
        other => return Err(refuse(&format!("inputs of the kind {}", other.modality().word()))),
    };
    let tokens = llm.decoder().visual_of_picture(&pixels).map_err(|error| match error {
        crate::models::Error::Input { why, .. } => {
            Error::Argument { field: "conditioning.query".into(), description: why }
        }
        other => other.into(),
    })?;
    Ok(Seen::Tokens(tokens))
}
