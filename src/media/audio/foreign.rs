//! Sounds in common formats that are not read, known by their first bytes: a refusal names them and the way out.
//!
//! Left out: reading them. Phones and messengers record AAC and Opus, whose decoders would be larger than all others here together,
//! and `ffmpeg` is at hand where such files are.

/// What a file begins with, at which byte, and what it then is: the format, and the ending of such a file's name.
const MAGICS: [(usize, &[u8], &str, &str); 14] = [
    (4, b"ftyp", "MP4 (AAC or ALAC)", "m4a"),
    (0, b"ADIF", "AAC", "aac"),
    (0, &[0x30, 0x26, 0xb2, 0x75, 0x8e, 0x66, 0xcf, 0x11], "WMA (Windows Media)", "wma"),
    (0, b"#!AMR", "AMR", "amr"),
    (0, &[0x1a, 0x45, 0xdf, 0xa3], "WebM or Matroska", "webm"),
    (8, b"AIFF", "AIFF", "aiff"),
    (8, b"AIFC", "AIFF-C", "aifc"),
    (0, b"caff", "Apple's CAF", "caf"),
    (0, b".snd", "Sun's AU", "au"),
    (0, b"wvpk", "WavPack", "wv"),
    (0, b"MAC ", "Monkey's Audio", "ape"),
    (0, b"RF64", "RF64", "rf64"),
    (0, b".RMF", "RealMedia", "rm"),
    (8, b"AVI ", "AVI", "avi"),
];

/// What a first packet in Ogg begins with, and which codec that is.
const OGG_MAGICS: [(&[u8], &str); 2] = [(b"OpusHead", "Opus in Ogg"), (b"Speex   ", "Speex in Ogg")];
/// Set in the header of a page that a stream begins with.
const OGG_BEGINS: u8 = 2;
/// Bytes of a page's header before its table of segments.
const OGG_HEADER: usize = 27;

/// What is wrong with a file of a format that is known and not read, and what to do about it.
pub(super) fn refusal(bytes: &[u8]) -> Option<String> {
    let (format, ending) = format(bytes)?;
    Some(format!("{format} is not read; convert it, as with `ffmpeg -i voice.{ending} voice.wav`"))
}

/// What is wrong with a WAV file whose samples are in a format that is not read.
///
/// * `tag`: the format's number in the file.
pub(super) fn in_wav(tag: u16) -> String {
    format!("WAV of format {tag:#06x} is not read; convert it, as with `ffmpeg -i voice.wav plain.wav`")
}

/// The format, and the ending of such a file's name.
fn format(bytes: &[u8]) -> Option<(&'static str, &'static str)> {
    if bytes.starts_with(b"OggS") {
        return ogg(bytes).map(|codec| (codec, "ogg"));
    }
    // A frame of AAC begins as one of MPEG audio does, with a layer that there is not.
    if matches!(bytes, [0xff, second, ..] if second & 0xf6 == 0xf0) {
        return Some(("AAC", "aac"));
    }
    let known = MAGICS.iter().find(|(at, magic, ..)| bytes.get(*at..).is_some_and(|b| b.starts_with(magic)));
    known.map(|&(_, _, format, ending)| (format, ending))
}

/// The first codec that is not read, of the streams that an Ogg file begins with; nothing if one is.
fn ogg(mut bytes: &[u8]) -> Option<&'static str> {
    let mut found = None;
    while bytes.starts_with(b"OggS") && bytes.get(5).is_some_and(|flags| flags & OGG_BEGINS != 0) {
        let segments = bytes.get(OGG_HEADER..)?.get(..usize::from(bytes[OGG_HEADER - 1]))?;
        let packet = &bytes[OGG_HEADER + segments.len()..];
        if packet.starts_with(b"\x01vorbis") || packet.starts_with(b"\x7fFLAC") {
            return None;
        }
        found =
            found.or(OGG_MAGICS.iter().find(|(magic, _)| packet.starts_with(magic)).map(|&(_, codec)| codec));
        bytes = packet.get(segments.iter().map(|&length| usize::from(length)).sum()..)?;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::Error;
    use crate::media::audio::AudioLimits;
    use crate::media::audio::decode::decode;

    /// A page that a stream begins with.
    fn page(packet: &[u8]) -> Vec<u8> {
        let mut page = vec![0; OGG_HEADER];
        page[..4].copy_from_slice(b"OggS");
        page[5] = OGG_BEGINS;
        page[OGG_HEADER - 1] = 1;
        [page, vec![packet.len() as u8], packet.to_vec()].concat()
    }

    #[test]
    fn a_format_that_is_not_read_is_named_with_the_cure() {
        let opus = page(b"OpusHead\x01\x01");
        let skeleton = [page(b"fishead\0"), page(b"Speex   1.2")].concat();
        let cases: [(&[u8], &str, &str); 12] = [
            (&opus, "Opus in Ogg", "voice.ogg"),
            (&skeleton, "Speex in Ogg", "voice.ogg"),
            (b"\0\0\0\x1cftypM4A \0\0\x02\0", "MP4", "voice.m4a"),
            (b"\xff\xf1\x50\x80\x02\x1f\xfc", "AAC", "voice.aac"),
            (b"\xff\xf9\x50\x80\x02\x1f\xfc", "AAC", "voice.aac"),
            (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9", "WMA", "voice.wma"),
            (b"#!AMR\n\x3c", "AMR", "voice.amr"),
            (b"#!AMR-WB\n", "AMR", "voice.amr"),
            (b"\x1a\x45\xdf\xa3\x9f", "WebM or Matroska", "voice.webm"),
            (b"FORM\0\0\0\0AIFFCOMM", "AIFF", "voice.aiff"),
            (b"FORM\0\0\0\0AIFCFVER", "AIFF-C", "voice.aifc"),
            (b"caff\0\x01\0\0", "CAF", "voice.caf"),
        ];
        for (bytes, format, file) in cases {
            let Err(Error::NotASound(said)) = decode(bytes, &AudioLimits::default()) else {
                panic!("{format} was not refused as a sound that is not read");
            };
            assert!(said.contains(format) && said.contains(&format!("ffmpeg -i {file}")), "{format}: {said}");
        }
    }

    #[test]
    fn a_wav_file_of_a_format_that_is_not_read_is_named_with_the_cure() {
        // GSM 6.10: a channel of 8000 Hz, blocks of 65 bytes with 320 samples.
        let format =
            [&0x31u16.to_le_bytes()[..], &[1, 0], &8000u32.to_le_bytes(), &1625u32.to_le_bytes()].concat();
        let format = [&format[..], &[65, 0, 0, 0, 2, 0, 64, 1]].concat();
        let mut bytes = b"RIFF\x6d\0\0\0WAVEfmt \x14\0\0\0".to_vec();
        bytes.extend(format);
        bytes.extend(b"data\x41\0\0\0");
        bytes.extend([0; 65]);
        let said = decode(&bytes, &AudioLimits::default()).unwrap_err().to_string();
        assert!(said.contains("0x0031") && said.contains("ffmpeg -i"), "{said}");
    }

    #[test]
    fn what_may_be_read_is_left_to_the_decoders() {
        let vorbis = [page(b"OpusHead"), page(b"\x01vorbis\0")].concat();
        let flac = page(b"\x7fFLAC\x01\0");
        let mp3: &[u8] = b"\xff\xfb\x90\x00";
        for bytes in
            [&vorbis[..], &flac, mp3, b"ID3\x04", b"fLaC", b"RIFF\0\0\0\0WAVEfmt ", b"OggS", b"", b"\xff"]
        {
            assert_eq!(refusal(bytes), None, "{bytes:?}");
        }
        // Pages that end before their tables do.
        for length in 0..vorbis.len() {
            refusal(&page(b"OpusHead")[..length.min(36)]);
            refusal(&vorbis[..length]);
        }
    }
}
