//! Which replies are compressed: those to a caller who compresses too, and accepts it.
//!
//! Left out: compressing for everybody who accepts it. The usual clients say that they accept gzip without being asked to, and
//! embeddings hardly become smaller: packing a reply would take longer than the search.

use tonic::codegen::http::{HeaderValue, Request, header::HeaderName};
use tower::layer::util::{Identity, Stack as TowerStack};
use tower::util::MapRequestLayer;

const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const ACCEPTED: HeaderName = HeaderName::from_static("grpc-accept-encoding");

/// What a request goes through before it comes to a service.
pub(super) type Stack = TowerStack<Layer, Identity>;
type Layer = MapRequestLayer<fn(Request<tonic::body::Body>) -> Request<tonic::body::Body>>;

/// Takes what a caller accepts out of a request that is not compressed itself.
pub(super) fn layer() -> Layer {
    MapRequestLayer::new(|mut request| {
        let plain = |encoding: &HeaderValue| encoding == "identity";
        if request.headers().get(ENCODING).is_none_or(plain) {
            request.headers_mut().remove(ACCEPTED);
        }
        request
    })
}
