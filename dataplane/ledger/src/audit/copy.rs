//! Cuts PostgreSQL's binary COPY format into rows (manual, COPY, "Binary Format").
//!
//! Pure. Copies nothing as long as pieces end where rows end, which is how PostgreSQL sends them; a row that is cut is put
//! together again. Never trusts a length: a stream that is not what it should be is an error, and what is kept of a row that
//! is not complete is bounded by [`ROW_BYTES_MAX`].

/// The largest row that is read: a batch has 2^20 events at most, each with a few numbers of at most 32 bytes.
const ROW_BYTES_MAX: usize = 256 << 20;

const SIGNATURE: &[u8; 11] = b"PGCOPY\n\xff\r\n\0";
/// Signature, flags, and the length of the header's extension.
const HEADER_BYTES: usize = 19;

/// Why a stream is not a binary COPY of so many columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CopyError {
    /// It does not begin as one.
    #[error("the database's COPY does not begin as a binary one")]
    Header,
    /// A row has another number of columns.
    #[error("the database's COPY has {0} columns in a row")]
    Columns(i16),
    /// A field's length is impossible.
    #[error("the database's COPY has a field of {0} bytes")]
    Length(i32),
    /// A row does not end.
    #[error("the database's COPY has a row of more than {ROW_BYTES_MAX} bytes")]
    TooLong,
    /// It ends within a row, or goes on after its end.
    #[error("the database's COPY does not end where it should")]
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Header,
    Rows,
    Ended,
}

/// Rows of `N` columns.
#[derive(Debug)]
pub struct CopyDecoder<const N: usize> {
    place: Place,
    /// Begin of a row whose rest has not come yet.
    carry: Vec<u8>,
}

impl<const N: usize> Default for CopyDecoder<N> {
    fn default() -> Self {
        Self { place: Place::Header, carry: Vec::new() }
    }
}

impl<const N: usize> CopyDecoder<N> {
    /// Takes the next piece and calls `row` for each row that is complete with it. `None` is SQL's NULL.
    ///
    /// # Errors
    /// When the stream is not what it should be, or `row` gives an error; nothing can be read after either.
    pub fn feed<E: From<CopyError>>(
        &mut self,
        piece: &[u8],
        mut row: impl FnMut([Option<&[u8]>; N]) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.carry.is_empty() {
            let used = Self::rows(&mut self.place, piece, &mut row)?;
            self.keep(&piece[used..])?;
        } else {
            let mut bytes = std::mem::take(&mut self.carry);
            bytes.extend_from_slice(piece);
            let used = Self::rows(&mut self.place, &bytes, &mut row)?;
            self.keep(&bytes[used..])?;
        }
        Ok(())
    }

    /// To be called at the end of the stream.
    ///
    /// # Errors
    /// When it has not come to its end.
    pub fn finish(self) -> Result<(), CopyError> {
        if self.place == Place::Ended && self.carry.is_empty() { Ok(()) } else { Err(CopyError::End) }
    }

    fn keep(&mut self, rest: &[u8]) -> Result<(), CopyError> {
        if rest.len() > ROW_BYTES_MAX {
            return Err(CopyError::TooLong);
        }
        self.carry.extend_from_slice(rest);
        Ok(())
    }

    /// Reads what is complete and says how many bytes that was.
    fn rows<E: From<CopyError>>(
        place: &mut Place,
        bytes: &[u8],
        row: &mut impl FnMut([Option<&[u8]>; N]) -> Result<(), E>,
    ) -> Result<usize, E> {
        let mut reader = Reader { bytes, at: 0 };
        if *place == Place::Header {
            let Some(header) = reader.take(HEADER_BYTES) else { return Ok(0) };
            if !header.starts_with(SIGNATURE) || header[SIGNATURE.len()..].iter().any(|byte| *byte != 0) {
                return Err(CopyError::Header.into());
            }
            *place = Place::Rows;
        }
        loop {
            let start = reader.at;
            if *place == Place::Ended {
                return if reader.at == bytes.len() { Ok(start) } else { Err(CopyError::End.into()) };
            }
            match reader.row::<N>()? {
                Some(Read::Row(fields)) => row(fields)?,
                Some(Read::End) => *place = Place::Ended,
                None => return Ok(start),
            }
        }
    }
}

enum Read<'a, const N: usize> {
    Row([Option<&'a [u8]>; N]),
    End,
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let taken = self.bytes.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        Some(taken)
    }

    fn array<const M: usize>(&mut self) -> Option<[u8; M]> {
        self.take(M)?.try_into().ok()
    }

    /// `None` when the row is not complete.
    fn row<const N: usize>(&mut self) -> Result<Option<Read<'a, N>>, CopyError> {
        let Some(columns) = self.array().map(i16::from_be_bytes) else { return Ok(None) };
        if columns == -1 {
            return Ok(Some(Read::End));
        }
        if usize::try_from(columns) != Ok(N) {
            return Err(CopyError::Columns(columns));
        }
        let mut fields = [None; N];
        for field in &mut fields {
            let Some(length) = self.array().map(i32::from_be_bytes) else { return Ok(None) };
            if length == -1 {
                continue;
            }
            let bytes = usize::try_from(length).map_err(|_negative| CopyError::Length(length))?;
            let Some(taken) = self.take(bytes) else { return Ok(None) };
            *field = Some(taken);
        }
        Ok(Some(Read::Row(fields)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Rows = Vec<[Option<Vec<u8>>; 2]>;

    fn encode(rows: &Rows) -> Vec<u8> {
        let mut bytes = [&SIGNATURE[..], &[0; 8]].concat();
        for row in rows {
            bytes.extend(2_i16.to_be_bytes());
            for field in row {
                let length = field.as_ref().map_or(-1, |field| i32::try_from(field.len()).unwrap());
                bytes.extend(length.to_be_bytes());
                bytes.extend(field.iter().flatten());
            }
        }
        bytes.extend((-1_i16).to_be_bytes());
        bytes
    }

    fn decode(pieces: &[&[u8]]) -> Result<Rows, CopyError> {
        let mut rows = Rows::new();
        let mut decoder = CopyDecoder::<2>::default();
        for piece in pieces {
            decoder.feed(piece, |row| {
                rows.push(row.map(|field| field.map(<[u8]>::to_vec)));
                Ok::<(), CopyError>(())
            })?;
        }
        decoder.finish().map(|()| rows)
    }

    proptest! {
        #[test]
        fn rows_come_out_as_they_went_in_wherever_the_stream_is_cut(
            rows in proptest::collection::vec(
                (proptest::option::of(".{0,20}"), proptest::option::of(".{0,20}")), 0..8),
            cuts in proptest::collection::vec(0_usize..400, 0..6),
        ) {
            let rows: Rows = rows.into_iter()
                .map(|(a, b)| [a.map(String::into_bytes), b.map(String::into_bytes)]).collect();
            let bytes = encode(&rows);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut % bytes.len()).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|ends| &bytes[ends[0]..ends[1]]).collect();
            prop_assert_eq!(decode(&pieces), Ok(rows));
            prop_assert_eq!(decode(&[&bytes[..bytes.len() - 1]]), Err(CopyError::End));
        }

        #[test]
        fn noise_is_an_error_and_nothing_worse(mut noise: Vec<u8>, headed: bool) {
            if headed {
                noise.splice(..0, [&SIGNATURE[..], &[0; 8]].concat());
            }
            let _any_answer_will_do = decode(&[&noise]);
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let row = encode(&vec![[None, None]]);
        assert_eq!(decode(&[b"PGCOPY\n\xff\r\n\x01 and so on, and on"]), Err(CopyError::Header));
        let mut columns = row.clone();
        columns[20] = 3;
        assert_eq!(decode(&[&columns]), Err(CopyError::Columns(3)));
        let mut length = row.clone();
        length[24] = 0xFE;
        assert_eq!(decode(&[&length]), Err(CopyError::Length(-2)));
        assert_eq!(decode(&[&row, b"more"]), Err(CopyError::End));
    }
}
