//! Numbers of a run for TensorBoard.
//!
//! ```text
//! record   length of the event 8 │ CRC 4 │ event │ CRC 4        little-endian; CRCs are CRC-32C, turned right by 15 and offset
//! event    wall time 1, step 2, one of: version 3, summary 5, session 7
//! ```
//! The first event of a file says `brain.Event:2`. Where a run goes on, a session's start tells that what older files say of later steps
//! is void. Times are the clock's; nothing else hangs on it.
//!
//! Source: TensorFlow, `event.proto`, `summary.proto`, `record_writer.cc`.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

use super::Stop;

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
    #[prost(message, optional, tag = "7")]
    session: Option<Session>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
struct Value {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

#[derive(Clone, PartialEq, Message)]
struct Session {
    /// 1: a start.
    #[prost(int32, tag = "1")]
    status: i32,
}

/// A file of events that is being written.
pub struct Events {
    file: File,
    path: std::path::PathBuf,
}

impl Events {
    /// Begins a file in a folder.
    ///
    /// * `step`: that the run goes on from.
    ///
    /// # Errors
    /// [`Stop::File`].
    pub fn begin(folder: &Path, step: usize) -> Result<Self, Stop> {
        let now = now();
        let path =
            folder.join(format!("events.out.tfevents.{:010}.viscache.{}", now as u64, std::process::id()));
        let file = File::options().create(true).append(true).open(&path).map_err(Stop::file(&path))?;
        let mut events = Events { file, path };
        events.put(&Event {
            wall_time: now,
            file_version: Some("brain.Event:2".into()),
            ..Event::default()
        })?;
        let session = Some(Session { status: 1 });
        events.put(&Event { wall_time: now, step: step as i64, session, ..Event::default() })?;
        Ok(events)
    }

    /// Adds numbers of a step.
    ///
    /// # Errors
    /// [`Stop::File`].
    pub fn add(&mut self, step: usize, numbers: &[(&str, f64)]) -> Result<(), Stop> {
        let value = numbers
            .iter()
            .map(|&(tag, value)| Value { tag: tag.to_owned(), simple_value: Some(value as f32) })
            .collect();
        let summary = Some(Summary { value });
        self.put(&Event { wall_time: now(), step: step as i64, summary, ..Event::default() })
    }

    fn put(&mut self, event: &Event) -> Result<(), Stop> {
        self.file.write_all(&record(&event.encode_to_vec())).map_err(Stop::file(&self.path))
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// An event as it stands in a file.
fn record(event: &[u8]) -> Vec<u8> {
    let length = (event.len() as u64).to_le_bytes();
    [&length[..], &masked(&length), event, &masked(event)].concat()
}

fn masked(bytes: &[u8]) -> [u8; 4] {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// CRC-32C (Castagnoli), bit by bit: events are small.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_castagnolis() {
        // RFC 3720, B.4.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    #[test]
    fn files_are_records_of_events() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = Events::begin(folder.path(), 7).unwrap();
        events.add(8, &[("loss", 0.5), ("rate", 1e-3)]).unwrap();
        let path = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
        let bytes = std::fs::read(path).unwrap();
        let (mut rest, mut read) = (&bytes[..], Vec::new());
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(rest[8..12], masked(&rest[..8]));
            let event = &rest[12..12 + length];
            assert_eq!(rest[12 + length..16 + length], masked(event));
            read.push(Event::decode(event).unwrap());
            rest = &rest[16 + length..];
        }
        assert_eq!(read[0].file_version.as_deref(), Some("brain.Event:2"));
        assert_eq!((read[1].step, read[1].session.as_ref().unwrap().status), (7, 1));
        let values = &read[2].summary.as_ref().unwrap().value;
        assert_eq!((read[2].step, values[0].tag.as_str(), values[0].simple_value), (8, "loss", Some(0.5)));
        assert_eq!((read.len(), values.len()), (3, 2));
    }
}
