//! Attention without a mask: every query sees every key (masked slots were dropped before).

use rayon::prelude::*;

use super::linear::{Rows, product, product_transposed};
use super::math::{PARALLEL_ELEMENTS, softmax};

/// Query rows that share one pass over keys and values.
const BLOCK: usize = 64;

/// One K/V head for all query heads (Gemma). q `[tokens, heads * head_dim]`; k, v `[keys, head_dim]`;
/// out like q. Since the heads share k and v, q is read as `[tokens * heads, head_dim]`.
pub fn shared_head(q: &[f32], k: &[f32], v: &[f32], head_dim: usize, out: &mut [f32]) {
    let scale = 1.0 / (head_dim as f32).sqrt();
    let (k, v) = (Rows::packed(k, head_dim), Rows::packed(v, head_dim));
    let block = |(q, out): (&[f32], &mut [f32])| {
        let q = Rows::packed(q, head_dim);
        let mut logits = vec![0.0; q.rows * k.rows];
        product_transposed(q, k, &mut logits);
        logits.chunks_exact_mut(k.rows).for_each(|row| softmax(row, scale));
        product(Rows::packed(&logits, k.rows), v, out);
    };
    let rows = BLOCK * head_dim;
    if q.len() / head_dim * k.rows < PARALLEL_ELEMENTS {
        q.chunks(rows).zip(out.chunks_mut(rows)).for_each(block);
    } else {
        q.par_chunks(rows).zip(out.par_chunks_mut(rows)).for_each(block);
    }
}

/// As many K/V heads as query heads (SigLIP). q, k, v, out `[tokens, width]`, head `h` in columns
/// `h * width / heads` onwards.
pub fn own_heads(q: &[f32], k: &[f32], v: &[f32], width: usize, heads: usize, out: &mut [f32]) {
    let tokens = q.len() / width;
    let head_dim = width / heads;
    let scale = 1.0 / (head_dim as f32).sqrt();
    let head = |h: usize| {
        let of = |x| head_of(x, h, tokens, head_dim, width);
        let mut logits = vec![0.0; tokens * tokens];
        product_transposed(of(q), of(k), &mut logits);
        logits.chunks_exact_mut(tokens).for_each(|row| softmax(row, scale));
        let mut mixed = vec![0.0; tokens * head_dim];
        product(Rows::packed(&logits, tokens), of(v), &mut mixed);
        mixed
    };
    let mixed: Vec<Vec<f32>> = if heads * tokens * tokens < PARALLEL_ELEMENTS {
        (0..heads).map(head).collect()
    } else {
        (0..heads).into_par_iter().map(head).collect()
    };
    for (h, mixed) in mixed.iter().enumerate() {
        for (out, mixed) in out.chunks_exact_mut(width).zip(mixed.chunks_exact(head_dim)) {
            out[h * head_dim..][..head_dim].copy_from_slice(mixed);
        }
    }
}

/// Columns of head `h` in `x` `[tokens, width]`.
fn head_of(x: &[f32], h: usize, tokens: usize, head_dim: usize, width: usize) -> Rows<'_> {
    Rows { data: &x[h * head_dim..], rows: tokens, columns: head_dim, stride: width }
}
