//! Protobuf messages, counted before they are decoded and before they are written.
//!
//! The build names this codec for every method ([`ProstCodec`] does the work). On the client's side, and wherever no request is
//! being served, nothing is counted.

use std::sync::Arc;

use bytes::Buf;
use prost::Message;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic_prost::ProstCodec;

use super::methods::COSTS;
use super::seat::Seat;
use super::status;

/// See the module's text.
pub struct Counted<T, U>(ProstCodec<T, U>);

impl<T, U> Default for Counted<T, U> {
    fn default() -> Self {
        Counted(ProstCodec::default())
    }
}

impl<T: Message + Send + 'static, U: Message + Default + Send + 'static> Codec for Counted<T, U> {
    type Encode = T;
    type Decode = U;
    type Encoder = CountedEncoder<T>;
    type Decoder = CountedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        CountedEncoder { encoder: self.0.encoder(), seat: Seat::current() }
    }

    fn decoder(&mut self) -> Self::Decoder {
        CountedDecoder { decoder: self.0.decoder(), seat: Seat::current() }
    }
}

/// Writes replies.
pub struct CountedEncoder<T> {
    encoder: tonic_prost::ProstEncoder<T>,
    seat: Option<Arc<Seat>>,
}

impl<T: Message> Encoder for CountedEncoder<T> {
    type Item = T;
    type Error = Status;

    fn encode(&mut self, item: T, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        if let Some(seat) = &self.seat {
            let bytes = item.encoded_len();
            seat.replies(bytes as u64);
            buffer.reserve(bytes);
        }
        self.encoder.encode(item, buffer)
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.encoder.buffer_settings()
    }
}

/// Reads requests.
pub struct CountedDecoder<U> {
    decoder: tonic_prost::ProstDecoder<U>,
    seat: Option<Arc<Seat>>,
}

impl<U: Message + Default> Decoder for CountedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        if let Some(seat) = &self.seat {
            let bytes = buffer.remaining() as u64;
            // The whole message lies in one piece.
            let most = seat.most_decoded;
            let beside = COSTS.count(seat.method.message, buffer.chunk(), most);
            let beside = beside.map_err(|_| status::too_many_parts(most))?;
            seat.decodes(bytes, beside).map_err(|full| status::full(&full))?;
        }
        self.decoder.decode(buffer)
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.decoder.buffer_settings()
    }
}
