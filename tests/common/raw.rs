//! Calls of any method with any bytes, as no client of ours would send them.

use bytes::{Buf, BufMut, Bytes};
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

/// Messages as their bytes.
#[derive(Default)]
pub struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

/// One message there, one back.
///
/// * `path`: as `/viscache.v1.CacheService/Search`.
pub async fn call(channel: &Channel, path: &'static str, message: Bytes) -> Result<Bytes, Status> {
    let mut client = Grpc::new(channel.clone()).max_decoding_message_size(1 << 30);
    client.ready().await.map_err(|e| Status::unknown(e.to_string()))?;
    let path = PathAndQuery::from_static(path);
    Ok(client.unary(Request::new(message), path, Raw).await?.into_inner())
}

/// One message there, many back.
pub async fn ask(
    channel: &Channel,
    path: &'static str,
    message: Bytes,
) -> Result<Response<Streaming<Bytes>>, Status> {
    let mut client = Grpc::new(channel.clone());
    client.ready().await.map_err(|e| Status::unknown(e.to_string()))?;
    client.server_streaming(Request::new(message), PathAndQuery::from_static(path), Raw).await
}
