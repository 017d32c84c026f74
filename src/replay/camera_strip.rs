//! The report's camera strip: what the model saw, a row per camera slot, a column per chunk.
//!
//! Promises a bounded size: few enough columns, evenly spread, and JPEG. Called by the report only. A picture whose
//! bytes do not fit its side is shown as unreadable.

use std::fmt::Write;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;

use super::recording::{ChunkRecord, Recording};
use super::report::{escape, with_unit};
use crate::clock::seconds;

/// Most chunks whose pictures are shown.
const MAX_SEEN: usize = 24;
/// Pictures are thinned until their base64 together is no longer than this.
const MAX_SEEN_BYTES: usize = 1_200_000;
/// The pictures were made for a model, not for a gallery.
const JPEG_QUALITY: u8 = 72;

/// What the model saw: some chunks' pictures, encoded.
pub(super) struct CameraStrip<'a> {
    columns: Vec<(&'a ChunkRecord, Vec<Picture>)>,
    recorded: usize,
}

enum Picture {
    Masked,
    /// Its bytes are not `[side, side, 3]`.
    Unreadable,
    /// Base64.
    Jpeg(String),
}

impl<'a> CameraStrip<'a> {
    /// Picks and encodes.
    pub fn new(recording: &'a Recording) -> Self {
        let seen: Vec<&ChunkRecord> = recording.chunks.iter().filter(|c| c.seen.is_some()).collect();
        let every = seen.len().div_ceil(MAX_SEEN).max(1);
        let pictures = |chunk: &'a ChunkRecord| {
            let slots = chunk.seen.iter().flatten();
            (chunk, slots.map(|pixels| picture(pixels.as_deref(), chunk.seen_side)).collect())
        };
        let mut columns: Vec<(&ChunkRecord, Vec<Picture>)> =
            seen.iter().copied().step_by(every).map(pictures).collect();
        let size = |columns: &[(&ChunkRecord, Vec<Picture>)]| -> usize {
            let of = |p: &Picture| if let Picture::Jpeg(base64) = p { base64.len() } else { 0 };
            columns.iter().flat_map(|(_, pictures)| pictures).map(of).sum()
        };
        while columns.len() > 1 && size(&columns) > MAX_SEEN_BYTES {
            let mut keep = false;
            columns.retain(|_| {
                keep = !keep;
                keep
            });
        }
        Self { columns, recorded: seen.len() }
    }

    /// What was left out, for a person.
    pub fn remark(&self) -> Option<String> {
        let shown = self.columns.len();
        (shown < self.recorded)
            .then(|| format!("pictures: of {shown} of the {} chunks recorded with them", self.recorded))
    }

    /// The strip: names, then one column per chunk.
    pub fn html(&self, recording: &Recording) -> String {
        if self.columns.is_empty() {
            return "<p class=\"none\">No pictures were recorded.</p>".to_owned();
        }
        let names: String =
            recording.cameras.iter().map(|name| format!("<div>{}</div>", escape(name))).collect();
        let columns: String =
            self.columns.iter().map(|(chunk, pictures)| column(recording, chunk, pictures)).collect();
        format!(
            "<div class=\"strip\" tabindex=\"0\" role=\"region\" aria-label=\"What the model saw, by time\">\
             <div class=\"slots\" aria-hidden=\"true\"><div class=\"when\"></div>{names}</div>{columns}</div>"
        )
    }
}

fn column(recording: &Recording, chunk: &ChunkRecord, pictures: &[Picture]) -> String {
    let t = seconds(chunk.observed.since(recording.start));
    let mut out = format!(
        "<div class=\"seen\" data-t=\"{t:.4}\"><button type=\"button\" class=\"when\" \
         title=\"Chunk {id}: show this time in the plots\">{t:.2} s <span>#{id}</span></button>",
        id = chunk.id
    );
    for (slot, picture) in pictures.iter().enumerate() {
        let name =
            recording.cameras.get(slot).map(|name| escape(name)).unwrap_or_else(|| format!("slot {slot}"));
        let age = chunk.image_age_ms.get(slot).copied().flatten();
        let caption = with_unit(age, 0, "ms old");
        // Writing to a String cannot fail.
        let _ = match picture {
            Picture::Jpeg(base64) => write!(
                out,
                "<figure><img alt=\"{name} at {t:.2} s\" title=\"{name}\" src=\"data:image/jpeg;base64,{base64}\">\
                 <figcaption data-slot=\"{name}\">{caption}</figcaption></figure>"
            ),
            Picture::Masked => write!(
                out,
                "<figure class=\"masked\" title=\"{name}: masked, the model sees nothing here\"><span>masked</span>\
                 <figcaption data-slot=\"{name}\">no image</figcaption></figure>"
            ),
            Picture::Unreadable => write!(
                out,
                "<figure class=\"masked\" title=\"{name}\"><span>unreadable</span><figcaption data-slot=\"{name}\">{caption}</figcaption>\
                 </figure>"
            ),
        };
    }
    out.push_str("</div>");
    out
}

fn picture(pixels: Option<&[u8]>, side: u32) -> Picture {
    let Some(pixels) = pixels else { return Picture::Masked };
    if u64::from(side).pow(2).checked_mul(3) != Some(pixels.len() as u64) {
        return Picture::Unreadable;
    }
    let mut jpeg = Vec::new();
    let mut encoder = JpegEncoder::new_with_quality(&mut jpeg, JPEG_QUALITY);
    match encoder.encode(pixels, side, side, ExtendedColorType::Rgb8) {
        Ok(()) => Picture::Jpeg(BASE64_STANDARD.encode(&jpeg)),
        Err(_) => Picture::Unreadable, // no side, or more than JPEG can say
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::synthetic;

    #[test]
    fn masked_and_unreadable_slots_say_so() {
        let mut recording = synthetic::recording(1, 1);
        recording.chunks[0].seen = Some(vec![None, Some(vec![0; 7]), Some(vec![128; 12])]);
        recording.chunks[0].seen_side = 2;
        recording.chunks[1].seen = Some(vec![Some(vec![])]);
        recording.chunks[1].seen_side = 0;
        let strip = CameraStrip::new(&recording);
        let shows = |column: usize| -> Vec<&str> {
            let name = |p: &Picture| match p {
                Picture::Masked => "masked",
                Picture::Unreadable => "unreadable",
                Picture::Jpeg(_) => "jpeg",
            };
            strip.columns[column].1.iter().map(name).collect()
        };
        assert_eq!(shows(0), ["masked", "unreadable", "jpeg"]);
        assert_eq!(shows(1), ["unreadable"]);
        assert!(strip.html(&recording).contains("<span>masked</span>"));
    }

    #[test]
    fn pictures_decode_to_what_the_model_saw() {
        let recording = synthetic::recording(1, 1);
        let strip = CameraStrip::new(&recording);
        let Picture::Jpeg(base64) = &strip.columns[0].1[1] else { panic!("no picture") };
        let jpeg = BASE64_STANDARD.decode(base64).unwrap();
        let shown = image::load_from_memory(&jpeg).unwrap().into_rgb8();
        let seen = recording.chunks[0].seen.as_ref().unwrap()[1].as_ref().unwrap();
        let off: u64 = shown.as_raw().iter().zip(seen).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
        assert_eq!(shown.as_raw().len(), seen.len());
        assert!(off / (seen.len() as u64) < 6, "off by {off} in all");
    }

    #[test]
    fn pictures_that_do_not_compress_are_thinned_until_they_fit() {
        let mut recording = synthetic::recording(6, 1);
        let mut state = 1_u32;
        let mut static_noise = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        for chunk in &mut recording.chunks {
            for slot in chunk.seen.iter_mut().flatten().flatten() {
                slot.fill_with(&mut static_noise);
            }
        }
        let strip = CameraStrip::new(&recording);
        let shown = strip.columns.len();
        assert!((2..MAX_SEEN).contains(&shown), "{shown} columns");
        assert!(strip.html(&recording).len() < MAX_SEEN_BYTES + 100_000);
        assert!(strip.remark().is_some_and(|r| r.contains(&format!("of {shown} of the 42 chunks"))));
    }
}
