//! Hostile camera messages: whatever their fields say, an image or an error comes back, never a panic, and never more
//! memory than the bytes that are there can account for.
//!
//! One test runs all properties, one after the other, since what is allocated is counted for the whole process.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot go on fails

use std::{alloc::System, io::Cursor};

use cap::Cap;
use image::{ImageFormat, Rgb, RgbImage, codecs::jpeg::JpegEncoder};
use pi05_thor::observe::image::{MAX_PIXELS, MAX_SIDE, RawImage, decode_compressed, decode_raw};
use proptest::{collection::vec, prelude::*, sample::Index};

#[global_allocator]
static MEMORY: Cap<System> = Cap::new(System, usize::MAX);

/// What an error's text and a decoder's fixed tables may take.
const SMALL: usize = 64 << 10;

#[test]
fn hostile_images_are_refused_and_cost_nothing() {
    a_claim_is_judged_before_it_is_believed();
    raw_with_arbitrary_fields();
    raw_of_nearly_the_right_length();
    compressed_of_arbitrary_bytes();
    compressed_with_mutations();
    compressed_with_mutated_headers();
}

/// Runs `decode` and gives its result with the bytes that it allocated, freed ones too.
fn measured<T>(decode: impl FnOnce() -> T) -> (T, usize) {
    let before = MEMORY.total_allocated();
    let result = decode();
    (result, MEMORY.total_allocated() - before)
}

const ENCODINGS: [&str; 14] = [
    "rgb8",
    "bgr8",
    "rgba8",
    "bgra8",
    "mono8",
    "8UC1",
    "8UC3",
    "8UC4",
    "yuyv",
    "yuv422_yuy2",
    "uyvy",
    "yuv422",
    "nv12",
    "nv21",
];

/// Sizes of real images, and sizes that tempt arithmetic.
fn size() -> impl Strategy<Value = u32> {
    prop_oneof![
        6 => 0..40u32,
        1 => prop::sample::select(vec![MAX_SIDE - 1, MAX_SIDE, MAX_SIDE + 1, 1 << 16, 1 << 31, u32::MAX - 1, u32::MAX]),
        1 => any::<u32>(),
    ]
}

fn encoding() -> impl Strategy<Value = String> {
    prop_oneof![9 => prop::sample::select(ENCODINGS.to_vec()).prop_map(str::to_owned), 1 => ".{0,80}"]
}

/// A valid file of the picture's kind, 64x48.
fn files() -> [Vec<u8>; 5] {
    let picture = RgbImage::from_fn(64, 48, |x, y| Rgb([(4 * x) as u8, (5 * y) as u8, (x * y) as u8]));
    let mut jpeg = Vec::new();
    JpegEncoder::new_with_quality(&mut jpeg, 80).encode_image(&picture).unwrap();
    let mut png = Cursor::new(Vec::new());
    picture.write_to(&mut png, ImageFormat::Png).unwrap();
    let file = |name: &str| {
        std::fs::read(format!("{}/tests/data/images/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
    };
    [jpeg, png.into_inner(), file("progressive.jpg"), file("restart.jpg"), file("palette.png")]
}

/// Decodes and holds the promises: 12 bytes for each pixel that the bytes can stand for (the bounds of a JPEG's Huffman
/// codes and of PNG's deflate) and for each that is allowed at all; chunks of a PNG besides.
fn decode_within_bounds(format: &str, data: &[u8]) -> Result<(), TestCaseError> {
    let (result, taken) = measured(|| decode_compressed(format, data));
    let pixels_per_byte = if data.starts_with(b"\x89PNG") { 8 * 1032 } else { 8 * 64 };
    let pixels = (data.len() * pixels_per_byte).min(MAX_PIXELS as usize);
    prop_assert!(taken <= 12 * pixels + 4 * data.len() + (8 << 20), "{} bytes taken {taken}", data.len());
    match result {
        Ok(image) => prop_assert!(image.width() <= MAX_SIDE && image.height() <= MAX_SIDE),
        Err(error) => {
            let line = error.to_string();
            prop_assert!(line.len() < 400 && !line.chars().any(char::is_control), "{line:?}");
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    fn raw_with_arbitrary_fields(
        (width, height, step) in (size(), size(), size()),
        encoding in encoding(),
        is_bigendian in any::<bool>(),
        data in vec(any::<u8>(), 0..6000),
    ) {
        let raw = RawImage { width, height, encoding: &encoding, is_bigendian, step, data: &data };
        let (result, taken) = measured(|| decode_raw(&raw));
        prop_assert!(taken <= 3 * data.len() + SMALL, "{} bytes of data taken {taken}", data.len());
        match result {
            Ok(image) => prop_assert_eq!((image.width(), image.height()), (width, height)),
            Err(error) => {
                let line = error.to_string();
                prop_assert!(line.len() < 400 && !line.chars().any(char::is_control), "{line:?}");
            }
        }
    }

    /// Around the exact length: decoded if and only if every pixel is there.
    fn raw_of_nearly_the_right_length(
        (width, height) in (1..20u32, 1..20u32),
        encoding in prop::sample::select(ENCODINGS.to_vec()),
        (step_off, length_off) in (-2..4i64, -3..4i64),
    ) {
        let (bytes, pairs, planes) = match encoding {
            "rgb8" | "bgr8" | "8UC3" => (3, false, false),
            "rgba8" | "bgra8" | "8UC4" => (4, false, false),
            "mono8" | "8UC1" => (1, false, false),
            "nv12" | "nv21" => (1, true, true),
            _ => (2, true, false),
        };
        let row = i64::from(width * bytes);
        let step = (row + step_off).max(0);
        let rows = i64::from(if planes { height * 3 / 2 } else { height });
        let length = ((rows - 1) * step + row + length_off).max(0);
        let data = vec![7; length as usize];
        let raw = RawImage { width, height, encoding, is_bigendian: false, step: step as u32, data: &data };
        let even = (!pairs || width % 2 == 0) && (!planes || height % 2 == 0);
        let whole = step >= row && length_off >= 0;
        prop_assert_eq!(decode_raw(&raw).is_ok(), even && whole, "{:?}", decode_raw(&raw));
    }

    fn compressed_of_arbitrary_bytes(
        format in prop_oneof![Just("jpeg".to_owned()), Just(String::new()), ".{0,80}"],
        magic in prop::sample::select(vec![&b""[..], b"\xFF\xD8\xFF", b"\xFF\xD8\xFF\xC0", b"\x89PNG\r\n\x1A\n"]),
        end in prop::sample::select(vec![&b""[..], b"\xFF\xD9"]),
        data in vec(any::<u8>(), 0..3000),
    ) {
        decode_within_bounds(&format, &[magic, &data, end].concat())?;
    }

    /// Valid files with bytes overwritten, a piece cut out and a piece said twice.
    fn compressed_with_mutations(
        which in any::<Index>(),
        bytes in vec((any::<Index>(), any::<u8>()), 0..8),
        (cut, repeat) in (proptest::option::of(any::<(Index, Index)>()), proptest::option::of(any::<(Index, Index)>())),
    ) {
        let mut data = which.get(&files()).clone();
        for (at, byte) in bytes {
            let at = at.index(data.len());
            data[at] = byte;
        }
        let span = |(a, b): (Index, Index), len| {
            let (a, b) = (a.index(len), b.index(len));
            a.min(b)..a.max(b)
        };
        if let Some(repeat) = repeat {
            let piece = data[span(repeat, data.len())].to_vec();
            data.extend(piece);
        }
        if let Some(cut) = cut {
            data.drain(span(cut, data.len()));
        }
        decode_within_bounds("jpeg", &data)?;
    }

    /// The first bytes hold the sizes and tables: most of a decoder's trust.
    fn compressed_with_mutated_headers(
        which in any::<Index>(),
        bytes in vec((0..700usize, prop_oneof![any::<u8>(), Just(0), Just(0xFF)]), 1..6),
    ) {
        let mut data = which.get(&files()).clone();
        for (at, byte) in bytes {
            if let Some(old) = data.get_mut(at) {
                *old = byte;
            }
        }
        decode_within_bounds("png", &data)?;
    }
}

/// A frame header that claims the largest image allowed costs no more than the error that says so.
fn a_claim_is_judged_before_it_is_believed() {
    let [mut jpeg, mut png, ..] = files();
    let frame = jpeg.windows(2).position(|marker| marker == [0xFF, 0xC0]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0x10, 0x00, 0x20, 0x00]); // 4096 rows of 8192
    png[16..24].copy_from_slice(&[0, 0, 0x20, 0, 0, 0, 0x10, 0]);
    for data in [jpeg, png] {
        let (result, taken) = measured(|| decode_compressed("", &data));
        assert!(result.is_err() && taken < SMALL, "{result:?} taken {taken}");
    }
    let raw = RawImage {
        width: MAX_SIDE,
        height: 4096,
        encoding: "rgb8",
        is_bigendian: false,
        step: 3 * MAX_SIDE,
        data: &[0; 100],
    };
    let (result, taken) = measured(|| decode_raw(&raw));
    assert!(result.is_err() && taken < SMALL, "taken {taken}");
}
