//! Orders in which rows of matrices are packed, so that what follows a product finds what it needs together in one thread.
//! Each gives, for every packed row, which row it was.

/// As they are.
pub fn natural(rows: usize) -> Vec<i32> {
    (0..rows as i32).collect()
}

/// Heads one below the other: 8 rows of a head's first half, then their partners of the second, with which RoPE turns them.
pub fn partners(heads: usize, head_dim: usize) -> Vec<i32> {
    let half = head_dim / 2;
    let firsts = (0..heads).flat_map(|head| (0..half).step_by(8).map(move |j| head * head_dim + j));
    eights(firsts, half)
}

/// Gate, below it up: 8 rows of gate with the same of up.
pub fn gate_up(mlp: usize) -> Vec<i32> {
    eights((0..mlp).step_by(8), mlp)
}

/// 8 rows from each of these on, each time followed by those `far` further on.
fn eights(firsts: impl Iterator<Item = usize>, far: usize) -> Vec<i32> {
    firsts
        .flat_map(|first| (first..first + 8).chain(first + far..first + far + 8))
        .map(|r| r as i32)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn packed_rows_are_all_rows_once(heads in 1usize..12, sixteens in 1usize..17) {
            for order in [partners(heads, sixteens * 16), gate_up(sixteens * 8)] {
                let mut sorted = order.clone();
                sorted.sort_unstable();
                prop_assert_eq!(&sorted, &natural(order.len()));
            }
        }

        /// What kernels/rope.cu makes of a packed row's number is the row that it was; and no row leaves its head, so that
        /// q's, k's and v's stay apart.
        #[test]
        fn a_packed_row_tells_which_it_was(heads in 1usize..12, sixteens in 1usize..17) {
            let dim = sixteens * 16;
            for (packed, &row) in partners(heads, dim).iter().enumerate() {
                let pair = packed / 16;
                let (head, at) = (pair / sixteens, packed / 8 % 2 * (dim / 2) + pair % sixteens * 8 + packed % 8);
                prop_assert_eq!(row as usize, head * dim + at);
                prop_assert_eq!(row as usize / dim, packed / dim);
            }
        }
    }

    #[test]
    fn eights_are_followed_by_what_belongs_to_them() {
        assert_eq!(
            partners(2, 32)[..24],
            [0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23, 8, 9, 10, 11, 12, 13, 14, 15]
        );
        assert_eq!(gate_up(4096)[7..10], [7, 4096, 4097]);
    }
}
