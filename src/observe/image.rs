//! Camera messages to [`RgbImage`]: every encoding that ROS cameras send, with their padding and their lies.
//!
//! Called with the fields of `sensor_msgs/Image` ([`decode_raw`]) or `sensor_msgs/CompressedImage`
//! ([`decode_compressed`]) by whoever receives them. Sizes are checked against the bytes that are there before
//! anything is allocated; a message is decoded whole or refused with one line, never half.

use super::{RgbImage, quoted, yuv};

pub use super::compressed::decode_compressed;

/// Most pixels per row or column. Cameras on robots end at 4K; this leaves a factor of two.
pub const MAX_SIDE: u32 = 8192;
/// Most pixels of an image: 32 Mi, 96 MiB decoded.
pub const MAX_PIXELS: u64 = 32 << 20;

/// The fields of `sensor_msgs/Image` that hold the picture.
#[derive(Clone, Copy, Debug)]
pub struct RawImage<'a> {
    /// Pixels per row.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// `rgb8`, `bgr8`, …: see [`decode_raw`].
    pub encoding: &'a str,
    /// Says nothing about encodings of 8-bit samples, which are all that there is here.
    pub is_bigendian: bool,
    /// Bytes from the start of a row to the start of the next.
    pub step: u32,
    /// `height` rows; for nv12 and nv21 `height / 2` rows of chroma follow, with the same step.
    pub data: &'a [u8],
}

/// Why an image was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// Zero, or above [`MAX_SIDE`] or [`MAX_PIXELS`].
    #[error("image of {width}x{height}: sides must be 1 to {MAX_SIDE}, together at most {MAX_PIXELS} pixels")]
    Size {
        /// Claimed pixels per row.
        width: u32,
        /// Claimed rows.
        height: u32,
    },
    /// An encoding that is not decoded.
    #[error("image encoding {encoding} is not supported: set the camera to one of {}", encodings())]
    UnknownEncoding {
        /// As the message has it, quoted.
        encoding: String,
    },
    /// Pixels share chroma in pairs, but there is one too many.
    #[error("{encoding} image of {width}x{height}: {even} must be even")]
    Odd {
        /// The encoding.
        encoding: &'static str,
        /// Pixels per row.
        width: u32,
        /// Rows.
        height: u32,
        /// `width`, or `width and height`.
        even: &'static str,
    },
    /// Rows overlap.
    #[error("{encoding} image {width} pixels wide: step is {step}, a row takes {row_bytes} bytes")]
    Step {
        /// The encoding.
        encoding: &'static str,
        /// Pixels per row.
        width: u32,
        /// Claimed bytes from row to row.
        step: u32,
        /// Bytes that the pixels of a row take.
        row_bytes: usize,
    },
    /// Less data than pixels.
    #[error("{encoding} image of {width}x{height}, step {step}: {found} bytes of data, needs {expected}")]
    Short {
        /// The encoding.
        encoding: &'static str,
        /// Pixels per row.
        width: u32,
        /// Rows.
        height: u32,
        /// Bytes from row to row.
        step: u32,
        /// Bytes there are.
        found: usize,
        /// Bytes that it takes to the last pixel.
        expected: u64,
    },
    /// The `format` of a compressed image names neither JPEG nor PNG.
    #[error("compressed image format {format} is not supported: set the camera to jpeg or png")]
    UnknownFormat {
        /// As the message has it, quoted.
        format: String,
    },
    /// The bytes of a compressed image are neither JPEG nor PNG.
    #[error("compressed image of {len} bytes (format {format}) begins as neither JPEG nor PNG")]
    UnknownContent {
        /// As the message has it, quoted.
        format: String,
        /// Bytes of data.
        len: usize,
    },
    /// More pixels than so many compressed bytes can stand for.
    #[error("{container} of {len} bytes claims {width}x{height} pixels: more than they can hold")]
    Implausible {
        /// `JPEG` or `PNG`.
        container: &'static str,
        /// Bytes of data.
        len: usize,
        /// Claimed pixels per row.
        width: u32,
        /// Claimed rows.
        height: u32,
    },
    /// The end is missing.
    #[error("{container} of {len} bytes ends before its image does: the frame was cut on its way")]
    Truncated {
        /// `JPEG` or `PNG`.
        container: &'static str,
        /// Bytes of data.
        len: usize,
    },
    /// The decoder gave up.
    #[error("{container} of {len} bytes is damaged: {reason}")]
    Damaged {
        /// `JPEG` or `PNG`.
        container: &'static str,
        /// Bytes of data.
        len: usize,
        /// What the decoder says, one line.
        reason: String,
    },
}

/// How pixels lie in the bytes. Names as in `sensor_msgs/image_encodings`.
#[derive(Clone, Copy)]
enum Layout {
    Rgb,
    Bgr,
    Rgba,
    Bgra,
    Mono,
    Yuyv,
    Uyvy,
    Nv12,
    Nv21,
}

/// Every name that [`RawImage::encoding`] may have. OpenCV's type names mean its channel order, as in `cv_bridge`;
/// `yuv422` is the old name of `uyvy`, as ROS defines it.
const ENCODINGS: [(&str, Layout); 14] = [
    ("rgb8", Layout::Rgb),
    ("bgr8", Layout::Bgr),
    ("rgba8", Layout::Rgba),
    ("bgra8", Layout::Bgra),
    ("mono8", Layout::Mono),
    ("8UC1", Layout::Mono),
    ("8UC3", Layout::Bgr),
    ("8UC4", Layout::Bgra),
    ("yuyv", Layout::Yuyv),
    ("yuv422_yuy2", Layout::Yuyv),
    ("uyvy", Layout::Uyvy),
    ("yuv422", Layout::Uyvy),
    ("nv12", Layout::Nv12),
    ("nv21", Layout::Nv21),
];

fn encodings() -> String {
    ENCODINGS.map(|(name, _)| name).join(", ")
}

/// Decodes a raw image. The last row may lack its padding; bytes after it are ignored.
///
/// | encoding | becomes rgb8 by |
/// |---|---|
/// | rgb8 | a copy |
/// | bgr8, 8UC3, rgba8, bgra8, 8UC4 | reordering; alpha is dropped |
/// | mono8, 8UC1 | filling all three channels |
/// | yuyv, yuv422_yuy2, uyvy, yuv422, nv12, nv21 | BT.601, limited range, in OpenCV's integers (formula in `yuv.rs`) |
pub fn decode_raw(raw: &RawImage<'_>) -> Result<RgbImage, ImageError> {
    let &(encoding, layout) = ENCODINGS
        .iter()
        .find(|(name, _)| *name == raw.encoding)
        .ok_or_else(|| ImageError::UnknownEncoding { encoding: quoted(raw.encoding) })?;
    let rows = Rows::check(raw, encoding, layout)?;
    let rgb = match layout {
        Layout::Rgb if rows.step == rows.row_bytes => raw.data[..rows.row_bytes * rows.height].to_vec(),
        Layout::Rgb => rows.convert(|src, rgb| rgb.copy_from_slice(src)),
        Layout::Bgr => rows.convert(bgr_row),
        Layout::Rgba => rows.convert(rgba_row),
        Layout::Bgra => rows.convert(bgra_row),
        Layout::Mono => rows.convert(mono_row),
        Layout::Yuyv => rows.convert(yuv::yuyv_row),
        Layout::Uyvy => rows.convert(yuv::uyvy_row),
        Layout::Nv12 => rows.convert_planar(yuv::nv12_row),
        Layout::Nv21 => rows.convert_planar(yuv::nv21_row),
    };
    RgbImage::new(raw.width, raw.height, rgb).ok_or(ImageError::Size { width: raw.width, height: raw.height })
}

/// Refuses sizes that no camera sends.
pub(super) fn check_size(width: u32, height: u32) -> Result<(), ImageError> {
    let sides = 1..=MAX_SIDE;
    let pixels = u64::from(width) * u64::from(height);
    if sides.contains(&width) && sides.contains(&height) && pixels <= MAX_PIXELS {
        Ok(())
    } else {
        Err(ImageError::Size { width, height })
    }
}

/// The rows of a raw image, checked: `data` holds every pixel of them.
struct Rows<'a> {
    width: usize,
    height: usize,
    step: usize,
    /// Bytes that the pixels of a row take, at most `step`.
    row_bytes: usize,
    data: &'a [u8],
}

impl<'a> Rows<'a> {
    fn check(raw: &RawImage<'a>, encoding: &'static str, layout: Layout) -> Result<Self, ImageError> {
        let &RawImage { width, height, step, data, .. } = raw;
        check_size(width, height)?;
        let (bytes_per_pixel, even_width, planar) = match layout {
            Layout::Rgb | Layout::Bgr => (3, false, false),
            Layout::Rgba | Layout::Bgra => (4, false, false),
            Layout::Mono => (1, false, false),
            Layout::Yuyv | Layout::Uyvy => (2, true, false),
            Layout::Nv12 | Layout::Nv21 => (1, true, true),
        };
        if (even_width && width % 2 != 0) || (planar && height % 2 != 0) {
            let even = if planar { "width and height" } else { "width" };
            return Err(ImageError::Odd { encoding, width, height, even });
        }
        let row_bytes = width as usize * bytes_per_pixel;
        if (step as usize) < row_bytes {
            return Err(ImageError::Step { encoding, width, step, row_bytes });
        }
        let rows = if planar { height / 2 * 3 } else { height };
        let expected = u64::from(rows - 1) * u64::from(step) + row_bytes as u64;
        if (data.len() as u64) < expected {
            return Err(ImageError::Short { encoding, width, height, step, found: data.len(), expected });
        }
        Ok(Self { width: width as usize, height: height as usize, step: step as usize, row_bytes, data })
    }

    /// Each row of source bytes to a row of rgb8.
    fn convert(&self, row: impl Fn(&[u8], &mut [u8])) -> Vec<u8> {
        let mut rgb = vec![0; 3 * self.width * self.height];
        for (rgb, src) in rgb.chunks_exact_mut(3 * self.width).zip(self.data.chunks(self.step)) {
            row(&src[..self.row_bytes], rgb);
        }
        rgb
    }

    /// The same where chroma has its own plane behind the luma, with one row for two rows of it.
    fn convert_planar(&self, row: impl Fn(&[u8], &[u8], &mut [u8])) -> Vec<u8> {
        let mut rgb = vec![0; 3 * self.width * self.height];
        let (luma, chroma) = self.data.split_at(self.step * self.height);
        let pairs = rgb.chunks_exact_mut(3 * self.width * 2).zip(luma.chunks(self.step * 2));
        for ((rgb, luma), chroma) in pairs.zip(chroma.chunks(self.step)) {
            for (rgb, luma) in rgb.chunks_exact_mut(3 * self.width).zip(luma.chunks(self.step)) {
                row(&luma[..self.width], &chroma[..self.width], rgb);
            }
        }
        rgb
    }
}

fn bgr_row(src: &[u8], rgb: &mut [u8]) {
    for (&[b, g, r], rgb) in src.as_chunks().0.iter().zip(rgb.as_chunks_mut().0) {
        *rgb = [r, g, b];
    }
}

fn rgba_row(src: &[u8], rgb: &mut [u8]) {
    for (&[r, g, b, _], rgb) in src.as_chunks().0.iter().zip(rgb.as_chunks_mut().0) {
        *rgb = [r, g, b];
    }
}

fn bgra_row(src: &[u8], rgb: &mut [u8]) {
    for (&[b, g, r, _], rgb) in src.as_chunks().0.iter().zip(rgb.as_chunks_mut().0) {
        *rgb = [r, g, b];
    }
}

fn mono_row(src: &[u8], rgb: &mut [u8]) {
    for (&grey, rgb) in src.iter().zip(rgb.as_chunks_mut().0) {
        *rgb = [grey; 3];
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;

    const NAMES: [&str; 14] = [
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

    /// Noise: the top bytes of a multiplicative sequence.
    fn noise(len: usize) -> Vec<u8> {
        (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
    }

    fn row_bytes(encoding: &str, width: u32) -> u32 {
        width
            * match encoding {
                "rgb8" | "bgr8" | "8UC3" => 3,
                "rgba8" | "bgra8" | "8UC4" => 4,
                "mono8" | "8UC1" | "nv12" | "nv21" => 1,
                _ => 2,
            }
    }

    fn rows(encoding: &str, height: u32) -> u32 {
        if encoding.starts_with("nv") { height * 3 / 2 } else { height }
    }

    fn raw<'a>(encoding: &'a str, width: u32, height: u32, step: u32, data: &'a [u8]) -> RawImage<'a> {
        RawImage { width, height, encoding, is_bigendian: false, step, data }
    }

    fn pixels(encoding: &str, width: u32, height: u32, data: &[u8]) -> Vec<u8> {
        let image = decode_raw(&raw(encoding, width, height, row_bytes(encoding, width), data)).unwrap();
        assert_eq!((image.width(), image.height()), (width, height));
        image.data().to_vec()
    }

    fn error(image: &RawImage<'_>) -> String {
        decode_raw(image).unwrap_err().to_string()
    }

    #[test]
    fn channels_go_where_their_names_say() {
        assert_eq!(pixels("rgb8", 2, 1, &[1, 2, 3, 4, 5, 6]), [1, 2, 3, 4, 5, 6]);
        for encoding in ["bgr8", "8UC3"] {
            assert_eq!(pixels(encoding, 2, 1, &[3, 2, 1, 6, 5, 4]), [1, 2, 3, 4, 5, 6]);
        }
        assert_eq!(pixels("rgba8", 2, 1, &[1, 2, 3, 9, 4, 5, 6, 9]), [1, 2, 3, 4, 5, 6]);
        for encoding in ["bgra8", "8UC4"] {
            assert_eq!(pixels(encoding, 2, 1, &[3, 2, 1, 9, 6, 5, 4, 9]), [1, 2, 3, 4, 5, 6]);
        }
        for encoding in ["mono8", "8UC1"] {
            assert_eq!(pixels(encoding, 1, 2, &[7, 8]), [7, 7, 7, 8, 8, 8]);
        }
    }

    /// Made with OpenCV 5.0 from the same noise, `cvtColor(…, COLOR_YUV2RGB_YUY2 | _UYVY | _NV12 | _NV21)`.
    #[test]
    fn yuv_is_opencvs_to_the_bit() {
        for (encodings, expected) in [
            (
                &["yuyv", "yuv422_yuy2"][..],
                "d8638766c735f97853512722ff327dff52288ae90f3b64c35f46af42f720a6f0",
            ),
            (&["uyvy", "yuv422"], "fdc5c5920aad6e5d2251a0319b50cb09fe4de0827d05eb089d1b39d737299775"),
            (&["nv12"], "2f9bc2ac317b1b75dd28a0c1e406a14c0f935547caa67df7d647bcc1cacb80e9"),
            (&["nv21"], "e21dc8dbf2bd07bdfe9ee0a2a2c8ed5cbd0b7078494d4c6527cd0b4b64d4c366"),
        ] {
            for encoding in encodings {
                let rgb = pixels(encoding, 64, 48, &noise(64 * 48 * 2));
                let hash: String = Sha256::digest(rgb).iter().map(|byte| format!("{byte:02x}")).collect();
                assert_eq!(hash, expected, "{encoding}");
            }
        }
    }

    #[test]
    fn yuv_black_white_and_the_ends_of_the_range() {
        assert_eq!(pixels("yuyv", 2, 1, &[16, 128, 235, 128]), [0, 0, 0, 255, 255, 255]);
        assert_eq!(pixels("yuyv", 2, 1, &[0, 128, 255, 128]), [0, 0, 0, 255, 255, 255]);
        assert_eq!(pixels("uyvy", 2, 1, &[90, 81, 240, 81]), [254, 0, 0, 254, 0, 0], "BT.601 red");
    }

    /// Whatever lies in the padding, and whether the last row has any.
    #[test]
    fn padding_changes_nothing() {
        for encoding in NAMES {
            let (width, height) = (6, 4);
            let (packed, rows) = (row_bytes(encoding, width) as usize, rows(encoding, height) as usize);
            let tight = noise(packed * rows);
            let step = packed + 5;
            let mut padded = vec![0xAA; step * rows];
            for (to, from) in padded.chunks_mut(step).zip(tight.chunks(packed)) {
                to[..packed].copy_from_slice(from);
            }
            let expected = pixels(encoding, width, height, &tight);
            for data in [&padded[..], &padded[..padded.len() - 5]] {
                let image = decode_raw(&raw(encoding, width, height, step as u32, data)).unwrap();
                assert_eq!(image.data(), expected, "{encoding}");
            }
            let cut = &padded[..padded.len() - 6];
            let error = error(&raw(encoding, width, height, step as u32, cut));
            let needs = format!("{} bytes of data, needs {}", cut.len(), cut.len() + 1);
            assert!(error.contains(&needs), "{encoding}: {error}");
        }
    }

    #[test]
    fn sizes_that_no_camera_has_are_refused() {
        for (width, height) in [(0, 4), (4, 0), (8193, 1), (1, 8193), (8192, 4097), (u32::MAX, u32::MAX)] {
            for encoding in ["rgb8", "nv12", "yuyv"] {
                let error = error(&raw(encoding, width, height, u32::MAX, &[0; 64]));
                assert!(error.contains(&format!("{width}x{height}: sides must be 1 to 8192")), "{error}");
            }
        }
        let error = error(&raw("rgb8", 8192, 4096, u32::MAX, &[0; 64]));
        let needs = 4095 * u64::from(u32::MAX) + 3 * 8192;
        assert!(error.contains(&format!("64 bytes of data, needs {needs}")), "{error}");
    }

    #[test]
    fn rows_that_overlap_are_refused() {
        let data = noise(1000);
        assert!(error(&raw("rgb8", 10, 2, 29, &data)).contains("step is 29, a row takes 30 bytes"));
        assert!(error(&raw("bgra8", 10, 2, 0, &data)).contains("step is 0, a row takes 40 bytes"));
    }

    #[test]
    fn half_pixel_pairs_are_refused() {
        let data = noise(1000);
        assert!(error(&raw("yuyv", 5, 4, 20, &data)).contains("yuyv image of 5x4: width must be even"));
        assert!(error(&raw("nv21", 6, 5, 20, &data)).contains("width and height must be even"));
        assert!(decode_raw(&raw("uyvy", 6, 5, 20, &data)).is_ok());
    }

    #[test]
    fn an_unknown_encoding_is_named_with_those_that_are_known() {
        for encoding in ["", "bayer_rggb8", "16UC1", "RGB8", "mono16"] {
            let error = error(&raw(encoding, 2, 2, 64, &[0; 128]));
            assert!(error.contains(&format!("encoding \"{encoding}\" is not supported")), "{error}");
            assert!(NAMES.iter().all(|name| error.contains(name)), "{error}");
        }
        let hostile = "\u{1b}[2J\u{202e}\n".repeat(100_000);
        let error = error(&raw(&hostile, 2, 2, 64, &[0; 128]));
        assert!(error.len() < 300, "{error}");
        assert!(!error.chars().any(|c| c.is_control() || c == '\u{202e}'), "{error}");
    }
}
