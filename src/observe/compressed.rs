//! Compressed camera frames, JPEG and PNG, told apart by their content. See [`super::image`].

use std::io::{self, Cursor};

use image::{DynamicImage, ImageDecoder, Limits, codecs::png::PngDecoder};
use zune_jpeg::{
    JpegDecoder,
    errors::DecodeErrors,
    zune_core::{bytestream::ZCursor, colorspace::ColorSpace, options::DecoderOptions},
};

use super::{
    RgbImage, clean,
    image::{ImageError, MAX_SIDE, check_size},
    quoted,
};

/// Most pixels that a byte of JPEG stands for: a Huffman code takes a bit at least, a block of 8 × 8 a code.
const JPEG_PIXELS_PER_BYTE: u64 = 8 * 64;
/// Most pixels that a byte of PNG stands for: deflate gives 1032 bytes for one, a byte holds 8 pixels of one bit.
const PNG_PIXELS_PER_BYTE: u64 = 1032 * 8;
/// Most that the PNG decoder may hold besides the pixels (side information, rows): twice the largest row of 16-bit
/// rgba and room for colour profiles.
const PNG_MAX_ALLOC: u64 = 4 << 20;

/// Characters that are shown of what a decoder says.
const REASON_MAX: usize = 120;

/// Decodes a JPEG or PNG. What the bytes are decides; `format` ("jpeg", "png", "rgb8; jpeg compressed bgr8", …, or
/// empty) must name one of the two, so that a topic of video or depth is refused by its name.
/// Grey, palette, alpha and 16-bit images become rgb8. A frame that is cut or damaged is an error, not half an image.
pub fn decode_compressed(format: &str, data: &[u8]) -> Result<RgbImage, ImageError> {
    if !names_a_picture(format) {
        return Err(ImageError::UnknownFormat { format: quoted(format) });
    }
    if data.starts_with(b"\xFF\xD8\xFF") {
        decode_jpeg(data)
    } else if data.starts_with(b"\x89PNG\r\n\x1A\n") {
        decode_png(data)
    } else {
        Err(ImageError::UnknownContent { format: quoted(format), len: data.len() })
    }
}

/// `compressed_image_transport` writes "ENCODING; jpeg compressed ENCODING", most drivers write "jpeg".
/// "ENCODING; compressedDepth png" has a header of its own before the PNG and holds distances: not a picture.
fn names_a_picture(format: &str) -> bool {
    let mut words =
        format.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).peekable();
    let is = |word: &str, names: &[&str]| names.iter().any(|name| word.eq_ignore_ascii_case(name));
    if words.peek().is_none() {
        return format.trim().is_empty();
    }
    let (mut picture, mut depth) = (false, false);
    for word in words {
        picture |= is(word, &["jpeg", "jpg", "mjpeg", "png"]);
        depth |= is(word, &["compressedDepth"]);
    }
    picture && !depth
}

fn decode_jpeg(data: &[u8]) -> Result<RgbImage, ImageError> {
    let damaged = |error| jpeg_error(data.len(), error);
    let any_size = usize::from(u16::MAX); // JPEG's own limit: ours is judged below, with our message
    let options = DecoderOptions::default()
        .set_max_width(any_size)
        .set_max_height(any_size)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(data), options);
    decoder.decode_headers().map_err(damaged)?;
    let (width, height) = decoder.dimensions().unwrap_or_default();
    let (width, height) = (width as u32, height as u32); // 16 bits each in the file
    check_claim("JPEG", data.len(), width, height, JPEG_PIXELS_PER_BYTE)?;
    if !jpeg_has_end(data) {
        return Err(ImageError::Truncated { container: "JPEG", len: data.len() });
    }
    // From here on whatever the standard forbids is an error: a lenient decoder paints the rest grey. The headers are
    // read leniently, since cameras put odd things between them.
    decoder.set_options(decoder.options().set_strict_mode(true));
    let rgb = decoder.decode().map_err(damaged)?;
    rgb_image("JPEG", data.len(), width, height, rgb)
}

/// Whether the end marker stands where the image ends. What lies before it (a thumbnail with an end of its own) and
/// behind it (padding of some cameras) does not count.
fn jpeg_has_end(data: &[u8]) -> bool {
    if data.ends_with(b"\xFF\xD9") {
        return true; // as nearly always: spares the walk
    }
    let mut at = 0;
    while let Some(found) = data[at..].iter().position(|&byte| byte == 0xFF) {
        at += found + 1;
        match data.get(at..) {
            Some([0xD9, ..]) => return true,
            Some([0x00 | 0x01 | 0xD0..=0xD8, ..]) => at += 1, // a data byte FF, or a marker without content
            Some([0xFF, ..]) => {}                            // filling
            Some([_, high, low, ..]) => at += 1 + usize::from(u16::from_be_bytes([*high, *low])),
            _ => return false,
        }
        if at >= data.len() {
            return false;
        }
    }
    false
}

fn jpeg_error(len: usize, error: DecodeErrors) -> ImageError {
    match error {
        DecodeErrors::ExhaustedData => ImageError::Truncated { container: "JPEG", len },
        error => ImageError::Damaged { container: "JPEG", len, reason: one_line(&error) },
    }
}

fn decode_png(data: &[u8]) -> Result<RgbImage, ImageError> {
    let damaged = |error: image::ImageError| match error {
        image::ImageError::IoError(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            ImageError::Truncated { container: "PNG", len: data.len() }
        }
        error => ImageError::Damaged { container: "PNG", len: data.len(), reason: one_line(&error) },
    };
    // The header chunk comes first and has its size at fixed places: judged before the decoder allocates rows.
    if let Some(&[w0, w1, w2, w3, h0, h1, h2, h3]) = data.get(16..24) {
        let (width, height) = (u32::from_be_bytes([w0, w1, w2, w3]), u32::from_be_bytes([h0, h1, h2, h3]));
        check_claim("PNG", data.len(), width, height, PNG_PIXELS_PER_BYTE)?;
    }
    let mut limits = Limits::no_limits();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(PNG_MAX_ALLOC);
    let decoder = PngDecoder::with_limits(Cursor::new(data), limits).map_err(damaged)?;
    let (width, height) = decoder.dimensions();
    let rgb = DynamicImage::from_decoder(decoder).map_err(damaged)?.into_rgb8();
    rgb_image("PNG", data.len(), width, height, rgb.into_raw())
}

/// A size within the cap, and within what the bytes can stand for.
fn check_claim(
    container: &'static str,
    len: usize,
    width: u32,
    height: u32,
    pixels_per_byte: u64,
) -> Result<(), ImageError> {
    check_size(width, height)?;
    if u64::from(width) * u64::from(height) > len as u64 * pixels_per_byte {
        return Err(ImageError::Implausible { container, len, width, height });
    }
    Ok(())
}

fn rgb_image(
    container: &'static str,
    len: usize,
    width: u32,
    height: u32,
    rgb: Vec<u8>,
) -> Result<RgbImage, ImageError> {
    RgbImage::new(width, height, rgb).ok_or_else(|| ImageError::Damaged {
        container,
        len,
        reason: format!("it does not decode to {width}x{height} pixels"),
    })
}

/// A decoder's words, fit for our one line.
fn one_line(error: &impl std::fmt::Display) -> String {
    clean(error.to_string().trim(), REASON_MAX)
}
