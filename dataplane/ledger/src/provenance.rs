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

/// The producer's place of the event at `position`; `None` for an event without.
pub(crate) fn find(column: Option<&[u8]>, position: u32) -> Result<Option<ProducerPlace<'_>>, Malformed> {
    let mut rest = column.unwrap_or_default();
    while !rest.is_empty() {
        let first = u32::from_be_bytes(take(&mut rest)?);
        let count = u32::from_be_bytes(take(&mut rest)?);
        let epoch = u32::from_be_bytes(take(&mut rest)?);
        let number = u64::from_be_bytes(take(&mut rest)?);
        let [length] = take(&mut rest)?;
        let (id, after) = rest.split_at_checked(length.into()).ok_or(Malformed)?;
        rest = after;
        if let Some(offset) = position.checked_sub(first)
            && offset < count
        {
            let id = std::str::from_utf8(id).ok().filter(|id| is_producer_id(id)).ok_or(Malformed)?;
            let sequence = number.checked_add(offset.into()).ok_or(Malformed)?;
            return Ok(Some(ProducerPlace { id, epoch, sequence }));
        }
    }
    Ok(None)
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
        let found = |position| {
            find(Some(&column), position).unwrap().map(|place| (place.id, place.epoch, place.sequence))
        };
        assert_eq!(
            (0..6).map(found).collect::<Vec<_>>(),
            [None, Some(("a", 7, 100)), Some(("a", 7, 101)), None, Some(("bb", 1, 0)), None,]
        );
        assert_eq!(find(None, 0), Ok(None));
        let border = 4 * 3 + 8 + 1 + 1;
        for end in (1..column.len()).filter(|end| *end != border) {
            assert_eq!(find(Some(&column[..end]), 5), Err(Malformed), "{end}");
        }
    }
}
