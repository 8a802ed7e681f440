//! NumPy's `.npz`: a zip archive of `.npy` files, as far as one-dimensional arrays of bytes need it.
//!
//! Read from the central directory, as zip readers must; stored and deflated entries, with zip64 sizes and offsets.
//! Nothing is believed before it is checked: ranges, overlaps, duplicate names, sizes before memory is taken, CRC-32.
//! Formats: PKWARE's APPNOTE 6.3 (4.3.7, 4.3.12, 4.3.14 to 4.3.16, 4.5.3); NumPy's `numpy.lib.format`.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    ops::Range,
};

use flate2::{Compression, Crc, read::DeflateDecoder, write::DeflateEncoder};

const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const END_64: u32 = 0x0606_4b50;
const LOCATOR_64: u32 = 0x0706_4b50;
const END_BYTES: usize = 22;
/// Bytes of the longest `.npy` header that is read.
const LONGEST_HEADER: usize = 4096;
/// The date of entries, that of files without one: 1 January 1980.
const DATE: u16 = 0x0021;

/// The kind of the extra field that aligns data, as `torch.save` has it (`FB`).
const PADDING: u16 = 0x4246;

/// Why a `.npz` file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum NpzError {
    /// The archive is no zip file, or a malformed one.
    #[error("not a readable zip archive: {0}")]
    Archive(&'static str),
    /// An entry is malformed.
    #[error("entry `{name}` of the zip archive {problem}")]
    Entry {
        /// Its name.
        name: String,
        /// What is wrong.
        problem: String,
    },
    /// There is no such entry.
    #[error("the zip archive has no entry `{name}`")]
    Missing {
        /// The name asked for.
        name: String,
    },
    /// It cannot be written.
    #[error("writing the zip archive: {0}")]
    Write(#[from] std::io::Error),
}

/// Where an entry lies.
#[derive(Debug, Clone)]
struct Entry {
    deflated: bool,
    crc: u32,
    bytes: u64,
    /// Its header and its data.
    place: Range<usize>,
    data: Range<usize>,
}

/// An archive in memory.
#[derive(Debug)]
pub struct Archive<'a> {
    bytes: &'a [u8],
    entries: BTreeMap<String, Entry>,
}

/// Little-endian numbers at a place; none beyond the end.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u16(&self, at: usize) -> Option<u16> {
        self.0.get(at..)?.first_chunk().map(|bytes| u16::from_le_bytes(*bytes))
    }

    fn u32(&self, at: usize) -> Option<u32> {
        self.0.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
    }

    fn u64(&self, at: usize) -> Option<u64> {
        self.0.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
    }
}

impl<'a> Archive<'a> {
    /// Reads the directory.
    ///
    /// # Errors
    /// [`NpzError::Archive`], [`NpzError::Entry`].
    pub fn open(bytes: &'a [u8]) -> Result<Self, NpzError> {
        let (count, directory) = directory(bytes)?;
        let mut archive = Self { bytes, entries: BTreeMap::new() };
        let mut at = directory.start;
        for _ in 0..count {
            let cut = NpzError::Archive("its directory is cut short");
            let (name, entry, next) = archive.entry(&directory, at).ok_or(cut)??;
            if archive.entries.insert(name.clone(), entry).is_some() {
                return Err(NpzError::Entry { name, problem: "is there twice".to_owned() });
            }
            at = next;
        }
        if at != directory.end {
            return Err(NpzError::Archive("its directory holds more than its entries"));
        }
        let mut places: Vec<&Range<usize>> = archive.entries.values().map(|entry| &entry.place).collect();
        places.sort_by_key(|place| place.start);
        if places.windows(2).any(|two| two[0].end > two[1].start) {
            return Err(NpzError::Archive("its entries overlap"));
        }
        Ok(archive)
    }

    /// One entry of the directory, and where the next one begins; none where the directory ends before.
    fn entry(&self, directory: &Range<usize>, at: usize) -> Option<Result<(String, Entry, usize), NpzError>> {
        let fields = Fields(self.bytes.get(at..directory.end)?);
        let signature = fields.u32(0)?;
        let (flags, method, crc) = (fields.u16(8)?, fields.u16(10)?, fields.u32(16)?);
        let lengths = [fields.u16(28)?, fields.u16(30)?, fields.u16(32)?].map(usize::from);
        let name = fields.0.get(46..46 + lengths[0])?;
        let extra = fields.0.get(46 + lengths[0]..46 + lengths[0] + lengths[1])?;
        let next = at + 46 + lengths.iter().sum::<usize>();
        if next > directory.end {
            return None;
        }
        let mut sizes = [fields.u32(24)?, fields.u32(20)?, fields.u32(42)?].map(u64::from);
        let name = String::from_utf8_lossy(name).into_owned();
        let refused = |problem: &str| Some(Err(NpzError::Entry { name: name.clone(), problem: problem.to_owned() }));
        if signature != CENTRAL {
            return Some(Err(NpzError::Archive("its directory is malformed")));
        }
        if name.contains('\u{fffd}') {
            return refused("has a name that is not UTF-8");
        }
        if flags & 1 != 0 {
            return refused("is encrypted");
        }
        if !matches!(method, 0 | 8) {
            return refused("is neither stored nor deflated");
        }
        if sizes.contains(&u64::from(u32::MAX)) && !large_sizes(extra, &mut sizes) {
            return refused("lacks its 64-bit sizes");
        }
        let [bytes, stored, offset] = sizes;
        let Some((place, data)) = self.local(directory.start, &name, stored, offset) else {
            return refused("lies outside of the archive, or its two headers differ");
        };
        if method == 0 && stored != bytes {
            return refused("is stored but has two sizes");
        }
        Some(Ok((name, Entry { deflated: method == 8, crc, bytes, place, data }, next)))
    }

    /// The place of an entry by its own header, and that of its data, before the directory.
    fn local(&self, end: usize, name: &str, stored: u64, offset: u64) -> Option<(Range<usize>, Range<usize>)> {
        let (offset, stored) = (usize::try_from(offset).ok()?, usize::try_from(stored).ok()?);
        let fields = Fields(self.bytes.get(offset..end)?);
        let lengths = [fields.u16(26)?, fields.u16(28)?].map(usize::from);
        let same = fields.u32(0)? == LOCAL && fields.0.get(30..30 + lengths[0])? == name.as_bytes();
        let first = 30 + lengths[0] + lengths[1];
        let last = first.checked_add(stored).filter(|last| same && *last <= fields.0.len())?;
        Some((offset..offset + last, offset + first..offset + last))
    }

    /// The names of all entries, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The bytes of an entry that is not compressed, as they lie in the archive.
    ///
    /// # Errors
    /// [`NpzError::Missing`]; [`NpzError::Entry`] for a compressed or damaged one.
    pub fn stored(&self, name: &str) -> Result<&'a [u8], NpzError> {
        let entry = self.entries.get(name).ok_or_else(|| NpzError::Missing { name: name.to_owned() })?;
        let refused = |problem: &str| NpzError::Entry { name: name.to_owned(), problem: problem.to_owned() };
        if entry.deflated {
            return Err(refused("is compressed, which its writer never does"));
        }
        let bytes: &'a [u8] = &self.bytes[entry.data.clone()];
        let mut crc = Crc::new();
        crc.update(bytes);
        if crc.sum() == entry.crc { Ok(bytes) } else { Err(refused("is damaged: its CRC-32 is another one")) }
    }

    /// Whether there is an entry of this name.
    pub fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The bytes of an entry that is a one-dimensional array of `count` bytes.
    ///
    /// # Errors
    /// [`NpzError::Missing`]; [`NpzError::Entry`] for any other array, before memory is taken for it.
    pub fn bytes_of(&self, name: &str, count: usize) -> Result<Vec<u8>, NpzError> {
        let entry = self.entries.get(name).ok_or_else(|| NpzError::Missing { name: name.to_owned() })?;
        let refused = |problem: String| NpzError::Entry { name: name.to_owned(), problem };
        let most = (count as u64).saturating_add(LONGEST_HEADER as u64);
        if entry.bytes > most || entry.bytes < count as u64 {
            return Err(refused(format!("has {} bytes where an array of {count} was expected", entry.bytes)));
        }
        let stored = &self.bytes[entry.data.clone()];
        let mut content = Vec::new();
        if entry.deflated {
            let limit = entry.bytes + 1;
            let read = DeflateDecoder::new(stored).take(limit).read_to_end(&mut content);
            read.map_err(|error| refused(format!("cannot be inflated: {error}")))?;
        } else {
            content.extend_from_slice(stored);
        }
        let mut crc = Crc::new();
        crc.update(&content);
        if content.len() as u64 != entry.bytes || crc.sum() != entry.crc {
            return Err(refused("is damaged: its size or CRC-32 is not that of the directory".to_owned()));
        }
        let header = npy_header(&content).ok_or_else(|| refused("is no .npy file".to_owned()))?;
        let text = std::str::from_utf8(&content[header.clone()]).unwrap_or_default();
        let value = |key: &str, ends: char| {
            let (_, rest) = text.split_once(&format!("'{key}':"))?;
            rest.split_once(ends).map(|(value, _)| value.trim())
        };
        let (kind, order, shape) = (value("descr", ','), value("fortran_order", ','), value("shape", ')'));
        let shape_expected = format!("({count},");
        if kind != Some("'|u1'") || order != Some("False") || shape != Some(&shape_expected) {
            let problem = format!("is `{}`, expected `|u1` of shape ({count},)", text.trim_end());
            return Err(refused(problem));
        }
        if content.len() - header.end != count {
            return Err(refused(format!("holds {} bytes of {count}", content.len() - header.end)));
        }
        content.drain(..header.end);
        Ok(content)
    }
}

/// Sizes and offset that do not fit 32 bits, from the extra field that has them, in this order.
fn large_sizes(mut extra: &[u8], sizes: &mut [u64; 3]) -> bool {
    while let (Some(kind), Some(length)) = (Fields(extra).u16(0), Fields(extra).u16(2)) {
        let Some(field) = extra.get(4..4 + usize::from(length)) else { return false };
        if kind == 1 {
            let mut at = 0;
            for size in sizes.iter_mut().filter(|size| **size == u64::from(u32::MAX)) {
                let Some(large) = Fields(field).u64(at) else { return false };
                *size = large;
                at += 8;
            }
            return true;
        }
        extra = &extra[4 + usize::from(length)..];
    }
    false
}

/// The number of entries and the place of the directory.
fn directory(bytes: &[u8]) -> Result<(u64, Range<usize>), NpzError> {
    let none = NpzError::Archive("it does not end as a zip file does");
    let last = bytes.len().checked_sub(END_BYTES).ok_or(NpzError::Archive("it is too short"))?;
    let first = last.saturating_sub(usize::from(u16::MAX));
    let is_end = |at: &usize| {
        let fields = Fields(&bytes[*at..]);
        let comment = fields.u16(20).map(usize::from);
        fields.u32(0) == Some(END) && comment == Some(bytes.len() - at - END_BYTES)
    };
    let end = (first..=last).rev().find(is_end).ok_or(none)?;
    let fields = Fields(&bytes[end..]);
    let numbers = (|| Some((fields.u16(4)?, fields.u16(10)?, fields.u32(12)?, fields.u32(16)?)))();
    let (disk, count, size, offset) = numbers.ok_or(NpzError::Archive("it is cut short"))?;
    let (mut count, mut size, mut offset) = (u64::from(count), u64::from(size), u64::from(offset));
    let mut limit = end;
    if count == u64::from(u16::MAX) || size == u64::from(u32::MAX) || offset == u64::from(u32::MAX) {
        let large = (|| {
            let locator = Fields(bytes.get(end.checked_sub(20)?..end)?);
            let at = usize::try_from(locator.u64(8)?).ok()?;
            let fields = Fields(bytes.get(at..end - 20)?);
            let good = locator.u32(0)? == LOCATOR_64 && fields.u32(0)? == END_64;
            good.then_some((at, fields.u64(32)?, fields.u64(40)?, fields.u64(48)?))
        })();
        (limit, count, size, offset) = large.ok_or(NpzError::Archive("its 64-bit end is malformed"))?;
    }
    let outside = NpzError::Archive("its directory lies outside of it");
    let start = usize::try_from(offset).ok().filter(|start| *start <= limit);
    let end = start.and_then(|start| start.checked_add(usize::try_from(size).ok()?)).filter(|end| *end <= limit);
    let (Some(start), Some(end)) = (start, end) else { return Err(outside) };
    if disk != 0 || count > size / 46 {
        return Err(NpzError::Archive("its end tells of parts that are not there"));
    }
    Ok((count, start..end))
}

/// Where the header's text lies.
fn npy_header(content: &[u8]) -> Option<Range<usize>> {
    let version = content.strip_prefix(b"\x93NUMPY")?;
    let (first, length) = match version.first()? {
        1 => (10, usize::from(Fields(content).u16(8)?)),
        2 | 3 => (12, usize::try_from(Fields(content).u32(8)?).ok()?),
        _ => return None,
    };
    let last = first + length.min(LONGEST_HEADER);
    (length <= LONGEST_HEADER && last <= content.len()).then_some(first..last)
}

/// Writes an archive entry by entry: one-dimensional arrays of bytes, deflated, or anything as it is.
pub struct Writer<W: Write> {
    out: W,
    offset: u64,
    directory: Vec<u8>,
    count: u64,
}

impl<W: Write> Writer<W> {
    /// An archive without entries.
    pub fn new(out: W) -> Self {
        Self { out, offset: 0, directory: Vec::new(), count: 0 }
    }

    /// Adds one array.
    ///
    /// # Errors
    /// [`NpzError::Write`]; [`NpzError::Entry`] for one of 4 GiB and more, or too long a name.
    pub fn add(&mut self, name: &str, bytes: &[u8]) -> Result<(), NpzError> {
        let mut header = format!("{{'descr': '|u1', 'fortran_order': False, 'shape': ({},), }}", bytes.len());
        // Magic, version, length and text make a multiple of 64 bytes, and the text ends with a line feed.
        let padded = (10 + header.len() + 1).next_multiple_of(64) - 10;
        header.extend(std::iter::repeat_n(' ', padded - 1 - header.len()));
        header.push('\n');
        let mut content = b"\x93NUMPY\x01\x00".to_vec();
        content.extend((padded as u16).to_le_bytes());
        content.extend(header.as_bytes());
        content.extend(bytes);
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(&content)?;
        let deflated = encoder.finish()?;
        self.entry(name, &content, Some(&deflated), 1)
    }

    /// Adds an entry as it is, uncompressed, its data at a multiple of `alignment` bytes from the archive's beginning.
    ///
    /// # Errors
    /// As [`Writer::add`].
    pub fn add_stored(&mut self, name: &str, bytes: &[u8], alignment: u64) -> Result<(), NpzError> {
        self.entry(name, bytes, None, alignment)
    }

    fn entry(&mut self, name: &str, content: &[u8], deflated: Option<&[u8]>, alignment: u64) -> Result<(), NpzError> {
        let mut crc = Crc::new();
        crc.update(content);
        let data = deflated.unwrap_or(content);
        let refused = |problem: &str| NpzError::Entry { name: name.to_owned(), problem: problem.to_owned() };
        let size = |bytes: usize| u32::try_from(bytes).ok().filter(|size| *size < u32::MAX);
        let sizes = size(data.len()).zip(size(content.len()));
        let (stored, size) = sizes.ok_or_else(|| refused("is of 4 GiB or more"))?;
        let length = u16::try_from(name.len()).map_err(|_| refused("has too long a name"))?;
        let method = if deflated.is_some() { 8 } else { 0 };

        // Version 2.0 of the format; names are UTF-8.
        let mut common = Vec::new();
        common.extend([20, 0x0800, method, 0, DATE].iter().flat_map(|field: &u16| field.to_le_bytes()));
        common.extend([crc.sum(), stored, size].iter().flat_map(|field| field.to_le_bytes()));
        common.extend(length.to_le_bytes());

        let mut local = LOCAL.to_le_bytes().to_vec();
        local.extend(&common);
        // What is left to the next multiple is an extra field of no meaning, 4 bytes at least.
        let bare = self.offset + (local.len() + 2 + name.len()) as u64;
        let padding = match alignment.saturating_sub(1) & bare.wrapping_neg() {
            padding @ 1..4 => padding + alignment,
            padding => padding,
        } as u16;
        local.extend(padding.to_le_bytes());
        local.extend(name.as_bytes());
        if padding > 0 {
            local.extend(PADDING.to_le_bytes());
            local.extend((padding - 4).to_le_bytes());
            local.extend(std::iter::repeat_n(0, usize::from(padding) - 4));
        }
        self.out.write_all(&local)?;
        self.out.write_all(data)?;

        let large = self.offset >= u64::from(u32::MAX);
        let extra = if large { 12_u16 } else { 0 };
        let directory = &mut self.directory;
        directory.extend(CENTRAL.to_le_bytes());
        directory.extend(if large { 45_u16 } else { 20 }.to_le_bytes());
        directory.extend(&common);
        directory.extend(extra.to_le_bytes());
        // No comment, first disk, no attributes.
        directory.extend([0; 10]);
        directory.extend(u32::try_from(self.offset).unwrap_or(u32::MAX).to_le_bytes());
        directory.extend(name.as_bytes());
        if large {
            directory.extend([1, 0, 8, 0]);
            directory.extend(self.offset.to_le_bytes());
        }
        self.offset += (local.len() + data.len()) as u64;
        self.count += 1;
        Ok(())
    }

    /// Writes the directory and gives back what was written to.
    ///
    /// # Errors
    /// [`NpzError::Write`].
    pub fn finish(mut self) -> Result<W, NpzError> {
        let size = self.directory.len() as u64;
        let mut end = Vec::new();
        let large = self.count >= u64::from(u16::MAX) || size.max(self.offset) >= u64::from(u32::MAX);
        if large {
            end.extend(END_64.to_le_bytes());
            end.extend(44_u64.to_le_bytes());
            end.extend([45, 0, 45, 0]);
            end.extend([0; 8]);
            end.extend([self.count, self.count, size, self.offset].iter().flat_map(|field| field.to_le_bytes()));
            end.extend(LOCATOR_64.to_le_bytes());
            end.extend([0; 4]);
            end.extend((self.offset + size).to_le_bytes());
            end.extend(1_u32.to_le_bytes());
        }
        let count = if large { u16::MAX } else { self.count as u16 };
        end.extend(END.to_le_bytes());
        end.extend([0; 4]);
        end.extend([count.to_le_bytes(), count.to_le_bytes()].concat());
        let short = |field: u64| if large { u32::MAX } else { field as u32 };
        end.extend(short(size).to_le_bytes());
        end.extend(short(self.offset).to_le_bytes());
        end.extend([0; 2]);
        self.out.write_all(&self.directory)?;
        self.out.write_all(&end)?;
        self.out.flush()?;
        Ok(self.out)
    }
}
