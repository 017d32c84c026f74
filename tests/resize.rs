//! Both resizes against what openpi (Pillow 13) and LeRobot (torch 2.7) made of the same images.

#![allow(clippy::unwrap_used, clippy::panic)] // a test that cannot go on fails

use std::path::PathBuf;

use pi05_thor::{
    model::Pixels,
    observe::RgbImage,
    policy::resize::{Resize, resize_with_pad},
};
use safetensors::SafeTensors;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// spec/PI05.md §2.2 allows 1.4e-6; one rounding in the wrong place already costs that much.
const TORCH_TOLERANCE: f32 = 5e-7;

fn fixture(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/fixtures/data").join(name);
    std::fs::read(path).unwrap()
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn pillow(image: &RgbImage, side: u32) -> Vec<u8> {
    match resize_with_pad(image, side, Resize::Pillow) {
        Ok(Pixels::U8(bytes)) => bytes,
        other => panic!("{other:?}"),
    }
}

fn torch(image: &RgbImage, side: u32) -> Vec<f32> {
    match resize_with_pad(image, side, Resize::Torch) {
        Ok(Pixels::F32(floats)) => floats,
        other => panic!("{other:?}"),
    }
}

/// The procedural image that the vectors were made from: bytes of a splitmix64 stream seeded with the FNV-1a of its
/// name, each averaged (rounding down) with its neighbours above and to the left, around the border.
fn procedural(width: usize, height: usize) -> RgbImage {
    let name = format!("resize.{height}x{width}");
    let seed = name
        .bytes()
        .fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3));
    let noise = |y: usize, x: usize, channel: usize| {
        let index = (y * width + x) * 3 + channel;
        let mut s = seed.wrapping_add((index as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        s = (s ^ s >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        s = (s ^ s >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        (s ^ s >> 31) >> 56
    };
    let mut data = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        let above = (y + height - 1) % height;
        for x in 0..width {
            let left = (x + width - 1) % width;
            for c in 0..3 {
                let sum = noise(y, x, c) + noise(above, x, c) + noise(y, left, c) + noise(above, left, c);
                data.push((sum / 4) as u8);
            }
        }
    }
    RgbImage::new(width as u32, height as u32, data).unwrap()
}

/// Eleven sizes from 84x84 to 1920x1080, up and down, wide and tall: Pillow's every byte; torch's mean and two pixels.
#[test]
fn eleven_camera_sizes_to_224() {
    let recorded: Value = serde_json::from_slice(&fixture("data.json")).unwrap();
    let recorded = recorded["resize"].as_array().unwrap();
    assert_eq!(recorded.len(), 11);
    for case in recorded {
        let side = |key: &str| case[key].as_u64().unwrap() as usize;
        let (width, height) = (side("w"), side("h"));
        let image = procedural(width, height);
        assert_eq!(sha256(image.data()), case["input_sha256"], "the input {width}x{height} is made wrongly");
        assert_eq!(sha256(&pillow(&image, 224)), case["pil_u8_sha256"], "{width}x{height}");

        let floats = torch(&image, 224);
        let mean = floats.iter().copied().map(f64::from).sum::<f64>() / floats.len() as f64;
        assert!((mean - case["torch_f32_mean"].as_f64().unwrap()).abs() < 1e-6, "{width}x{height}: {mean}");
        for (key, y, x) in [("torch_row112_col100", 112, 100), ("torch_row60_col200", 60, 200)] {
            let pixel = &floats[(y * 224 + x) * 3..][..3];
            for (ours, theirs) in pixel.iter().zip(case[key].as_array().unwrap()) {
                let theirs = theirs.as_f64().unwrap() as f32;
                assert!((ours - theirs).abs() <= TORCH_TOLERANCE, "{width}x{height} {key}: {ours} {theirs}");
            }
        }
    }
}

/// Four sizes to 56, every value of both.
#[test]
fn four_small_sizes_to_56() {
    let file = fixture("data.safetensors");
    let recorded = SafeTensors::deserialize(&file).unwrap();
    for (height, width) in [(100, 80), (30, 40), (56, 57), (61, 37)] {
        let tensor =
            |what: &str| recorded.tensor(&format!("resize56.{height}x{width}.{what}")).unwrap().data();
        let image = RgbImage::new(width, height, tensor("in").to_vec()).unwrap();
        assert_eq!(pillow(&image, 56), tensor("pil"), "{height}x{width}");

        let theirs = tensor("torch").as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
        let worst = torch(&image, 56).into_iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst <= TORCH_TOLERANCE, "{height}x{width}: {worst:e}");
    }
}

/// An image that fits already: openpi's bytes are untouched, LeRobot's become floats all the same.
#[test]
fn an_image_of_the_right_size_is_not_resized() {
    let image = procedural(224, 224);
    assert_eq!(pillow(&image, 224), image.data());
    let expected: Vec<f32> = image.data().iter().map(|&byte| f32::from(byte) / 255.0 * 2.0 - 1.0).collect();
    assert_eq!(torch(&image, 224), expected);
}
