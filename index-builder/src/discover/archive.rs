//! Members of archives, which are read where they lie. Those of a compressed archive are read on the way.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use flate2::bufread::MultiGzDecoder;
use tar::EntryType;
use viscache::store::Stamp;

use super::kind::{self, HEAD, Kind};
use super::{Found, MAX_MEMBER, Place, Refusal, Step, Unit, Walk, ending_of, name, stamp, tags};

const NESTED: &str = "it is an archive inside an archive, which is not looked into: unpack the outer one";
const SPARSE: &str =
    "it is a sparse member of the PAX kind, which is not read: pack the archive without --sparse";
const LINK: &str =
    "it is a link inside an archive, which is not followed: pack with --dereference and --hard-dereference";

/// An archive under way.
struct Open<'a> {
    path: Arc<Path>,
    uri: &'a str,
    /// Of the archive's file.
    about: Stamp,
    packed: bool,
}

/// What has been seen of the sample that is under way: pictures wait for the texts beside them.
#[derive(Default)]
struct Sample {
    key: Vec<u8>,
    units: Vec<Unit>,
    texts: Vec<(usize, Place)>,
    /// Samples of this archive that have a picture.
    pictured: HashSet<Vec<u8>>,
    /// Sounds and films: with a picture of their sample they belong to it. Their sample, ending, and what else is said of them.
    senses: Vec<(Vec<u8>, String, Found)>,
}

/// How a member was taken.
enum Member {
    /// The next one can be.
    Taken(ControlFlow<()>),
    /// The archive ends inside it: there is no next one.
    Cut(Found),
}

impl Walk<'_> {
    /// Visits every member of an archive.
    pub(super) fn archive(&mut self, path: &Path, about: &fs::Metadata, packed: bool) -> Step {
        let (uri, about) = (name::of_path(path), stamp(about));
        if self.visitor.is_done(&uri, about)? {
            return Ok(ControlFlow::Continue(()));
        }
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) => return self.not(path, about, Refusal::io(&e)),
        };
        let open = Open { path: path.into(), uri: &uri, about, packed };
        let (step, whole) = if packed {
            let mut archive = tar::Archive::new(MultiGzDecoder::new(BufReader::new(file)));
            match archive.entries() {
                Ok(members) => self.members(&open, members)?,
                Err(e) => (self.visitor.visit(damaged(&open, &e))?, false),
            }
        } else {
            let mut archive = tar::Archive::new(BufReader::new(file));
            match archive.entries_with_seek() {
                Ok(members) => self.members(&open, members)?,
                Err(e) => (self.visitor.visit(damaged(&open, &e))?, false),
            }
        };
        match step {
            ControlFlow::Continue(()) => self.visitor.visit(Found::Archive { uri, stamp: about, whole }),
            ControlFlow::Break(()) => Ok(step),
        }
    }

    /// Goes through the members; whether all of them were there.
    fn members<R: Read>(
        &mut self,
        open: &Open<'_>,
        members: tar::Entries<'_, R>,
    ) -> anyhow::Result<(ControlFlow<()>, bool)> {
        let (mut sample, mut whole) = (Sample::default(), true);
        for member in members {
            let step = match member {
                Ok(mut member) => match self.member(open, &mut member, &mut sample)? {
                    Member::Taken(step) => step,
                    Member::Cut(found) => {
                        whole = false;
                        self.last(&mut sample, Some(found))?
                    }
                },
                Err(e) => {
                    whole = false;
                    self.last(&mut sample, Some(damaged(open, &e)))?
                }
            };
            if step.is_break() || !whole {
                return Ok((step, false));
            }
        }
        Ok((self.last(&mut sample, None)?, whole))
    }

    /// Visits what waited for the end of the archive, and then how it ended.
    fn last(&mut self, sample: &mut Sample, end: Option<Found>) -> Step {
        let mut step = self.settle(sample)?;
        let senses = std::mem::take(&mut sample.senses).into_iter();
        let beside =
            |(key, ending, found)| if sample.pictured.contains(&key) { Found::Beside(ending) } else { found };
        for found in senses.map(beside).chain(end) {
            if step.is_break() {
                break;
            }
            step = self.visitor.visit(found)?;
        }
        Ok(step)
    }

    /// Takes one member.
    fn member<R: Read>(
        &mut self,
        open: &Open<'_>,
        member: &mut tar::Entry<'_, R>,
        sample: &mut Sample,
    ) -> anyhow::Result<Member> {
        let go_on = Ok(Member::Taken(ControlFlow::Continue(())));
        let path = member.path_bytes().into_owned();
        let entry = member.header().entry_type();
        if entry.is_dir() || path.ends_with(b"/") {
            return go_on;
        }
        let uri = format!("{}!{}", open.uri, name::of_bytes(&path));
        let (at, len) = (member.raw_file_position(), member.size());
        let of_member = Stamp { bytes: len, modified_ns: open.about.modified_ns };
        let not = |refusal| Found::Not { uri: uri.clone(), stamp: of_member, refusal };
        let ending = ending_of(&path);
        if self.inputs.ignore.contains(&ending) {
            return self.visitor.visit(Found::Ignored(ending)).map(Member::Taken);
        }
        let by_name = kind::by_name(&path);
        if matches!(entry, EntryType::Link | EntryType::Symlink) {
            return match by_name {
                Some(Kind::Picture | Kind::Other(_) | Kind::Sense(_)) | None => {
                    self.visitor.visit(not(Refusal::Passed(LINK.into()))).map(Member::Taken)
                }
                Some(_) => self.visitor.visit(Found::Beside(ending)).map(Member::Taken),
            };
        }
        if !entry.is_file() && !entry.is_gnu_sparse() && entry != EntryType::Continuous {
            let refusal = Refusal::Passed("it is no file but a pipe or a device".into());
            return self.visitor.visit(not(refusal)).map(Member::Taken);
        }
        if path.split(|b| *b == b'/').any(|part| part == b"..")
            || path.starts_with(b"/")
            || path.contains(&b'\\')
        {
            let refusal = Refusal::Bad("its name leads out of the archive".into());
            return self.visitor.visit(not(refusal)).map(Member::Taken);
        }
        if !open.packed
            && !entry.is_gnu_sparse()
            && at.checked_add(len).is_none_or(|end| end > open.about.bytes)
        {
            let refusal = Refusal::Bad("the archive is cut short inside this member".into());
            return Ok(Member::Cut(not(refusal)));
        }
        let pax_sparse = member.pax_extensions().ok().flatten().is_some_and(|extensions| {
            extensions.flatten().any(|field| field.key_bytes().starts_with(b"GNU.sparse."))
        });
        if pax_sparse {
            return self.visitor.visit(not(Refusal::Passed(SPARSE.into()))).map(Member::Taken);
        }

        let mut head = Vec::new();
        let kind = match by_name {
            Some(kind) => kind,
            None => match member.take(HEAD as u64).read_to_end(&mut head) {
                Ok(_) => kind::by_content(&head),
                Err(e) => return self.visitor.visit(not(Refusal::io(&e))).map(Member::Taken),
            },
        };
        let (key, rest) = tags::sample_of(&path);
        if sample.key != key {
            if self.settle(sample)?.is_break() {
                return Ok(Member::Taken(ControlFlow::Break(())));
            }
            sample.key = key.to_vec();
        }
        let rule = |rule: &tags::TagRule| rule.ending.as_bytes().eq_ignore_ascii_case(rest);
        let rules: Vec<usize> =
            (0..self.inputs.tags.len()).filter(|&at| rule(&self.inputs.tags[at])).collect();
        let wanted = kind == Kind::Picture || !rules.is_empty();
        let place = match open.packed {
            _ if !wanted => Place::Unread { len },
            false if entry.is_gnu_sparse() => {
                Place::Sparse { archive: open.path.clone(), header: member.raw_header_position(), len }
            }
            false => Place::Member { archive: open.path.clone(), offset: at, len },
            true => match self.hold {
                Some(most) if len <= most.min(MAX_MEMBER) => {
                    if let Err(e) = member.read_to_end(&mut head) {
                        let reason = format!("the archive is damaged inside this member: {e}");
                        return Ok(Member::Cut(not(Refusal::Bad(reason))));
                    }
                    Place::Held(head.into())
                }
                _ => Place::Unread { len },
            },
        };
        sample.texts.extend(rules.into_iter().map(|rule| (rule, place.clone())));
        let found = match kind {
            Kind::Picture => {
                if !sample.pictured.contains(key) {
                    sample.pictured.insert(key.to_vec());
                }
                sample.units.push(Unit { uri, stamp: of_member, place, texts: Vec::new() });
                // Without tags there is nothing to wait for.
                return if self.inputs.tags.is_empty() {
                    self.settle(sample).map(Member::Taken)
                } else {
                    go_on
                };
            }
            Kind::Tar | Kind::TarGz => not(Refusal::Passed(NESTED.into())),
            Kind::Beside => Found::Beside(ending),
            Kind::Other(reason) => not(Refusal::Passed(format!("it is {reason}"))),
            Kind::Sense(reason) => {
                let found = not(Refusal::Passed(format!("it is {reason}")));
                sample.senses.push((key.to_vec(), ending, found));
                return go_on;
            }
        };
        self.visitor.visit(found).map(Member::Taken)
    }

    /// Visits the pictures of a sample, which is complete.
    fn settle(&mut self, sample: &mut Sample) -> Step {
        let texts = std::mem::take(&mut sample.texts);
        for unit in std::mem::take(&mut sample.units) {
            if self.visitor.visit(Found::Unit(Unit { texts: texts.clone(), ..unit }))?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// What is said of an archive that cannot be read on.
fn damaged(open: &Open<'_>, error: &std::io::Error) -> Found {
    let refusal = match Refusal::io(error) {
        Refusal::Bad(_) => Refusal::Bad(format!("the archive is damaged from here on: {error}")),
        refusal => refusal,
    };
    Found::Not { uri: open.uri.to_owned(), stamp: open.about, refusal }
}
