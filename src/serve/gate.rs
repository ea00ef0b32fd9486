//! The layer around all services: a request gets its place, its name in the log and its share of memory before anything of it is
//! read, and keeps them until its reply has gone.
//!
//! Health and reflection pass through without a place: they have to answer when the house is full.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rand::RngExt;
use tonic::body::Body;
use tonic::codegen::http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use tower::Service;
use tracing::error_span;

use super::body::Incoming;
use super::door::Door;
use super::listen::Peer;
use super::methods;
use super::packing;

/// Under this name a caller may send an id, and every reply has one.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Bytes of an id that a caller sends.
const MAX_ID_BYTES: usize = 128;

/// Puts a gate before services.
#[derive(Clone)]
pub(super) struct Layer(pub(super) Arc<Door>);

impl<S> tower::Layer<S> for Layer {
    type Service = Gate<S>;

    fn layer(&self, inner: S) -> Gate<S> {
        Gate { inner, door: self.0.clone() }
    }
}

/// See the module's text.
#[derive(Clone)]
pub(super) struct Gate<S> {
    inner: S,
    door: Arc<Door>,
}

impl<S> Service<Request<Body>> for Gate<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let door = self.door.clone();
        let peer = request.extensions().get::<Peer>().cloned().unwrap_or_default();
        let busy = peer.busy();
        let Some(method) = methods::of(request.uri().path()) else {
            let reply = self.inner.call(request);
            return Box::pin(async move {
                let reply = reply.await?;
                Ok(reply.map(|body| door.replies.send(body, None, busy)))
            });
        };
        let id = request_id(request.headers());
        let span = error_span!("request", method = method.name, id, peer = %peer);
        let packed = packing::is_packed(request.headers());
        let seat = match door.seat(method, span, packed) {
            Ok(seat) => seat,
            Err(refused) => {
                let mut reply = refused.into_http();
                name(reply.headers_mut(), &id);
                return Box::pin(std::future::ready(Ok(reply)));
            }
        };
        let (limit, patience) = (door.limits.max_message_bytes, door.limits.stall);
        let request = request.map(|body| Body::new(Incoming::new(body, seat.clone(), limit, patience)));
        let reply = seat.within(|| self.inner.call(request));
        let reply = seat.scope(reply);
        Box::pin(async move {
            let mut reply = reply.await?;
            name(reply.headers_mut(), &id);
            Ok(reply.map(|body| door.replies.send(body, Some(seat), busy)))
        })
    }
}

/// The caller's id, or one of ours.
fn request_id(headers: &HeaderMap) -> String {
    let sent = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok());
    let usable =
        |id: &&str| (1..=MAX_ID_BYTES).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic());
    match sent.filter(usable) {
        Some(id) => id.to_owned(),
        None => format!("{:016x}", rand::rng().random::<u64>()),
    }
}

fn name(headers: &mut HeaderMap, id: &str) {
    if let Ok(id) = HeaderValue::from_str(id) {
        headers.insert(REQUEST_ID, id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_the_callers_where_it_can_be_logged() {
        let of = |id: &[u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_bytes(id).unwrap());
            request_id(&headers)
        };
        assert_eq!(of(b"abc-1"), "abc-1");
        for odd in [&b""[..], b"a b", b"\xe4", &[b'x'; 129]] {
            let own = of(odd);
            assert!(own.len() == 16 && own.bytes().all(|b| b.is_ascii_hexdigit()), "{own}");
        }
        assert_ne!(request_id(&HeaderMap::new()), request_id(&HeaderMap::new()));
    }
}
