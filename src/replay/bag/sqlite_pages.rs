//! Counts the rows of a cut SQLite file that are whole.
//!
//! SQLite itself cannot say: it takes what is missing of the last page for zeros, so that a row which ends there reads
//! as if it were whole. This walks the pages of one table (sqlite.org/fileformat2.html, sections 1.5 and 1.6) without
//! looking at what they hold.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Deeper than any table: every level has at least two pages for one of the level above.
const MAX_DEPTH: u32 = 64;
/// Where a page's description begins on the first page, behind the file's own.
const FILE_HEADER_BYTES: usize = 100;
const INTERIOR: u8 = 0x05;
const LEAF: u8 = 0x0d;

/// The number of rows, in order of their ids, before the first one that is not whole. `root`: the table's first page.
pub(super) fn whole_rows(path: &Path, root: u32) -> usize {
    let mut rows = 0;
    if let Some(mut pages) = Pages::open(path) {
        let _first_that_is_not_whole = pages.count(root, MAX_DEPTH, &mut rows);
    }
    rows
}

struct Pages {
    file: File,
    page_size: u64,
    /// Bytes of a page that hold content.
    usable: u64,
    /// Pages that are in the file from end to end.
    whole: u64,
    /// Pages of the table seen so far; more than there are means that they form a loop.
    seen: u64,
}

impl Pages {
    fn open(path: &Path) -> Option<Self> {
        let mut file = File::open(path).ok()?;
        let mut header = [0; FILE_HEADER_BYTES];
        file.read_exact(&mut header).ok()?;
        let page_size = page_size(&header)?;
        let usable = page_size.checked_sub(u64::from(header[20])).filter(|&usable| usable >= 480)?;
        let whole = file.metadata().ok()?.len() / page_size;
        Some(Self { file, page_size, usable, whole, seen: 0 })
    }

    /// Adds the rows below page `number`; `None` at the first that is not whole.
    fn count(&mut self, number: u32, depth: u32, rows: &mut usize) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        self.seen += 1;
        if self.seen > self.whole {
            return None;
        }
        let mut page = vec![0; usize::try_from(self.page_size).ok()?];
        self.read(number, &mut page)?;
        let head = page.get(if number == 1 { FILE_HEADER_BYTES } else { 0 }..)?;
        let kind = *head.first()?;
        let cells = usize::from(u16_at(head, 3)?);
        let pointers = head.get(if kind == INTERIOR { 12 } else { 8 }..)?;
        for cell in 0..cells {
            let cell = page.get(usize::from(u16_at(pointers, 2 * cell)?)..)?;
            match kind {
                INTERIOR => self.count(u32_at(cell, 0)?, depth, rows)?,
                LEAF => {
                    self.follow(cell)?;
                    *rows += 1;
                }
                _ => return None,
            }
        }
        if kind == INTERIOR { self.count(u32_at(head, 8)?, depth, rows) } else { Some(()) }
    }

    /// Goes through the pages on which a long row continues; `None` if one is missing.
    fn follow(&mut self, cell: &[u8]) -> Option<()> {
        let (length, after_length) = varint(cell)?;
        let (_rowid, payload) = varint(after_length)?;
        let most = self.usable - 35;
        if length <= most {
            return Some(());
        }
        let least = (self.usable - 12) * 32 / 255 - 23;
        let fitting = least + (length - least) % (self.usable - 4);
        let local = if fitting <= most { fitting } else { least };
        let further = (length - local).div_ceil(self.usable - 4);
        if further > self.whole {
            return None;
        }
        let mut next = u32_at(payload, usize::try_from(local).ok()?)?;
        for _ in 0..further {
            let mut link = [0; 4];
            self.read(next, &mut link)?;
            next = u32::from_be_bytes(link);
        }
        Some(())
    }

    /// Reads the beginning of a page that is whole.
    fn read(&mut self, number: u32, bytes: &mut [u8]) -> Option<()> {
        let before = u64::from(number).checked_sub(1).filter(|&before| before < self.whole)?;
        self.file.seek(SeekFrom::Start(before * self.page_size)).ok()?;
        self.file.read_exact(bytes).ok()
    }
}

/// Page size from the file's header; a power of two from 512 to 65536.
pub(super) fn page_size(header: &[u8]) -> Option<u64> {
    let size = match u16_at(header, 16)? {
        1 => 65536,
        size => u64::from(size),
    };
    (size.is_power_of_two() && size >= 512).then_some(size)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_be_bytes(*bytes))
}

/// SQLite's variable-length integer and what follows it: seven bits a byte, the ninth byte whole.
fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0;
    for (i, &byte) in bytes.iter().enumerate().take(9) {
        let last = i == 8;
        value = if last { value << 8 | u64::from(byte) } else { value << 7 | u64::from(byte & 0x7f) };
        if last || byte < 0x80 {
            return bytes.get(i + 1..).map(|rest| (value, rest));
        }
    }
    None
}
