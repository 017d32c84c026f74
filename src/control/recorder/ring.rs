//! The newest rows of numbers, written by one thread without ever waiting, read by others meanwhile.
//!
//! Promises: all memory is allocated at construction; to push is a fixed number of stores, whoever reads. A reader gets
//! whole rows only: one that is overwritten while it is read is left out. Each row has a sequence number, odd while it is
//! written, that the reader looks at before and after.

use std::sync::atomic::{AtomicU64, Ordering, fence};

/// In memory before the first row comes. Not 0: pages of zeros are promised by the system and made at the first write,
/// which would be a tick's.
const UNWRITTEN: u64 = u64::MAX;

/// Rows of `width` words each; the newest overwrites the oldest.
#[derive(Debug)]
pub(super) struct Ring {
    width: usize,
    /// One per row: twice its number, and one more once it is whole, counted from 1.
    sequences: Box<[AtomicU64]>,
    /// `[rows][width]`.
    words: Box<[AtomicU64]>,
    pushed: AtomicU64,
}

impl Ring {
    pub fn new(rows: usize, width: usize) -> Self {
        let (rows, width) = (rows.max(1), width.max(1));
        let unwritten = |count| (0..count).map(|_| AtomicU64::new(UNWRITTEN)).collect();
        Self { width, sequences: unwritten(rows), words: unwritten(rows * width), pushed: AtomicU64::new(0) }
    }

    /// Writes one row; what is missing is 0, what is too much is left out. By one thread at a time.
    pub fn push(&self, row: impl IntoIterator<Item = u64>) {
        let number = self.pushed.load(Ordering::Relaxed);
        let index = (number % self.sequences.len() as u64) as usize;
        let sequence = &self.sequences[index];
        sequence.store(2 * number + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        let mut row = row.into_iter();
        for word in &self.words[index * self.width..][..self.width] {
            word.store(row.next().unwrap_or(0), Ordering::Relaxed);
        }
        sequence.store(2 * number + 2, Ordering::Release);
        self.pushed.store(number + 1, Ordering::Release);
    }

    /// Shows every whole row to `look`, oldest first.
    pub fn look(&self, mut look: impl FnMut(&[u64])) {
        let pushed = self.pushed.load(Ordering::Acquire);
        let mut row = vec![0; self.width];
        for number in pushed.saturating_sub(self.sequences.len() as u64)..pushed {
            let index = (number % self.sequences.len() as u64) as usize;
            let whole = 2 * number + 2;
            if self.sequences[index].load(Ordering::Acquire) != whole {
                continue;
            }
            for (kept, word) in row.iter_mut().zip(&self.words[index * self.width..]) {
                *kept = word.load(Ordering::Relaxed);
            }
            fence(Ordering::Acquire);
            if self.sequences[index].load(Ordering::Relaxed) == whole {
                look(&row);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    fn rows(ring: &Ring) -> Vec<Vec<u64>> {
        let mut rows = Vec::new();
        ring.look(|row| rows.push(row.to_vec()));
        rows
    }

    #[test]
    fn the_newest_rows_are_there_oldest_first() {
        let ring = Ring::new(3, 2);
        assert!(rows(&ring).is_empty());
        ring.push([1]);
        assert_eq!(rows(&ring), [[1, 0]]);
        (2..=5).for_each(|n| ring.push([n, 10 * n, 99]));
        assert_eq!(rows(&ring), [[3, 30], [4, 40], [5, 50]]);
    }

    /// Rows whose words are all equal: a torn one would show.
    #[test]
    fn a_reader_beside_the_writer_sees_whole_rows_in_order() {
        let ring = Ring::new(8, 16);
        let writing = AtomicBool::new(true);
        let mut seen = 0;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                (1..400_000).for_each(|n| ring.push([n; 16]));
                writing.store(false, Ordering::Release);
            });
            while writing.load(Ordering::Acquire) {
                let mut last = 0;
                ring.look(|row| {
                    assert!(row[0] > last && row.iter().all(|&word| word == row[0]), "{row:?} after {last}");
                    last = row[0];
                    seen += 1;
                });
            }
        });
        assert!(seen > 100, "{seen}");
        assert_eq!(rows(&ring).last(), Some(&vec![399_999; 16]));
    }
}
