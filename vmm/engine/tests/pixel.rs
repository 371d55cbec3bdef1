// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Conversion: exact where it only rearranges, and close to BT.601's formula from and to RGB.

use pinbed_abi::wire;
use pinbed_engine::pixel::{Layout, convert};

fn layout(fourcc: &[u8; 4], width: u32, height: u32) -> Layout {
    let stride = match fourcc {
        b"YUYV" => width * 2,
        b"RGB3" => width * 3,
        _ => width,
    };
    Layout::from_wire(&wire::Format {
        fourcc: u32::from_le_bytes(*fourcc).into(),
        width: width.into(),
        height: height.into(),
        stride: stride.into(),
    })
    .unwrap()
}

/// All values of a byte, in no order that a shift would keep.
fn image(layout: &Layout) -> Vec<u8> {
    let mut state = 1u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(next)
        .take(layout.packed_size())
        .collect()
}

fn converted(from: &[u8; 4], to: &[u8; 4], width: u32, height: u32, image: &[u8]) -> Vec<u8> {
    let to = layout(to, width, height);
    convert(&layout(from, width, height), &to, image).unwrap()
}

/// Even sizes around the widths at which vector code changes step.
const SIZES: [(u32, u32); 7] = [(2, 2), (6, 4), (16, 2), (30, 6), (34, 2), (66, 4), (130, 2)];

#[test]
fn the_same_format_is_the_same_image() {
    for fourcc in [b"GREY", b"NV12", b"YUYV", b"RGB3"] {
        let image = image(&layout(fourcc, 6, 4));
        assert_eq!(converted(fourcc, fourcc, 6, 4, &image), image);
    }
}

#[test]
fn luma_is_unchanged_between_grey_nv12_and_yuyv() {
    for (width, height) in SIZES {
        let luma = image(&layout(b"GREY", width, height));
        for fourcc in [b"NV12", b"YUYV"] {
            let colour = converted(b"GREY", fourcc, width, height, &luma);
            let back = converted(fourcc, b"GREY", width, height, &colour);
            assert_eq!(back, luma);
            // Grey has no chroma, so what it becomes has a neutral one.
            let chroma: Vec<u8> = match fourcc {
                b"NV12" => colour[luma.len()..].to_vec(),
                _ => colour.iter().skip(1).step_by(2).copied().collect(),
            };
            assert!(chroma.iter().all(|chroma| *chroma == 128));
        }
        let nv12 = image(&layout(b"NV12", width, height));
        let yuyv = converted(b"NV12", b"YUYV", width, height, &nv12);
        let of_yuyv = yuyv.iter().step_by(2);
        assert!(of_yuyv.eq(&nv12[..luma.len()]));
        // Chroma lines are repeated, and the mean of two equal lines is the line.
        assert_eq!(converted(b"YUYV", b"NV12", width, height, &yuyv), nv12);
    }
}

#[test]
fn nv12_chroma_is_the_rounded_mean_of_two_lines() {
    let yuyv = [1, 10, 2, 20, 3, 13, 4, 255];
    let nv12 = converted(b"YUYV", b"NV12", 2, 2, &yuyv);
    assert_eq!(nv12, [1, 2, 3, 4, 12, 138]);
}

/// BT.601, limited range.
fn to_yuv(rgb: [f64; 3]) -> [f64; 3] {
    let [r, g, b] = rgb;
    let y = 0.299 * r + 0.587 * g + 0.114 * b;
    [
        16.0 + y * 219.0 / 255.0,
        128.0 + (b - y) / 1.772 * 224.0 / 255.0,
        128.0 + (r - y) / 1.402 * 224.0 / 255.0,
    ]
}

fn to_rgb(yuv: [u8; 3]) -> [f64; 3] {
    let [y, u, v] = yuv.map(f64::from);
    let y = (y - 16.0) * 255.0 / 219.0;
    let (u, v) = ((u - 128.0) * 255.0 / 224.0, (v - 128.0) * 255.0 / 224.0);
    let r = y + 1.402 * v;
    let b = y + 1.772 * u;
    [r, (y - 0.299 * r - 0.114 * b) / 0.587, b].map(|value| value.clamp(0.0, 255.0))
}

fn close(what: &str, a: u8, b: f64) {
    assert!((f64::from(a) - b).abs() <= 1.6, "{what}: {a} is not {b:.2}");
}

/// Luma and chroma of a pixel.
fn at(fourcc: &[u8; 4], image: &[u8], (width, height): (u32, u32), x: usize, y: usize) -> [u8; 3] {
    let (width, height) = (width as usize, height as usize);
    let even = x / 2 * 2;
    let chroma = |line: usize| width * height + line * width + even;
    match fourcc {
        b"GREY" => [image[y * width + x], 128, 128],
        b"NV12" => {
            let chroma = chroma(y / 2);
            [image[y * width + x], image[chroma], image[chroma + 1]]
        }
        _ => {
            let line = &image[y * width * 2..];
            [line[2 * x], line[2 * even + 1], line[2 * even + 3]]
        }
    }
}

#[test]
fn rgb_is_made_by_the_formula() {
    for fourcc in [b"GREY", b"NV12", b"YUYV"] {
        for size @ (width, height) in SIZES {
            let image = image(&layout(fourcc, width, height));
            let rgb = converted(fourcc, b"RGB3", width, height, &image);
            for (i, pixel) in rgb.chunks_exact(3).enumerate() {
                let (x, y) = (i % width as usize, i / width as usize);
                let expected = to_rgb(at(fourcc, &image, size, x, y));
                for channel in 0..3 {
                    let what = format!("{size:?} pixel {x}, {y} channel {channel}");
                    close(&what, pixel[channel], expected[channel]);
                }
            }
        }
    }
}

#[test]
fn rgb_is_taken_apart_by_the_formula() {
    for fourcc in [b"GREY", b"NV12", b"YUYV"] {
        for size @ (width, height) in SIZES {
            let rgb = image(&layout(b"RGB3", width, height));
            let image = converted(b"RGB3", fourcc, width, height, &rgb);
            let (width, height) = (width as usize, height as usize);
            let pixel = |x: usize, y: usize| {
                let at = (y * width + x) * 3;
                [rgb[at], rgb[at + 1], rgb[at + 2]].map(f64::from)
            };
            for i in 0..width * height {
                let (x, y) = (i % width, i / width);
                let [luma, u, v] = at(fourcc, &image, size, x, y);
                let what = format!("{size:?} pixel {x}, {y}");
                close(&what, luma, to_yuv(pixel(x, y))[0]);
                if fourcc == b"GREY" {
                    continue;
                }
                // Chroma is that of the mean of the pixels that share it.
                let lines = if fourcc == b"NV12" {
                    y / 2 * 2..y / 2 * 2 + 2
                } else {
                    y..y + 1
                };
                let shared: Vec<_> = lines
                    .flat_map(|y| [pixel(x / 2 * 2, y), pixel(x / 2 * 2 + 1, y)])
                    .collect();
                let mean = [0, 1, 2].map(|channel| {
                    shared.iter().map(|pixel| pixel[channel]).sum::<f64>() / shared.len() as f64
                });
                close(&what, u, to_yuv(mean)[1]);
                close(&what, v, to_yuv(mean)[2]);
            }
        }
    }
}

#[test]
fn black_and_white_are_exact() {
    for fourcc in [b"GREY", b"NV12", b"YUYV"] {
        for (grey, luma) in [(0, 16), (255, 235)] {
            let size = (18, 2);
            let rgb = vec![grey; 18 * 2 * 3];
            let image = converted(b"RGB3", fourcc, 18, 2, &rgb);
            for x in 0..18 {
                assert_eq!(at(fourcc, &image, size, x, 1), [luma, 128, 128]);
            }
            assert_eq!(converted(fourcc, b"RGB3", 18, 2, &image), rgb);
        }
    }
}

#[test]
fn odd_sizes_convert_between_grey_and_rgb() {
    let grey = [16, 235, 16];
    let rgb = converted(b"GREY", b"RGB3", 3, 1, &grey);
    assert_eq!(rgb, [0, 0, 0, 255, 255, 255, 0, 0, 0]);
    assert_eq!(converted(b"RGB3", b"GREY", 1, 3, &rgb), grey);
}
