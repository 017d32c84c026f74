//! Camera images to the square that the network sees: the bigger side fills it, the rest is centred padding.
//!
//! Called for every image of an observation. The two code bases resize differently and their checkpoints were trained
//! on the result, so both are here to the last digit: [`Resize::Pillow`] gives openpi's bytes, [`Resize::Torch`]
//! LeRobot's floats.

use std::ops::Range;

use crate::{model::Pixels, observe::RgbImage};

/// Whose pixels to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resize {
    /// openpi: Pillow's BILINEAR, antialiased, in fixed point; bit-exact (spec/PI05.md §2.1).
    Pillow,
    /// LeRobot: torch's bilinear, not antialiased, in f32; within 5e-7 of it (spec/PI05.md §2.2).
    Torch,
}

/// Why an image cannot be resized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResizeError {
    /// One side would have no pixel left. The reference implementations raise an error, too.
    #[error(
        "image of {width}x{height} is too narrow for a square of {side}: less than one pixel would be left"
    )]
    TooNarrow {
        /// Pixels per row.
        width: u32,
        /// Rows.
        height: u32,
        /// Side of the square.
        side: u32,
    },
}

/// Resizes to `[side, side, 3]` with the image's own proportions: [`Pixels::U8`] on black (0) for Pillow,
/// [`Pixels::F32`] in [-1, 1] on black (-1) for torch.
pub fn resize_with_pad(image: &RgbImage, side: u32, how: Resize) -> Result<Pixels, ResizeError> {
    let source = Source { width: image.width() as usize, height: image.height() as usize, rgb: image.data() };
    let inner = Inner::fit(image, side)?;
    Ok(match how {
        Resize::Pillow => Pixels::U8(pillow(&source, &inner)),
        Resize::Torch => Pixels::F32(torch(&source, &inner)),
    })
}

struct Source<'a> {
    width: usize,
    height: usize,
    rgb: &'a [u8],
}

/// Where the resized image lies in the square.
struct Inner {
    side: usize,
    width: usize,
    height: usize,
    left: usize,
    top: usize,
}

impl Inner {
    /// In f64 with truncation, as the references do: 224x225 becomes 223x223.
    fn fit(image: &RgbImage, side: u32) -> Result<Self, ResizeError> {
        let (width, height) = (image.width(), image.height());
        let ratio = f64::max(f64::from(width) / f64::from(side), f64::from(height) / f64::from(side));
        let inner = |length: u32| (f64::from(length) / ratio) as usize; // truncates; at most `side`
        let (inner_width, inner_height) = (inner(width), inner(height));
        if inner_width == 0 || inner_height == 0 {
            return Err(ResizeError::TooNarrow { width, height, side });
        }
        let side = side as usize;
        Ok(Self {
            side,
            width: inner_width,
            height: inner_height,
            left: (side - inner_width) / 2,
            top: (side - inner_height) / 2,
        })
    }

    /// The square full of `padding`, with the inner rectangle's rows made by `fill` from what `rows` gives for each.
    fn paste<T: Copy, R>(
        &self,
        padding: T,
        rows: impl Iterator<Item = R>,
        mut fill: impl FnMut(R, &mut [T]),
    ) -> Vec<T> {
        let mut square = vec![padding; self.side * self.side * 3];
        let inner = square.chunks_exact_mut(self.side * 3).skip(self.top).take(self.height);
        for (out, row) in inner.zip(rows) {
            fill(row, &mut out[self.left * 3..][..self.width * 3]);
        }
        square
    }
}

/// Fractional bits of Pillow's weights.
const WEIGHT_BITS: u32 = 22;
/// One half, for rounding.
const WEIGHT_HALF: u32 = 1 << (WEIGHT_BITS - 1);

fn pillow(source: &Source<'_>, inner: &Inner) -> Vec<u8> {
    // Horizontally first, rounded to bytes between the passes; a pass that changes nothing is left out.
    let narrowed;
    let rgb = if inner.width == source.width {
        source.rgb
    } else {
        narrowed = narrow(source, inner.width);
        &narrowed
    };
    let row_len = inner.width * 3;
    if inner.height == source.height {
        return inner.paste(0, rgb.chunks_exact(row_len), |row, out| out.copy_from_slice(row));
    }
    let filter = Filter::triangle(source.height, inner.height);
    let mut sums = vec![0; row_len];
    inner.paste(0, filter.windows(), |(first, weights), out| {
        sums.fill(WEIGHT_HALF);
        for (row, &weight) in rgb[first * row_len..].chunks_exact(row_len).zip(weights) {
            for (sum, &sample) in sums.iter_mut().zip(row) {
                *sum += u32::from(sample) * weight;
            }
        }
        round(out, sums.iter().copied());
    })
}

/// The horizontal pass: every row of the source to `width` pixels. Works on two rows at a time, one in either half of
/// a u64 (no sum reaches 2³², so neither half disturbs the other): half the multiplications.
fn narrow(source: &Source<'_>, width: usize) -> Vec<u8> {
    let filter = Filter::triangle(source.width, width);
    let (row_len, out_len) = (source.width * 3, width * 3);
    let mut narrowed = vec![0; source.height * out_len];
    let mut pairs = vec![[0u64; 3]; source.width];
    for (rows, out) in source.rgb.chunks(2 * row_len).zip(narrowed.chunks_mut(2 * out_len)) {
        let (upper, lower) = rows.split_at(row_len);
        let (out_upper, out_lower) = out.split_at_mut(out_len);
        let lower = if lower.is_empty() { upper } else { lower }; // an odd last row goes alone
        let pixels = upper.as_chunks::<3>().0.iter().zip(lower.as_chunks::<3>().0);
        for (pair, (upper, lower)) in pairs.iter_mut().zip(pixels) {
            for (pair, (&upper, &lower)) in pair.iter_mut().zip(upper.iter().zip(lower)) {
                *pair = u64::from(upper) | u64::from(lower) << 32;
            }
        }
        let mut out_lower = out_lower.as_chunks_mut::<3>().0.iter_mut();
        for (out, (first, weights)) in out_upper.as_chunks_mut::<3>().0.iter_mut().zip(filter.windows()) {
            let half = u64::from(WEIGHT_HALF);
            let mut sums = [half | half << 32; 3];
            for (pair, &weight) in pairs[first..].iter().zip(weights) {
                for (sum, &samples) in sums.iter_mut().zip(pair) {
                    *sum += samples * u64::from(weight);
                }
            }
            round(out, sums.iter().map(|&sum| sum as u32));
            if let Some(out) = out_lower.next() {
                round(out, sums.iter().map(|&sum| (sum >> 32) as u32));
            }
        }
    }
    narrowed
}

/// Sums of samples times weights, with a half added, to bytes. No weight is negative and together they are 1 within
/// rounding, so that a sum stays below 2³¹ (255 · 2²² < 2³⁰).
#[inline(always)] // a call for every byte would take longer than the rest
fn round(out: &mut [u8], sums: impl Iterator<Item = u32>) {
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = (sum >> WEIGHT_BITS).min(255) as u8;
    }
}

/// For every output position along one axis the input positions that it takes, and their weights.
struct Filter {
    /// First input position of each window.
    starts: Vec<usize>,
    /// Input positions of a window: as many for all, so that the inner loops always take the same way.
    window: usize,
    /// `[output, window]`; zero where a position's own window is shorter.
    weights: Vec<u32>,
}

impl Filter {
    /// A triangle as wide as the scale, at least one pixel to either side; computed in f64 as Pillow does.
    fn triangle(from: usize, to: usize) -> Self {
        let scale = from as f64 / to as f64;
        let support = scale.max(1.0);
        let sharpness = 1.0 / support;
        let spans: Vec<(f64, Range<usize>)> = (0..to)
            .map(|position| {
                let centre = (position as f64 + 0.5) * scale;
                let first = (centre - support + 0.5).max(0.0) as usize; // truncates
                (centre, first..((centre + support + 0.5) as usize).min(from))
            })
            .collect();
        let window = spans.iter().map(|(_, span)| span.len()).max().unwrap_or(1);
        let mut starts = Vec::with_capacity(to);
        let mut weights = vec![0; to * window];
        for ((centre, span), weights) in spans.into_iter().zip(weights.chunks_exact_mut(window)) {
            let weight = |at: usize| (1.0 - ((at as f64 - centre + 0.5) * sharpness).abs()).max(0.0);
            let total: f64 = span.clone().map(weight).sum();
            let start = span.start.min(from - window); // the window stays inside the image
            starts.push(start);
            for (at, fixed) in span.clone().zip(&mut weights[span.start - start..]) {
                *fixed = (0.5 + weight(at) / total * f64::from(1u32 << WEIGHT_BITS)) as u32; // truncates
            }
        }
        Self { starts, window, weights }
    }

    /// First input position and weights of every output position.
    fn windows(&self) -> impl Iterator<Item = (usize, &[u32])> {
        self.starts.iter().copied().zip(self.weights.chunks_exact(self.window))
    }
}

/// Samples as LeRobot's loader makes them, [0, 1], resized, clamped, and only then spread to [-1, 1].
fn torch(source: &Source<'_>, inner: &Inner) -> Vec<f32> {
    let unit: [f32; 256] = std::array::from_fn(|byte| byte as f32 / 255.0);
    let columns: Vec<Neighbours> =
        (0..inner.width).map(|x| Neighbours::of(x, source.width, inner.width)).collect();
    let row_len = source.width * 3;
    let rows = (0..inner.height).map(|y| Neighbours::of(y, source.height, inner.height));
    inner.paste(-1.0, rows, |rows, out| {
        let upper = source.rgb[rows.first * row_len..][..row_len].as_chunks::<3>().0;
        let lower = source.rgb[rows.second * row_len..][..row_len].as_chunks::<3>().0;
        for (out, columns) in out.as_chunks_mut::<3>().0.iter_mut().zip(&columns) {
            let (a, b) = (upper[columns.first], upper[columns.second]);
            let (c, d) = (lower[columns.first], lower[columns.second]);
            for (channel, out) in out.iter_mut().enumerate() {
                let sample = |pixel: [u8; 3]| unit[usize::from(pixel[channel])];
                let value = rows.mix(columns.mix(sample(a), sample(b)), columns.mix(sample(c), sample(d)));
                *out = value.clamp(0.0, 1.0) * 2.0 - 1.0;
            }
        }
    })
}

/// The two input positions that an output position lies between, and how far towards the second, 0 to 1.
struct Neighbours {
    first: usize,
    second: usize,
    share: f32,
}

impl Neighbours {
    /// Pixel centres at halves (`align_corners=False`), in f32 and fused, as torch's compiler made it (unfused, the
    /// samples are seven times further off); the border repeats.
    fn of(position: usize, from: usize, to: usize) -> Self {
        let scale = from as f32 / to as f32;
        let place = scale.mul_add(position as f32 + 0.5, -0.5).max(0.0);
        let first = (place as usize).min(from - 1);
        Self { first, second: (first + 1).min(from - 1), share: (place - first as f32).clamp(0.0, 1.0) }
    }

    fn mix(&self, first: f32, second: f32) -> f32 {
        (1.0 - self.share) * first + self.share * second
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(width: u32, height: u32, value: u8) -> RgbImage {
        RgbImage::new(width, height, vec![value; (width * height * 3) as usize]).unwrap()
    }

    #[test]
    fn the_inner_rectangle_is_truncated_as_the_references_do() {
        for ((width, height), (inner_width, inner_height), (left, top)) in [
            ((640, 480), (224, 168), (0, 28)),
            ((224, 225), (223, 223), (0, 0)),
            ((37, 100), (82, 224), (71, 0)),
            ((84, 84), (224, 224), (0, 0)),
        ] {
            let inner = Inner::fit(&image(width, height, 0), 224).unwrap();
            assert_eq!((inner.width, inner.height), (inner_width, inner_height));
            assert_eq!((inner.left, inner.top), (left, top));
        }
    }

    #[test]
    fn an_image_that_would_vanish_is_refused() {
        for (width, height) in [(5000, 3), (3, 5000), (8192, 1)] {
            let error = resize_with_pad(&image(width, height, 9), 224, Resize::Pillow).unwrap_err();
            assert_eq!(error, ResizeError::TooNarrow { width, height, side: 224 });
            assert_eq!(resize_with_pad(&image(width, height, 9), 224, Resize::Torch), Err(error));
        }
        assert!(resize_with_pad(&image(3, 3, 9), 0, Resize::Torch).is_err());
    }

    #[test]
    fn one_row_of_pixels_can_be_left() {
        let Ok(Pixels::U8(square)) = resize_with_pad(&image(4480, 20, 200), 224, Resize::Pillow) else {
            panic!()
        };
        let lit = square.chunks_exact(224 * 3).filter(|row| row.iter().all(|&sample| sample == 200)).count();
        assert_eq!((lit, square.iter().filter(|&&sample| sample != 0).count()), (1, 224 * 3));
    }

    /// Weights that add up to 1 keep a plain image plain, in every proportion, from one pixel up.
    #[test]
    fn a_plain_image_stays_plain() {
        for (width, height) in [(1, 1), (1, 2), (2, 1), (3, 5), (223, 224), (1023, 77), (640, 481)] {
            for value in [0, 1, 127, 255] {
                let plain = image(width, height, value);
                let inner = Inner::fit(&plain, 56).unwrap();
                let Ok(Pixels::U8(bytes)) = resize_with_pad(&plain, 56, Resize::Pillow) else { panic!() };
                let Ok(Pixels::F32(floats)) = resize_with_pad(&plain, 56, Resize::Torch) else { panic!() };
                for y in inner.top..inner.top + inner.height {
                    let row = (y * 56 + inner.left) * 3..(y * 56 + inner.left + inner.width) * 3;
                    assert!(bytes[row.clone()].iter().all(|&byte| byte == value));
                    let expected = f32::from(value) / 127.5 - 1.0;
                    assert!(floats[row].iter().all(|float| (float - expected).abs() < 1e-6));
                }
            }
        }
    }
}
