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
/// Grey, palette, alpha and 16-bit images become rgb8; an EXIF orientation is not applied.
///
/// A frame that is cut is an error, not half an image; so is damage that the decoder sees. What no decoder can see is
/// a bit that changed to another valid code, and a JPEG that was cut and given an end marker again.
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
    let has = |name: &str| {
        format.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| word.eq_ignore_ascii_case(name))
    };
    format.trim().is_empty()
        || (["jpeg", "jpg", "mjpeg", "png"].into_iter().any(has) && !has("compressedDepth"))
}

fn decode_jpeg(data: &[u8]) -> Result<RgbImage, ImageError> {
    if !jpeg_has_end(data) {
        return Err(ImageError::Truncated { container: "JPEG", len: data.len() });
    }
    let damaged = |error: DecodeErrors| ImageError::Damaged {
        container: "JPEG",
        len: data.len(),
        reason: one_line(&error),
    };
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
    clean(error.to_string().replace('"', "").trim(), REASON_MAX)
}

#[cfg(test)]
mod tests {
    use image::{ImageFormat, Luma, Rgb, Rgba, codecs::jpeg::JpegEncoder};

    use super::*;

    const WIDTH: u32 = 64;
    const HEIGHT: u32 = 48;

    /// The picture in all the files under `tests/data/images` that Pillow wrote, but `palette.png`.
    fn gradient(x: u32, y: u32) -> [u8; 3] {
        [4 * x, 5 * y, 2 * (x + y)].map(|channel| channel as u8)
    }

    fn picture() -> image::RgbImage {
        image::RgbImage::from_fn(WIDTH, HEIGHT, |x, y| Rgb(gradient(x, y)))
    }

    fn jpeg() -> Vec<u8> {
        let mut file = Vec::new();
        JpegEncoder::new_with_quality(&mut file, 95).encode_image(&picture()).unwrap();
        file
    }

    fn png(picture: impl Into<DynamicImage>) -> Vec<u8> {
        let mut file = Cursor::new(Vec::new());
        picture.into().write_to(&mut file, ImageFormat::Png).unwrap();
        file.into_inner()
    }

    fn file(name: &str) -> Vec<u8> {
        std::fs::read(format!("{}/tests/data/images/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
    }

    fn pixels(data: &[u8]) -> Vec<u8> {
        let image = decode_compressed("", data).unwrap();
        assert_eq!((image.width(), image.height()), (WIDTH, HEIGHT));
        image.data().to_vec()
    }

    fn mean_difference(a: &[u8], b: &[u8]) -> f64 {
        let sum: u64 = a.iter().zip(b).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
        sum as f64 / a.len() as f64
    }

    fn error(format: &str, data: &[u8]) -> String {
        decode_compressed(format, data).unwrap_err().to_string()
    }

    #[test]
    fn jpegs_of_every_kind_show_the_picture() {
        let picture = picture();
        assert!(mean_difference(&pixels(&jpeg()), &picture) < 2.0);
        for name in ["progressive.jpg", "restart.jpg", "cmyk.jpg"] {
            assert!(mean_difference(&pixels(&file(name)), &picture) < 2.0, "{name}");
        }
        let grey = pixels(&file("grey.jpg"));
        assert!(grey.as_chunks::<3>().0.iter().all(|&[r, g, b]| r == g && g == b));
        let luma =
            |[r, g, b]: [u8; 3]| (0.299 * f64::from(r) + 0.587 * f64::from(g) + 0.114 * f64::from(b)) as u8;
        let expected: Vec<u8> = picture.pixels().flat_map(|pixel| [luma(pixel.0); 3]).collect();
        assert!(mean_difference(&grey, &expected) < 2.0);
    }

    #[test]
    fn pngs_of_every_kind_become_rgb8() {
        let rgb = picture();
        assert_eq!(pixels(&png(rgb.clone())), *rgb);
        let rgba = image::RgbaImage::from_fn(WIDTH, HEIGHT, |x, y| {
            let [r, g, b] = gradient(x, y);
            Rgba([r, g, b, x as u8])
        });
        assert_eq!(pixels(&png(rgba)), *rgb, "alpha is dropped, not blended");
        let deep =
            image::ImageBuffer::from_fn(
                WIDTH,
                HEIGHT,
                |x, y| Rgb(gradient(x, y).map(|c| u16::from(c) * 257)),
            );
        assert_eq!(pixels(&png(DynamicImage::ImageRgb16(deep))), *rgb);
        let grey = image::GrayImage::from_fn(WIDTH, HEIGHT, |x, y| Luma([gradient(x, y)[2]]));
        let expected: Vec<u8> = rgb.pixels().flat_map(|pixel| [pixel.0[2]; 3]).collect();
        assert_eq!(pixels(&png(grey)), expected);
        let stripes: Vec<u8> = (0..HEIGHT)
            .flat_map(|y| (0..WIDTH).flat_map(move |x| [(x / 16 * 80) as u8, (y / 16 * 120) as u8, 0]))
            .collect();
        assert_eq!(pixels(&file("palette.png")), stripes);
    }

    #[test]
    fn the_content_decides_among_formats_that_name_a_picture() {
        let (jpeg, png) = (jpeg(), png(picture()));
        for format in
            ["", " ", "jpeg", "JPG", "png", "rgb8; jpeg compressed bgr8", "bgr8;png compressed", "jpeg\0"]
        {
            assert!(decode_compressed(format, &jpeg).is_ok(), "{format}");
            assert!(decode_compressed(format, &png).is_ok(), "{format}");
        }
        for format in ["h264", "theora", "16UC1; compressedDepth png", "webp", "jpeg2000", ";"] {
            assert!(error(format, &jpeg).contains(&format!("format \"{format}\" is not supported")));
        }
        assert!(error("\u{1b}[2J\n", &jpeg).chars().all(|c| !c.is_control()));
    }

    #[test]
    fn other_content_is_refused() {
        for data in [&b""[..], b"\xFF\xD8", b"GIF89a", b"\0\0\0\x01\x67", b"\0\0\0\x20ftypavif"] {
            assert!(error("jpeg", data).contains("begins as neither JPEG nor PNG"));
        }
    }

    /// Wherever a frame is cut, the half that is left is never shown. (A PNG may lose the mark behind its pixels.)
    #[test]
    fn a_cut_frame_is_an_error() {
        for (name, data) in [
            ("baseline", jpeg()),
            ("progressive", file("progressive.jpg")),
            ("restart", file("restart.jpg")),
            ("png", png(picture())),
        ] {
            let whole = pixels(&data);
            for len in 0..data.len() {
                match decode_compressed("", &data[..len]) {
                    Ok(image) => {
                        assert!(
                            name == "png" && image.data() == whole,
                            "{name} cut to {len} of {}",
                            data.len()
                        );
                    }
                    Err(error) if len > 40 => {
                        assert!(
                            matches!(error, ImageError::Truncated { .. }),
                            "{name} cut to {len}: {error}"
                        );
                    }
                    Err(_) => {}
                }
            }
        }
    }

    #[test]
    fn a_thumbnails_end_is_not_the_images_end() {
        let inner = jpeg();
        let mut data = inner[..2].to_vec();
        data.extend([0xFF, 0xE5]);
        data.extend((inner.len() as u16 + 2).to_be_bytes());
        data.extend(&inner);
        data.extend(&inner[2..]);
        assert_eq!(pixels(&data), pixels(&inner));
        data.truncate(data.len() - 100);
        assert!(error("jpeg", &data).contains("ends before its image does"));
    }

    #[test]
    fn padding_after_the_end_is_allowed() {
        let mut data = jpeg();
        let whole = pixels(&data);
        data.extend([0; 1000]);
        assert_eq!(pixels(&data), whole);
    }

    #[test]
    fn sizes_that_the_bytes_cannot_hold_are_refused() {
        let mut data = jpeg();
        let frame = data.windows(2).position(|marker| marker == [0xFF, 0xC0]).unwrap();
        let mut claim = |height: u16, width: u16| {
            data[frame + 5..frame + 7].copy_from_slice(&height.to_be_bytes());
            data[frame + 7..frame + 9].copy_from_slice(&width.to_be_bytes());
            error("jpeg", &data)
        };
        assert!(claim(65_500, 65_500).contains("65500x65500: sides must be 1 to 8192"));
        assert!(claim(4096, 8192).contains("more than they can hold"));

        let mut data = png(picture());
        let mut claim = |width: u32, height: u32| {
            data[16..20].copy_from_slice(&width.to_be_bytes());
            data[20..24].copy_from_slice(&height.to_be_bytes());
            error("png", &data)
        };
        assert!(claim(u32::MAX, 1).contains("4294967295x1: sides must be 1 to 8192"));
        assert!(claim(8192, 4096).contains("more than they can hold"));
        assert!(claim(0, 48).contains("0x48: sides must be"));
        assert!(claim(63, 48).contains("damaged"), "the checksum of the header");
    }

    #[test]
    fn a_damaged_frame_is_an_error_of_one_line() {
        let mut data = png(picture());
        let middle = data.len() / 2;
        data[middle] ^= 0x55;
        let shown = error("png", &data);
        assert!(shown.contains("damaged") && !shown.contains('\n'), "{shown}");

        let mut data = jpeg();
        let scan = data.windows(2).position(|marker| marker == [0xFF, 0xDA]).unwrap();
        data[scan + 40..scan + 42].copy_from_slice(&[0xFF, 0xC4]); // a table in the middle of the pixels
        assert!(error("jpeg", &data).contains("damaged"));
    }
}
