//! Which events of a batch came with a producer's sequence: the column `producers` of the batch's row.
//!
//! Owns the column's format (specified in `docs/formats/envelope.md`). Pure. Promises: what is written here is enough to
//! rebuild these events' envelopes for ever, whatever has been forgotten about the requests they came in.
//!
//! Runs in order of position, one after the other:
//! ```text
//! +----------------+-------------+-----------+----------------------+----------------+-------+
//! | first position | event count |   epoch   | first event's number | length of id n |  id   |
//! |      u32       |     u32     |    u32    |         u64          |       u8       |   n   |
//! +----------------+-------------+-----------+----------------------+----------------+-------+
//! ```

use crate::envelope::ProducerPlace;
use crate::request::{ProducerSequence, is_producer_id};

/// Why a stored column cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the producers of a batch are not in their format")]
pub(crate) struct Malformed;

/// Adds `count` events from `position` on, which came with `producer`'s numbers.
pub(crate) fn write(out: &mut Vec<u8>, position: usize, count: usize, producer: &ProducerSequence) {
    // A batch has at most 2^20 events, and an id at most 128 bytes.
    let narrow = |number: usize| u32::try_from(number).expect("a position or number of events in a batch");
    let id = producer.id();
    out.extend_from_slice(&narrow(position).to_be_bytes());
    out.extend_from_slice(&narrow(count).to_be_bytes());
    out.extend_from_slice(&producer.epoch().to_be_bytes());
    out.extend_from_slice(&producer.first().to_be_bytes());
    out.push(u8::try_from(id.len()).expect("a producer's id was checked"));
    out.extend_from_slice(id.as_bytes());
}

/// A batch's column, read: in order of position.
#[derive(Debug, Default)]
pub(crate) struct Runs<'a>(Vec<Run<'a>>);

#[derive(Debug)]
struct Run<'a> {
    first: u32,
    count: u32,
    epoch: u32,
    sequence: u64,
    id: &'a str,
}

impl<'a> Runs<'a> {
    /// Reads a batch's column, NULL included.
    pub(crate) fn read(column: Option<&'a [u8]>) -> Result<Self, Malformed> {
        let mut rest = column.unwrap_or_default();
        let mut runs = Vec::new();
        let mut end = 0;
        while !rest.is_empty() {
            let first = u32::from_be_bytes(take(&mut rest)?);
            let count = u32::from_be_bytes(take(&mut rest)?);
            let epoch = u32::from_be_bytes(take(&mut rest)?);
            let sequence = u64::from_be_bytes(take(&mut rest)?);
            let [length] = take(&mut rest)?;
            let (id, after) = rest.split_at_checked(length.into()).ok_or(Malformed)?;
            rest = after;
            let id = std::str::from_utf8(id).ok().filter(|id| is_producer_id(id)).ok_or(Malformed)?;
            if first < end {
                return Err(Malformed);
            }
            end = first.checked_add(count).ok_or(Malformed)?;
            sequence.checked_add(count.into()).ok_or(Malformed)?;
            runs.push(Run { first, count, epoch, sequence, id });
        }
        Ok(Self(runs))
    }

    /// The producer's place of the event at `position`; `None` for an event without.
    pub(crate) fn find(&self, position: u32) -> Option<ProducerPlace<'a>> {
        let after = self.0.partition_point(|run| run.first <= position);
        let run = self.0.get(after.checked_sub(1)?)?;
        let offset = position - run.first;
        (offset < run.count).then(|| ProducerPlace {
            id: run.id,
            epoch: run.epoch,
            sequence: run.sequence + u64::from(offset),
        })
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], Malformed> {
    let (array, after) = rest.split_first_chunk::<N>().ok_or(Malformed)?;
    *rest = after;
    Ok(*array)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_position_leads_to_its_producer_and_nothing_cut_is_read() {
        let (a, b) =
            (ProducerSequence::new("a", 7, 100).unwrap(), ProducerSequence::new("bb", 1, 0).unwrap());
        let mut column = Vec::new();
        write(&mut column, 1, 2, &a);
        write(&mut column, 4, 1, &b);
        let runs = Runs::read(Some(&column)).unwrap();
        let found = |position| runs.find(position).map(|place| (place.id, place.epoch, place.sequence));
        assert_eq!(
            (0..6).map(found).collect::<Vec<_>>(),
            [None, Some(("a", 7, 100)), Some(("a", 7, 101)), None, Some(("bb", 1, 0)), None,]
        );
        assert!(Runs::read(None).unwrap().find(0).is_none());
        let border = 4 * 3 + 8 + 1 + 1;
        let twice = [&column[..], &column].concat();
        assert_eq!(Runs::read(Some(&twice)).err(), Some(Malformed), "out of order");
        for end in (1..column.len()).filter(|end| *end != border) {
            assert_eq!(Runs::read(Some(&column[..end])).err(), Some(Malformed), "{end}");
        }
    }
}
