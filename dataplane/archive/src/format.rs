//! The Parquet files: their schema, and row groups to and from bytes.
//!
//! Owns the format (`docs/formats/archive.md`). Pure. Columns are written one by one with the low-level API, so that a
//! row group costs its own bytes and no second copy of them in another layout. Limits: [`GROUP_ROWS_MAX`], [`GROUP_BYTES_MAX`].

use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{Compression, ZstdLevel};
use parquet::column::reader::{get_column_reader, get_typed_column_reader};
use parquet::data_type::{
    ByteArray, ByteArrayType, DataType, FixedLenByteArray, FixedLenByteArrayType, Int64Type,
};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::{KeyValue, ParquetMetaData, RowGroupMetaData};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::serialized_reader::SerializedPageReader;
use parquet::file::statistics::Statistics;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};

use parquet::schema::parser::parse_message_type;
use parquet::schema::types::ColumnPath;
use uuid::Uuid;

use crate::Error;
use crate::row::{Content, Row};

/// Rows of a row group, which is what a read of one event has to fetch.
pub const GROUP_ROWS_MAX: usize = 8192;
/// Bytes of rows after which a row group ends; one row more, of at most 1 MiB, may follow.
pub const GROUP_BYTES_MAX: usize = 8 << 20;
/// Bytes of a row group in a file above which it was not written by this software: hashes do not compress, and nothing grows.
const GROUP_STORED_BYTES_MAX: i64 = 4 * (GROUP_BYTES_MAX as i64);

/// Version of the format, in the file's metadata under `certeus.format`.
const VERSION: &str = "1";
/// Written into each file instead of the library's version, so that equal rows give equal bytes.
const CREATED_BY: &str = "certeus-archive version 1 (build 1)";

const SCHEMA: &str = "message certeus_events {
    required int64 index;
    required fixed_len_byte_array(16) id (UUID);
    required int64 event_time (TIMESTAMP(MICROS,true));
    required int64 committed_at (TIMESTAMP(MICROS,true));
    required binary type (STRING);
    required fixed_len_byte_array(32) entry;
    optional fixed_len_byte_array(32) salt;
    optional binary head;
    optional binary payload;
}";

/// Places of the columns in the schema.
const INDEX: usize = 0;
const ID: usize = 1;
const TIME: usize = 2;
const COMMITTED: usize = 3;
const KIND: usize = 4;
const ENTRY: usize = 5;
const SALT: usize = 6;
const HEAD: usize = 7;
const PAYLOAD: usize = 8;
const COLUMNS: usize = 9;

/// Encodes row groups; what it has encoded is taken out as it grows.
pub(crate) struct Encoder(SerializedFileWriter<Vec<u8>>);

impl Encoder {
    pub(crate) fn new(ledger: &str) -> ParquetResult<Self> {
        let column = |name: &str| ColumnPath::from(name);
        let pair = |key: &str, value: &str| KeyValue::new(key.to_owned(), value.to_owned());
        let mut properties = WriterProperties::builder()
            .set_created_by(CREATED_BY.to_owned())
            .set_key_value_metadata(Some(vec![
                pair("certeus.format", VERSION),
                pair("certeus.ledger", ledger),
            ]))
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
            .set_statistics_enabled(EnabledStatistics::None)
            .set_offset_index_disabled(true)
            .set_dictionary_enabled(false)
            .set_column_dictionary_enabled(column("type"), true)
            .set_max_row_group_row_count(None);
        for name in ["index", "id", "event_time", "committed_at"] {
            properties = properties.set_column_statistics_enabled(column(name), EnabledStatistics::Chunk);
        }
        let schema = Arc::new(parse_message_type(SCHEMA)?);
        Ok(Self(SerializedFileWriter::new(Vec::new(), schema, Arc::new(properties.build()))?))
    }

    /// Appends a row group.
    pub(crate) fn group(&mut self, rows: &[Row]) -> ParquetResult<()> {
        let mut group = self.0.next_row_group()?;
        let int64 = |value: fn(&Row) -> i64| rows.iter().map(value).collect::<Vec<_>>();
        // An index has 63 bits in the database.
        let indexes = int64(|row| i64::try_from(row.index).unwrap_or(i64::MAX));
        write::<Int64Type>(&mut group, &indexes, None)?;
        let ids: Vec<_> = rows.iter().map(|row| fixed(row.id.as_bytes())).collect();
        write::<FixedLenByteArrayType>(&mut group, &ids, None)?;
        write::<Int64Type>(&mut group, &int64(|row| row.time_micros), None)?;
        write::<Int64Type>(&mut group, &int64(|row| row.committed_micros), None)?;
        let kinds: Vec<_> = rows.iter().map(|row| ByteArray::from(&row.kind[..])).collect();
        write::<ByteArrayType>(&mut group, &kinds, None)?;
        let entries: Vec<_> = rows.iter().map(|row| fixed(&row.entry)).collect();
        write::<FixedLenByteArrayType>(&mut group, &entries, None)?;

        let levels: Vec<i16> = rows.iter().map(|row| i16::from(row.content.is_some())).collect();
        let contents = || rows.iter().filter_map(|row| row.content.as_ref());
        let salts: Vec<_> = contents().map(|content| fixed(&content.salt)).collect();
        write::<FixedLenByteArrayType>(&mut group, &salts, Some(&levels))?;
        let heads: Vec<_> = contents().map(|content| ByteArray::from(&content.head[..])).collect();
        write::<ByteArrayType>(&mut group, &heads, Some(&levels))?;
        let payloads: Vec<_> = contents().map(|content| ByteArray::from(content.payload.clone())).collect();
        write::<ByteArrayType>(&mut group, &payloads, Some(&levels))?;
        group.close()?;
        Ok(())
    }

    /// What was encoded since the last call.
    pub(crate) fn take(&mut self) -> ParquetResult<Vec<u8>> {
        self.0.flush()?;
        Ok(std::mem::take(self.0.inner_mut()))
    }

    /// Ends the file; gives the rest of its bytes.
    pub(crate) fn finish(self) -> ParquetResult<Vec<u8>> {
        self.0.into_inner()
    }
}

fn fixed(bytes: &[u8]) -> FixedLenByteArray {
    ByteArray::from(bytes).into()
}

/// Writes the group's next column.
fn write<T: DataType>(
    group: &mut SerializedRowGroupWriter<'_, Vec<u8>>,
    values: &[T::T],
    levels: Option<&[i16]>,
) -> ParquetResult<()> {
    let missing = || ParquetError::General("the schema has fewer columns".to_owned());
    let mut column = group.next_column()?.ok_or_else(missing)?;
    column.typed::<T>().write_batch(values, levels, None)?;
    column.close()
}

/// A part of a file, at its place.
pub(crate) struct Part {
    pub(crate) start: u64,
    pub(crate) bytes: Bytes,
}

impl Part {
    fn from(&self, start: u64) -> ParquetResult<Bytes> {
        let outside = || ParquetError::EOF("a column lies outside its row group".to_owned());
        let skipped = start.checked_sub(self.start).and_then(|skipped| usize::try_from(skipped).ok());
        let skipped = skipped.filter(|skipped| *skipped <= self.bytes.len()).ok_or_else(outside)?;
        Ok(self.bytes.slice(skipped..))
    }
}

impl Length for Part {
    fn len(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

impl ChunkReader for Part {
    type T = std::io::Cursor<Bytes>;

    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        Ok(std::io::Cursor::new(self.from(start)?))
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        let bytes = self.from(start)?;
        if bytes.len() < length {
            return Err(ParquetError::EOF("a column ends outside its row group".to_owned()));
        }
        Ok(bytes.slice(..length))
    }
}

/// Whether a file is of this format.
pub(crate) fn check(metadata: &ParquetMetaData) -> Result<(), Error> {
    let pairs = metadata.file_metadata().key_value_metadata();
    let version = pairs.into_iter().flatten().find(|pair| pair.key == "certeus.format");
    if version.and_then(|pair| pair.value.as_deref()) != Some(VERSION) {
        return Err(Error::Malformed("it has another version of the format"));
    }
    let schema = parse_message_type(SCHEMA)?;
    if *metadata.file_metadata().schema() != schema {
        return Err(Error::Malformed("it has other columns"));
    }
    for group in metadata.row_groups() {
        let rows = usize::try_from(group.num_rows()).is_ok_and(|rows| rows <= GROUP_ROWS_MAX);
        if !rows || group.num_columns() != COLUMNS || group.total_byte_size() > GROUP_STORED_BYTES_MAX {
            return Err(Error::Malformed("it has a row group beyond the bounds"));
        }
    }
    Ok(())
}

/// Where a row group lies in its file.
pub(crate) fn range(group: &RowGroupMetaData) -> Result<std::ops::Range<u64>, Error> {
    let ranges = || group.columns().iter().map(parquet::file::metadata::ColumnChunkMetaData::byte_range);
    let start = ranges().map(|(start, _)| start).min().unwrap_or_default();
    let end = ranges().map(|(start, length)| start.saturating_add(length)).max().unwrap_or_default();
    if end - start > GROUP_STORED_BYTES_MAX.unsigned_abs() {
        return Err(Error::Malformed("it has a row group beyond the bounds"));
    }
    Ok(start..end)
}

/// The row group that has an id, if any has.
pub(crate) fn group_of(metadata: &ParquetMetaData, id: Uuid) -> Option<usize> {
    metadata.row_groups().iter().position(|group| match group.column(ID).statistics() {
        Some(Statistics::FixedLenByteArray(ids)) => match (ids.min_bytes_opt(), ids.max_bytes_opt()) {
            (Some(min), Some(max)) => min <= &id.as_bytes()[..] && &id.as_bytes()[..] <= max,
            (None, _) | (_, None) => true,
        },
        // Only this software's files come here, and they have the bounds; without them every group may have it.
        _ => true,
    })
}

/// Decodes a row group.
pub(crate) fn decode(metadata: &ParquetMetaData, group: usize, part: Part) -> Result<Vec<Row>, Error> {
    let part = Arc::new(part);
    let group = metadata.row_group(group);
    let (indexes, _) = read::<Int64Type>(&part, metadata, group, INDEX)?;
    let (ids, _) = read::<FixedLenByteArrayType>(&part, metadata, group, ID)?;
    let (times, _) = read::<Int64Type>(&part, metadata, group, TIME)?;
    let (committed, _) = read::<Int64Type>(&part, metadata, group, COMMITTED)?;
    let (kinds, _) = read::<ByteArrayType>(&part, metadata, group, KIND)?;
    let (entries, _) = read::<FixedLenByteArrayType>(&part, metadata, group, ENTRY)?;
    let (salts, salt_levels) = read::<FixedLenByteArrayType>(&part, metadata, group, SALT)?;
    let (heads, head_levels) = read::<ByteArrayType>(&part, metadata, group, HEAD)?;
    let (payloads, levels) = read::<ByteArrayType>(&part, metadata, group, PAYLOAD)?;
    if salt_levels != levels || head_levels != levels {
        return Err(Error::Malformed("a row has a part of its content only"));
    }
    let mut contents = salts.iter().zip(heads).zip(payloads);
    let rows = ids.iter().zip(&levels).enumerate().map(|(row, (id, level))| {
        let content = (*level == 1).then(|| contents.next()).flatten();
        let content = content.map(|((salt, head), payload)| {
            Ok::<_, Error>(Content {
                payload: Bytes::copy_from_slice(payload.data()),
                head: head.data().to_vec(),
                salt: array(salt.data())?,
            })
        });
        Ok(Row {
            index: u64::try_from(indexes[row]).map_err(|_| Error::Malformed("an index is negative"))?,
            id: Uuid::from_bytes(array(id.data())?),
            time_micros: times[row],
            committed_micros: committed[row],
            kind: kinds[row].as_utf8().map_err(|_| Error::Malformed("a type is not UTF-8"))?.to_owned(),
            entry: array(entries[row].data())?,
            content: content.transpose()?,
        })
    });
    rows.collect()
}

fn array<const N: usize>(bytes: &[u8]) -> Result<[u8; N], Error> {
    bytes.try_into().map_err(|_| Error::Malformed("a value has another length"))
}

/// A column's values that are not null, and for each row whether it has one.
fn read<T: DataType>(
    part: &Arc<Part>,
    metadata: &ParquetMetaData,
    group: &RowGroupMetaData,
    column: usize,
) -> Result<(Vec<T::T>, Vec<i16>), Error> {
    let rows = usize::try_from(group.num_rows()).map_err(|_| Error::Malformed("it has no rows"))?;
    let pages = SerializedPageReader::new(Arc::clone(part), group.column(column), rows, None)?;
    let descriptor = metadata.file_metadata().schema_descr().column(column);
    let optional = descriptor.max_def_level() > 0;
    let mut reader = get_typed_column_reader::<T>(get_column_reader(descriptor, Box::new(pages)));
    let (mut values, mut levels, mut found) = (Vec::with_capacity(rows), Vec::new(), 0);
    while found < rows {
        let (records, _, _) = reader.read_records(rows - found, Some(&mut levels), None, &mut values)?;
        if records == 0 {
            return Err(Error::Malformed("a column ends before the others"));
        }
        found += records;
    }
    if !optional {
        levels = vec![1; rows];
    }
    let present = levels.iter().filter(|level| **level == 1).count();
    if levels.len() != rows || values.len() != present {
        return Err(Error::Malformed("a column has another number of values"));
    }
    Ok((values, levels))
}
