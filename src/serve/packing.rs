//! Which replies are compressed: those to a caller who compresses too, and accepts it.
//!
//! Left out: compressing for everybody who accepts it. The usual clients say that they accept gzip without being asked to, and
//! embeddings hardly become smaller: packing a reply would take longer than the search.

use tonic::codegen::http::{HeaderMap, HeaderValue, Request, header::HeaderName};
use tower::util::MapRequestLayer;

const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const ACCEPTED: HeaderName = HeaderName::from_static("grpc-accept-encoding");

/// What a request goes through before it comes to a service.
pub(super) type Layer = MapRequestLayer<fn(Request<tonic::body::Body>) -> Request<tonic::body::Body>>;

/// Takes what a caller accepts out of a request that is not compressed itself.
pub(super) fn layer() -> Layer {
    MapRequestLayer::new(|mut request| {
        if !is_packed(request.headers()) {
            request.headers_mut().remove(ACCEPTED);
        }
        request
    })
}

/// Whether the messages of a request may be compressed.
pub(super) fn is_packed(headers: &HeaderMap) -> bool {
    headers.get(ENCODING).is_some_and(|encoding: &HeaderValue| encoding != "identity")
}
