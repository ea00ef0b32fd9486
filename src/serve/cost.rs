//! What a message takes in memory once it is decoded, told from its bytes before anything is.
//!
//! Two bytes on the wire may become hundreds: an empty item of a list is a tag and a length. The descriptors of `proto/` say which
//! field is a list of what, and how large one of those is in Rust; the bytes say how many there are. What a message takes is then
//! counted without decoding it.
//!
//! Left out: unknown fields, which are dropped, and what is malformed, which the decoder refuses where it meets it.

use std::collections::HashMap;

use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FileDescriptorSet};

/// A list doubles when it is full, and is copied then: so many times its elements at its worst moment.
const GROWTH: u64 = 3;
/// Messages within messages that a decoder follows.
const DEPTH: usize = 100;
/// Bytes of a list, of an owned text and of a shared one, of a map, of a pointer, and of an element of a map beside what is in it.
const LIST: u64 = 24;
const TEXT: u64 = 24;
const BYTES: u64 = 32;
const MAP: u64 = 48;
const POINTER: u64 = 8;
const ENTRY: u64 = 16;
/// What the allocator adds to a text.
const ALLOCATION: u64 = 16;

/// The messages that methods take.
pub(super) struct Costs {
    messages: Vec<Costly>,
    /// By path, as `/viscache.v1.CacheService/Search`: the message, and whether many come.
    methods: HashMap<String, (usize, bool)>,
}

/// A kind of message.
struct Costly {
    /// Bytes of one in Rust, its lists empty.
    bytes: u64,
    fields: HashMap<u32, Field>,
}

#[derive(Clone, Copy)]
struct Field {
    kind: Kind,
    repeated: bool,
}

#[derive(Clone, Copy)]
enum Kind {
    /// A number of so many bytes, and whether it has as many on the wire.
    Number(u64, bool),
    /// A text: copied.
    Text,
    /// Bytes: shared with the message.
    Bytes,
    /// A message, by its place.
    Message(usize),
}

/// A message takes more than it may.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooMuch;

impl Costs {
    /// Of the methods of a descriptor set.
    ///
    /// # Errors
    /// Bytes that are none.
    pub(super) fn of(descriptors: &[u8]) -> Result<Self, prost::DecodeError> {
        let set = FileDescriptorSet::decode(descriptors)?;
        let mut declared = Vec::new();
        for file in &set.file {
            let package = format!(".{}", file.package());
            file.message_type.iter().for_each(|message| declare(&package, message, &mut declared));
        }
        let places: HashMap<&str, usize> =
            declared.iter().enumerate().map(|(i, (name, _))| (name.as_str(), i)).collect();
        let mut sizes = vec![None; declared.len()];
        let messages = (0..declared.len()).map(|i| {
            let fields = declared[i].1.field.iter().map(|field| {
                let kind = match field.r#type() {
                    Type::String => Kind::Text,
                    Type::Bytes => Kind::Bytes,
                    Type::Message | Type::Group => match places.get(field.type_name()) {
                        Some(&place) => Kind::Message(place),
                        // Not in the set: its bytes are what is known of it.
                        None => Kind::Text,
                    },
                    Type::Float | Type::Fixed32 | Type::Sfixed32 => Kind::Number(4, true),
                    Type::Double | Type::Fixed64 | Type::Sfixed64 => Kind::Number(8, true),
                    Type::Int32 | Type::Uint32 | Type::Sint32 | Type::Enum => Kind::Number(4, false),
                    Type::Bool => Kind::Number(1, false),
                    Type::Int64 | Type::Uint64 | Type::Sint64 => Kind::Number(8, false),
                };
                (field.number() as u32, Field { kind, repeated: field.label() == Label::Repeated })
            });
            (size(i, &declared, &places, &mut sizes), fields.collect())
        });
        let messages = messages.map(|(bytes, fields)| Costly { bytes, fields }).collect();
        let mut methods = HashMap::new();
        for file in &set.file {
            for service in &file.service {
                for method in &service.method {
                    if let Some(&place) = places.get(method.input_type()) {
                        let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                        methods.insert(path, (place, method.client_streaming()));
                    }
                }
            }
        }
        Ok(Costs { messages, methods })
    }

    /// Every method: its path, the message that it takes, whether many come.
    pub(super) fn methods(&self) -> impl Iterator<Item = (&str, usize, bool)> {
        self.methods.iter().map(|(path, (message, stream))| (path.as_str(), *message, *stream))
    }

    /// Bytes that a message takes beside its own once it is decoded.
    ///
    /// * `message`: which, as [`Costs::methods`] has it. `most`: what it may take.
    ///
    /// # Errors
    /// [`TooMuch`], as soon as that is sure.
    pub(super) fn count(&self, message: usize, bytes: &[u8], most: u64) -> Result<u64, TooMuch> {
        let mut left = most.checked_sub(self.messages[message].bytes).ok_or(TooMuch)?;
        self.fields(message, bytes, DEPTH, &mut left)?;
        Ok(most - left)
    }

    fn fields(&self, message: usize, mut bytes: &[u8], depth: usize, left: &mut u64) -> Result<(), TooMuch> {
        let fields = &self.messages[message].fields;
        while let Some(tag) = varint(&mut bytes) {
            let field = fields.get(&((tag >> 3) as u32)).copied();
            let element = |field: Field, bytes: u64| if field.repeated { GROWTH * bytes } else { 0 };
            match (tag & 7, field) {
                (0, field) => {
                    if varint(&mut bytes).is_none() {
                        break;
                    }
                    if let Some(field @ Field { kind: Kind::Number(width, _), .. }) = field {
                        pay(left, element(field, width))?;
                    }
                }
                (1 | 5, field) => {
                    let Some(rest) = bytes.get(if tag & 7 == 1 { 8 } else { 4 }..) else { break };
                    bytes = rest;
                    if let Some(field @ Field { kind: Kind::Number(width, _), .. }) = field {
                        pay(left, element(field, width))?;
                    }
                }
                (2, field) => {
                    let Some(length) = varint(&mut bytes).and_then(|length| usize::try_from(length).ok())
                    else {
                        break;
                    };
                    let Some((inner, rest)) = bytes.split_at_checked(length) else { break };
                    bytes = rest;
                    match field {
                        None => {}
                        Some(field @ Field { kind: Kind::Text, .. }) => {
                            pay(left, element(field, TEXT) + inner.len() as u64 + ALLOCATION)?;
                        }
                        Some(field @ Field { kind: Kind::Bytes, .. }) => pay(left, element(field, BYTES))?,
                        // Packed: of varying length, each ends with a small byte.
                        Some(field @ Field { kind: Kind::Number(width, fixed), .. }) => {
                            let many = match fixed {
                                true => inner.len() as u64,
                                false => inner.iter().filter(|byte| **byte < 0x80).count() as u64 * width,
                            };
                            pay(left, element(field, many))?;
                        }
                        Some(field @ Field { kind: Kind::Message(inside), .. }) => {
                            pay(left, element(field, self.messages[inside].bytes))?;
                            if let Some(depth) = depth.checked_sub(1) {
                                self.fields(inside, inner, depth, left)?;
                            }
                        }
                    }
                }
                // Groups are not in our protos; the decoder says what is wrong.
                _ => break,
            }
        }
        Ok(())
    }
}

fn pay(left: &mut u64, bytes: u64) -> Result<(), TooMuch> {
    *left = left.checked_sub(bytes).ok_or(TooMuch)?;
    Ok(())
}

/// A message and those declared in it, with their full names.
fn declare<'a>(
    within: &str,
    message: &'a DescriptorProto,
    declared: &mut Vec<(String, &'a DescriptorProto)>,
) {
    let name = format!("{within}.{}", message.name());
    message.nested_type.iter().for_each(|inner| declare(&name, inner, declared));
    declared.push((name, message));
}

/// Bytes of a message in Rust, not less than they are: fields one after another, each as wide as its neighbours may force it to be.
fn size(
    place: usize,
    declared: &[(String, &DescriptorProto)],
    places: &HashMap<&str, usize>,
    sizes: &mut [Option<u64>],
) -> u64 {
    if let Some(size) = sizes[place] {
        return size;
    }
    // Whoever meets itself is behind a pointer.
    sizes[place] = Some(POINTER);
    let message = declared[place].1;
    let entry = message.options.as_ref().is_some_and(|options| options.map_entry());
    let (mut bytes, mut choices) = (if entry { ENTRY } else { 0 }, HashMap::<i32, u64>::new());
    for field in &message.field {
        let inside = places.get(field.type_name()).copied();
        let one = match field.r#type() {
            _ if field.label() == Label::Repeated => LIST.max(if is_map(declared, inside) { MAP } else { 0 }),
            Type::String => TEXT,
            Type::Bytes => BYTES,
            Type::Message | Type::Group => {
                8 + inside.map_or(LIST, |inside| size(inside, declared, places, sizes))
            }
            _ if field.proto3_optional() => 16,
            _ => 8,
        };
        match field.oneof_index.filter(|_| !field.proto3_optional()) {
            Some(choice) => {
                let largest = choices.entry(choice).or_default();
                *largest = (*largest).max(8 + one);
            }
            None => bytes += one,
        }
    }
    let bytes = bytes + choices.values().sum::<u64>();
    sizes[place] = Some(bytes);
    bytes
}

fn is_map(declared: &[(String, &DescriptorProto)], place: Option<usize>) -> bool {
    let options = place.and_then(|place| declared[place].1.options.as_ref());
    options.is_some_and(|options| options.map_entry())
}

/// A number as protobuf writes it; nothing at the end, and for one that has none.
fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for (i, byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * i);
        if *byte < 0x80 {
            *bytes = &bytes[i + 1..];
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::mem::size_of;

    use super::*;
    use crate::serve::proto::{self, DESCRIPTOR};

    fn costs() -> Costs {
        Costs::of(DESCRIPTOR).unwrap()
    }

    fn message(costs: &Costs, path: &str) -> usize {
        costs.methods[path].0
    }

    /// Bytes of a message by its name.
    fn bytes(name: &str) -> u64 {
        let set = FileDescriptorSet::decode(DESCRIPTOR).unwrap();
        let mut declared = Vec::new();
        for file in &set.file {
            file.message_type
                .iter()
                .for_each(|message| declare(&format!(".{}", file.package()), message, &mut declared));
        }
        let place = declared.iter().position(|(known, _)| *known == format!(".viscache.v1.{name}")).unwrap();
        costs().messages[place].bytes
    }

    #[test]
    fn no_message_is_larger_than_it_is_taken_to_be() {
        macro_rules! check {
            ($($message:ident),*) => { $(
                let (told, is) = (bytes(stringify!($message)), size_of::<proto::$message>() as u64);
                assert!((is..=3 * is).contains(&told), "{}: {told} told, {is} bytes", stringify!($message));
            )* };
        }
        check!(
            UpsertItem,
            Query,
            Part,
            Media,
            Filter,
            Tensor,
            ItemUpdate,
            EnhanceRequest,
            SearchRequest,
            UpsertRequest,
            EmbedRequest,
            GenerateRequest,
            ScoreRequest,
            Turn,
            ModelInput,
            VideoFrames,
            TagCondition,
            DeleteRequest,
            ListItemsRequest,
            EnhanceStreamRequest,
            UpsertStreamRequest
        );
    }

    #[test]
    fn lists_cost_what_they_become() {
        let costs = costs();
        let upsert = message(&costs, "/viscache.v1.AdminService/Upsert");
        let count = |bytes: &[u8]| costs.count(upsert, bytes, u64::MAX).unwrap();
        let empty = count(&[]);
        let item = size_of::<proto::UpsertItem>() as u64;
        let many = proto::UpsertRequest { items: vec![Default::default(); 1000], ..Default::default() };
        let told = count(&many.encode_to_vec()) - empty;
        assert!((2 * 1000 * item..=9 * 1000 * item).contains(&told), "{told}");
        // It ends where the limit is, and does not count on.
        assert_eq!(costs.count(upsert, &many.encode_to_vec(), 100 * item), Err(TooMuch));

        let enhance = message(&costs, "/viscache.v1.CacheService/Enhance");
        let rows = proto::Tensor { data: vec![0x0a; 100_000].into(), ..Default::default() };
        let rows = proto::EnhanceRequest { vectors: Some(rows), ..Default::default() };
        let plain = costs.count(enhance, &[], u64::MAX).unwrap();
        assert_eq!(costs.count(enhance, &rows.encode_to_vec(), u64::MAX).unwrap(), plain, "bytes are shared");
        let values = proto::Tensor { values: vec![1.0; 1000], ..Default::default() };
        let values = proto::EnhanceRequest { vectors: Some(values), ..Default::default() };
        let told = costs.count(enhance, &values.encode_to_vec(), u64::MAX).unwrap() - plain;
        assert!((4000..=16_000).contains(&told), "{told}");
        let tagged = |count: usize| {
            let tags = (0..count).map(|i| (i.to_string(), "x".repeat(10))).collect();
            let items = vec![proto::UpsertItem { tags, ..Default::default() }];
            count_of(&costs, upsert, &proto::UpsertRequest { items, ..Default::default() })
        };
        assert!(tagged(1000) - tagged(0) >= 1000 * (2 * TEXT + 10), "{}", tagged(1000));
    }

    fn count_of(costs: &Costs, message: usize, sent: &impl Message) -> u64 {
        costs.count(message, &sent.encode_to_vec(), u64::MAX).unwrap()
    }

    #[test]
    fn whatever_comes_is_counted_in_time() {
        use proptest::prelude::*;
        let costs = costs();
        let mut runner = proptest::test_runner::TestRunner::default();
        let bytes = proptest::collection::vec(any::<u8>(), 0..300);
        let places = 0..costs.messages.len();
        runner
            .run(&(places, bytes), |(place, bytes)| {
                let told = costs.count(place, &bytes, u64::MAX).unwrap();
                prop_assert!(told >= costs.messages[place].bytes);
                prop_assert_eq!(costs.count(place, &bytes, told), Ok(told));
                Ok(())
            })
            .unwrap();
        // As deep as a decoder goes, and deeper.
        let mut filter = Vec::new();
        for _ in 0..2000 {
            let filters = [&[0x0a][..], &length(filter.len()), &filter].concat();
            filter = [&[0x22][..], &length(filters.len()), &filters].concat();
        }
        let place = costs.messages.iter().position(|message| message.fields.len() == 6).unwrap();
        _ = costs.count(place, &filter, u64::MAX);
    }

    fn length(mut value: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while value >= 0x80 {
            bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        bytes.push(value as u8);
        bytes
    }
}
