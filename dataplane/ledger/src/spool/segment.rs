//! The bytes of a segment file: its header, and the frames that hold records (`docs/formats/spool.md`).
//!
//! Owns the layout, the checksums and what a scan of a file's bytes can tell. Pure. Promises: a frame is taken as valid
//! only at the place for which it was written, so nothing that was moved, torn or left over is ever delivered.

use std::ops::Range;

use super::record::RECORD_BYTES_MAX;

const MAGIC: [u8; 8] = *b"certspl\n";
const VERSION: u32 = 1;
/// Bytes of a segment's header.
pub(crate) const HEADER_BYTES: usize = 32;
/// Bytes before a record: its length, its checksum, and how much of the file was on disk already.
pub(crate) const FRAME_HEAD_BYTES: usize = 16;

const SEGMENT: &str = ".spool";

/// The number of a segment; they count up, and gaps mean that a file was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Sequence(pub(crate) u64);

impl Sequence {
    /// The segment's file.
    pub(crate) fn file_name(self) -> String {
        format!("{:016x}{SEGMENT}", self.0)
    }

    /// The segment's file once it is set aside because of its contents.
    pub(crate) fn corrupt_name(self) -> String {
        format!("{:016x}{SEGMENT}.corrupt", self.0)
    }

    /// The file of one record of the segment that the database refused for good.
    pub(crate) fn rejected_name(self, offset: u64) -> String {
        format!("{:016x}-{offset:08x}.rejected", self.0)
    }

    /// The number in a file name of the spool, whichever of the three it is.
    pub(crate) fn of_any(name: &str) -> Option<Self> {
        let digits = name.get(..16)?;
        let ours = digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let number = u64::from_str_radix(digits, 16).ok()?;
        ours.then_some(Self(number))
    }

    /// The number in a segment's file name.
    pub(crate) fn of_segment(name: &str) -> Option<Self> {
        Self::of_any(name).filter(|sequence| sequence.file_name() == name)
    }
}

/// The head of a segment file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    /// The segment's own number.
    pub(crate) sequence: Sequence,
    /// How many bytes of the segment before it hold acknowledged records; 0 when there was none.
    pub(crate) previous_bytes: u64,
}

impl Header {
    /// The header's bytes.
    pub(crate) fn encode(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_be_bytes());
        bytes[12..20].copy_from_slice(&self.sequence.0.to_be_bytes());
        bytes[20..28].copy_from_slice(&self.previous_bytes.to_be_bytes());
        let checksum = crc32c::crc32c(&bytes[..28]);
        bytes[28..].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }

    /// Reads a header; `None` when it is not one, or one of another version.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..HEADER_BYTES)?;
        let checksum = u32_at(bytes, 28);
        if crc32c::crc32c(&bytes[..28]) != checksum || bytes[..8] != MAGIC || u32_at(bytes, 8) != VERSION {
            return None;
        }
        Some(Self { sequence: Sequence(u64_at(bytes, 12)), previous_bytes: u64_at(bytes, 20) })
    }
}

/// Writes a record's frame behind `out`, of which the first byte stands at `base` in the segment.
///
/// `durable` is how much of the segment was on disk when the frame was written: whoever finds this frame knows that
/// everything before `durable` had been acknowledged.
pub(crate) fn put_frame(out: &mut Vec<u8>, base: u64, sequence: Sequence, durable: u64, record: &[u8]) {
    let offset = base + out.len() as u64;
    let length = u32::try_from(record.len()).expect("a record is bounded far below 4 GiB");
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&checksum(sequence, offset, durable, record).to_be_bytes());
    out.extend_from_slice(&durable.to_be_bytes());
    out.extend_from_slice(record);
}

/// Covers the record and all that says where it stands; the length follows from what is covered.
fn checksum(sequence: Sequence, offset: u64, durable: u64, record: &[u8]) -> u32 {
    let place = [sequence.0, offset, durable, record.len() as u64].map(u64::to_be_bytes);
    crc32c::crc32c_append(crc32c::crc32c(place.as_flattened()), record)
}

/// What stands at one place of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// A record, which stands there in the bytes that were looked at.
    Frame(Range<usize>),
    /// Perhaps a record, of which this many bytes are needed to tell.
    Needs(usize),
    /// No record.
    Nothing,
}

/// Looks for a frame at `at` in `bytes`, of which the first byte stands at `base` in the segment.
pub(crate) fn frame_at(bytes: &[u8], at: usize, base: u64, sequence: Sequence) -> Found {
    let Some(head) = bytes.get(at..at + FRAME_HEAD_BYTES) else { return Found::Needs(FRAME_HEAD_BYTES) };
    let length = u32_at(head, 0) as usize;
    if length == 0 || length > RECORD_BYTES_MAX {
        return Found::Nothing;
    }
    let start = at + FRAME_HEAD_BYTES;
    let durable = u64_at(head, 8);
    // Nothing behind the frame was on disk before it.
    if durable > base + at as u64 {
        return Found::Nothing;
    }
    let Some(record) = bytes.get(start..start + length) else {
        return Found::Needs(FRAME_HEAD_BYTES + length);
    };
    if u32_at(head, 4) != checksum(sequence, base + at as u64, durable, record) {
        return Found::Nothing;
    }
    Found::Frame(start..start + length)
}

/// What the bytes of a whole segment file hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scan {
    /// The header, when it is intact.
    pub(crate) header: Option<Header>,
    /// Where the records stand.
    pub(crate) records: Vec<Range<usize>>,
    /// Bytes up to the end of the last record before the first that is not one.
    pub(crate) valid_bytes: u64,
    /// A later frame shows that more than `valid_bytes` had been acknowledged: this is damage, not a torn tail.
    pub(crate) damaged: bool,
}

/// Reads a segment file from its beginning.
///
/// With `acknowledged` known (from the next segment's header) nothing beyond it is looked at.
pub(crate) fn scan(bytes: &[u8], sequence: Sequence, acknowledged: Option<u64>) -> Scan {
    let end = acknowledged.map_or(bytes.len(), |end| to_usize(end).min(bytes.len()));
    let header = Header::decode(bytes).filter(|header| header.sequence == sequence);
    let bytes = &bytes[..end];
    let mut at = HEADER_BYTES.min(end);
    let mut records = Vec::new();
    while let Found::Frame(record) = frame_at(bytes, at, 0, sequence) {
        at = record.end;
        records.push(record);
    }
    let valid_bytes = at as u64;
    let short = acknowledged.is_some_and(|acknowledged| valid_bytes < acknowledged);
    // The header is on disk before anything behind it is acknowledged.
    let headless = header.is_none() && !records.is_empty();
    let damaged = short || headless || acknowledges_more(bytes, at, sequence);
    Scan { header, records, valid_bytes, damaged }
}

/// Whether a frame somewhere behind `end` was written when more than `end` bytes were on disk.
fn acknowledges_more(bytes: &[u8], end: usize, sequence: Sequence) -> bool {
    // A frame's place is unknown once one before it is unreadable, so every byte is looked at. Few have a head behind
    // them that could say so, and only for these the checksum is computed.
    let says_so = |at: &usize| {
        let head = bytes.get(at + 8..at + FRAME_HEAD_BYTES);
        head.is_some_and(|durable| (end as u64 + 1..=*at as u64).contains(&u64_at(durable, 0)))
    };
    (end..bytes.len()).filter(says_so).any(|at| matches!(frame_at(bytes, at, 0, sequence), Found::Frame(_)))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut array = [0; 4];
    array.copy_from_slice(&bytes[at..at + 4]);
    u32::from_be_bytes(array)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut array = [0; 8];
    array.copy_from_slice(&bytes[at..at + 8]);
    u64::from_be_bytes(array)
}

/// Offsets in a file that fits into memory.
pub(crate) fn to_usize(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::request::{IdempotencyKey, Identity, ProducerSequence};
    use crate::spool::record::{self, decode, encode};
    use crate::submission::{Format, Limits, OnBadEvent, Submission};

    /// A request as the HTTP API takes it, with JSON and without options.
    fn submission(body: &'static [u8], identity: Identity) -> Submission {
        let limits = Limits { request_events_max: 10, event_bytes_max: 1000, encrypted_fields: None };
        let parsed =
            Submission::parse(Bytes::from_static(body), Format::Json, &limits, OnBadEvent::RefuseAll)
                .unwrap();
        parsed.submission.unwrap().identified(identity, &[1, 0, 0]).unwrap()
    }

    /// A segment as two group commits write it.
    fn segment(groups: &[&[&[u8]]]) -> Vec<u8> {
        let mut bytes = Header { sequence: Sequence(7), previous_bytes: 99 }.encode().to_vec();
        for group in groups {
            let durable = if bytes.len() == HEADER_BYTES { 0 } else { bytes.len() as u64 };
            for record in *group {
                put_frame(&mut bytes, 0, Sequence(7), durable, record);
            }
        }
        bytes
    }

    fn contents<'a>(bytes: &'a [u8], scan: &Scan) -> Vec<&'a [u8]> {
        scan.records.iter().map(|range| &bytes[range.clone()]).collect()
    }

    #[test]
    fn file_names_lead_back_to_their_numbers() {
        let sequence = Sequence(0xa5);
        assert_eq!(sequence.file_name(), "00000000000000a5.spool");
        for name in [sequence.file_name(), sequence.corrupt_name(), sequence.rejected_name(32)] {
            assert_eq!(Sequence::of_any(&name), Some(sequence));
        }
        assert_eq!(Sequence::of_segment(&sequence.file_name()), Some(sequence));
        for name in [sequence.corrupt_name().as_str(), "lock", "00000000000000A5.spool", "a5.spool", ""] {
            assert_eq!(Sequence::of_segment(name), None, "{name}");
        }
    }

    #[test]
    fn the_documented_example_is_read() {
        let page = include_str!("../../../../docs/formats/spool.md");
        let hex: String = page
            .lines()
            .skip_while(|line| *line != "```hex")
            .skip(1)
            .take_while(|line| *line != "```")
            .flat_map(|line| line.split_whitespace())
            .collect();
        let bytes: Vec<u8> =
            (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
        let key = Identity::Key(IdempotencyKey::new("order-17").unwrap());
        let producer = Identity::Producer(ProducerSequence::new("till-3", 2, 41).unwrap());
        let expected = [
            (1_769_860_800_123, submission(br#"{"type":"a","timestamp":1}"#, key)),
            (
                1_769_860_800_456,
                submission(br#"[{"type":"a","timestamp":2}, {"type":"b","timestamp":3}]"#, producer),
            ),
        ];
        let records = expected.each_ref().map(|(admitted_ms, submission)| encode(*admitted_ms, submission));
        let written = segment(&[&[&records[0]], &[&records[1]]]);
        if bytes != written {
            let hex: String = written.iter().map(|byte| format!("{byte:02x}")).collect();
            let lines: Vec<&str> =
                (0..hex.len()).step_by(96).map(|at| &hex[at..hex.len().min(at + 96)]).collect();
            panic!("the example is not what is written:\n{}", lines.join("\n"));
        }
        let found = scan(&bytes, Sequence(7), None);
        assert_eq!(found.header, Some(Header { sequence: Sequence(7), previous_bytes: 99 }));
        assert!(!found.damaged);
        for (record, (admitted_ms, submission)) in contents(&bytes, &found).into_iter().zip(&expected) {
            let restored = decode(Bytes::copy_from_slice(record)).unwrap();
            assert_eq!(record::admitted_ms(record), *admitted_ms);
            assert_eq!(restored.identity(), submission.identity());
            let events = |submission: &Submission| -> Vec<Vec<u8>> {
                submission.events().map(|event| event.payload.to_vec()).collect()
            };
            assert_eq!(events(&restored), events(submission));
        }
    }

    #[test]
    fn a_torn_tail_is_no_damage_and_a_hole_before_acknowledged_data_is() {
        let whole = segment(&[&[b"one"], &[b"two", b"three"]]);
        let first = HEADER_BYTES + FRAME_HEAD_BYTES + 3;
        // The second group is torn in its first frame while its second arrived: neither was acknowledged.
        let mut torn = whole.clone();
        torn[first + FRAME_HEAD_BYTES] ^= 1;
        let found = scan(&torn, Sequence(7), None);
        assert_eq!((contents(&torn, &found), found.damaged), (vec![&b"one"[..]], false));
        // The next segment knows better.
        assert!(scan(&torn, Sequence(7), Some(whole.len() as u64)).damaged);
        // A record before an acknowledged one is lost.
        let mut holed = whole.clone();
        holed[HEADER_BYTES + FRAME_HEAD_BYTES] ^= 1;
        let found = scan(&holed, Sequence(7), None);
        assert_eq!((contents(&holed, &found), found.damaged), (vec![], true));
        // What lies behind the acknowledged part is not looked at.
        let found = scan(&whole, Sequence(7), Some(first as u64));
        assert_eq!((contents(&whole, &found), found.damaged), (vec![&b"one"[..]], false));
        // Frames are valid in their own segment only.
        assert!(scan(&whole, Sequence(8), None).records.is_empty());
    }

    proptest! {
        #[test]
        fn a_changed_bit_or_a_cut_never_gives_another_record(
            records in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 1..8),
            bit in any::<proptest::sample::Index>(),
            cut in any::<proptest::sample::Index>(),
        ) {
            let groups: Vec<&[u8]> = records.iter().map(Vec::as_slice).collect();
            let groups: Vec<&[&[u8]]> = groups.chunks(2).collect();
            let whole = segment(&groups);
            let originals = contents(&whole, &scan(&whole, Sequence(7), None)).len();
            prop_assert_eq!(originals, records.len());

            let mut changed = whole.clone();
            let bit = bit.index(whole.len() * 8);
            changed[bit / 8] ^= 1 << (bit % 8);
            let found = scan(&changed, Sequence(7), None);
            prop_assert!(found.header.is_none() || bit / 8 >= HEADER_BYTES);
            let read = contents(&changed, &found);
            prop_assert!(read.len() < records.len() || bit / 8 < HEADER_BYTES);
            prop_assert!(read.iter().zip(&records).all(|(read, written)| *read == written.as_slice()));

            let cut = cut.index(whole.len());
            let found = scan(&whole[..cut], Sequence(7), None);
            prop_assert!(!found.damaged);
            let read = contents(&whole, &found);
            prop_assert!(read.iter().zip(&records).all(|(read, written)| *read == written.as_slice()));
        }
    }
}
