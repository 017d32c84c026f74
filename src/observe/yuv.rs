//! Rows of YUV pixels to rows of rgb8, with the numbers that OpenCV (and so every ROS tool) gets.
//!
//! BT.601, limited range, in integers with [`SHIFT`] fractional bits. With `y = max(Y − 16, 0)`, `u = U − 128`,
//! `v = V − 128` and coefficients scaled by 2²⁰:
//! ```text
//! R = clamp((1220542 y               + 1673527 v + 2¹⁹) >> 20)      1.164 y           + 1.596 v
//! G = clamp((1220542 y −  409993 u −  852492 v + 2¹⁹) >> 20)      1.164 y − 0.391 u − 0.813 v
//! B = clamp((1220542 y + 2116026 u               + 2¹⁹) >> 20)      1.164 y + 2.018 u
//! ```
//! clamped to 0 ..= 255. Called by [`super::image`] with rows whose lengths it has checked.

const SHIFT: u32 = 20;
const HALF: i32 = 1 << (SHIFT - 1);
const Y: i32 = 1_220_542;
const V_TO_R: i32 = 1_673_527;
const U_TO_G: i32 = -409_993;
const V_TO_G: i32 = -852_492;
const U_TO_B: i32 = 2_116_026;

/// What one pair of chroma samples adds to each channel; shared by the pixels that it covers.
#[derive(Clone, Copy)]
struct Chroma {
    r: i32,
    g: i32,
    b: i32,
}

impl Chroma {
    fn new(u: u8, v: u8) -> Self {
        let (u, v) = (i32::from(u) - 128, i32::from(v) - 128);
        Self { r: V_TO_R * v + HALF, g: U_TO_G * u + V_TO_G * v + HALF, b: U_TO_B * u + HALF }
    }

    /// At most 239 · 1.165 + 127 · 2.018 + ½ < 2¹¹ before the shift's 20 bits: fits.
    fn rgb(self, y: u8) -> [u8; 3] {
        let y = (i32::from(y) - 16).max(0) * Y;
        let channel = |chroma: i32| ((y + chroma) >> SHIFT).clamp(0, 255) as u8; // clamped to its range
        [channel(self.r), channel(self.g), channel(self.b)]
    }

    /// Two neighbours that share this chroma.
    fn write_pair(self, y: [u8; 2], rgb: &mut [u8; 6]) {
        let ([r0, g0, b0], [r1, g1, b1]) = (self.rgb(y[0]), self.rgb(y[1]));
        *rgb = [r0, g0, b0, r1, g1, b1];
    }
}

/// 4:2:2 packed as Y U Y V: 4 bytes to 2 pixels.
pub(super) fn yuyv_row(src: &[u8], rgb: &mut [u8]) {
    for (&[y0, u, y1, v], rgb) in src.as_chunks().0.iter().zip(rgb.as_chunks_mut().0) {
        Chroma::new(u, v).write_pair([y0, y1], rgb);
    }
}

/// 4:2:2 packed as U Y V Y: 4 bytes to 2 pixels.
pub(super) fn uyvy_row(src: &[u8], rgb: &mut [u8]) {
    for (&[u, y0, v, y1], rgb) in src.as_chunks().0.iter().zip(rgb.as_chunks_mut().0) {
        Chroma::new(u, v).write_pair([y0, y1], rgb);
    }
}

/// 4:2:0 in two planes: a row of luma with its row of interleaved chroma, U V U V (nv12).
pub(super) fn nv12_row(luma: &[u8], chroma: &[u8], rgb: &mut [u8]) {
    let pairs = luma.as_chunks().0.iter().zip(chroma.as_chunks().0);
    for ((&y, &[u, v]), rgb) in pairs.zip(rgb.as_chunks_mut().0) {
        Chroma::new(u, v).write_pair(y, rgb);
    }
}

/// As [`nv12_row`] with V U V U (nv21).
pub(super) fn nv21_row(luma: &[u8], chroma: &[u8], rgb: &mut [u8]) {
    let pairs = luma.as_chunks().0.iter().zip(chroma.as_chunks().0);
    for ((&y, &[v, u]), rgb) in pairs.zip(rgb.as_chunks_mut().0) {
        Chroma::new(u, v).write_pair(y, rgb);
    }
}
