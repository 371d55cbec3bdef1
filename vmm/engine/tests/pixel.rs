// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Conversion: exact where it only rearranges, and close to the encoding's formula from and to RGB and between quantizations,
//! whichever of the host's vector code does it.

use pinbed_abi::wire;
use pinbed_engine::pixel::{Converter, Layout};

/// Encoding (`wire::ENCODING_…`) and quantization (`wire::QUANTIZATION_…`) of what is not RGB.
#[derive(Clone, Copy, Debug)]
struct Colours {
    encoding: u32,
    quantization: u32,
}

const BT601: Colours = Colours {
    encoding: wire::ENCODING_BT601,
    quantization: wire::QUANTIZATION_LIMITED,
};

/// All that there are.
fn all_colours() -> impl Iterator<Item = Colours> {
    let encodings = [
        wire::ENCODING_BT601,
        wire::ENCODING_BT709,
        wire::ENCODING_BT2020,
        wire::ENCODING_SMPTE240M,
    ];
    encodings.into_iter().flat_map(|encoding| {
        [wire::QUANTIZATION_FULL, wire::QUANTIZATION_LIMITED].map(|quantization| Colours {
            encoding,
            quantization,
        })
    })
}

fn format(fourcc: &[u8; 4], width: u32, height: u32, colours: Colours) -> wire::Format {
    let (stride, colours) = match fourcc {
        b"YUYV" => (width * 2, colours),
        b"RGB3" => {
            let full = Colours {
                encoding: wire::ENCODING_NONE,
                quantization: wire::QUANTIZATION_FULL,
            };
            (width * 3, full)
        }
        _ => (width, colours),
    };
    wire::Format {
        fourcc: u32::from_le_bytes(*fourcc).into(),
        width: width.into(),
        height: height.into(),
        stride: stride.into(),
        encoding: colours.encoding.into(),
        quantization: colours.quantization.into(),
    }
}

fn layout(fourcc: &[u8; 4], width: u32, height: u32, colours: Colours) -> Layout {
    Layout::from_wire(&format(fourcc, width, height, colours)).unwrap()
}

/// All values of a byte, in no order that a shift would keep.
fn random(length: usize) -> Vec<u8> {
    let mut state = 1u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

fn image(fourcc: &[u8; 4], width: u32, height: u32) -> Vec<u8> {
    random(layout(fourcc, width, height, BT601).packed_size())
}

fn convert(from: &Layout, to: &Layout, image: &[u8]) -> Vec<u8> {
    assert!(from.converts_to(to));
    let mut converter = Converter::default();
    let mut image = image.to_vec();
    converter.convert(from, to, &mut image).unwrap().to_vec()
}

fn converted(from: &[u8; 4], to: &[u8; 4], width: u32, height: u32, image: &[u8]) -> Vec<u8> {
    let layout = |fourcc| layout(fourcc, width, height, BT601);
    convert(&layout(from), &layout(to), image)
}

/// Even sizes around the widths at which vector code changes step.
const SIZES: [(u32, u32); 7] = [(2, 2), (6, 4), (16, 2), (30, 6), (34, 2), (66, 4), (130, 2)];

#[test]
fn the_same_format_is_the_same_image() {
    for fourcc in [b"GREY", b"NV12", b"YUYV", b"RGB3"] {
        let image = image(fourcc, 6, 4);
        assert_eq!(converted(fourcc, fourcc, 6, 4, &image), image);
    }
}

#[test]
fn luma_is_unchanged_between_grey_nv12_and_yuyv() {
    for (width, height) in SIZES {
        let luma = image(b"GREY", width, height);
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
        let nv12 = image(b"NV12", width, height);
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

impl Colours {
    /// Weights of red and blue in luma, as V4L2 has them (Documentation/userspace-api/media/v4l/colorspaces-details.rst).
    fn weights(self) -> (f64, f64) {
        match self.encoding {
            wire::ENCODING_BT601 => (0.299, 0.114),
            wire::ENCODING_BT709 => (0.2126, 0.0722),
            wire::ENCODING_BT2020 => (0.2627, 0.0593),
            _ => (0.2122, 0.0865),
        }
    }

    /// Black, and the spans of luma and chroma.
    fn scale(self) -> (f64, f64, f64) {
        match self.quantization {
            wire::QUANTIZATION_FULL => (0.0, 255.0, 255.0),
            _ => (16.0, 219.0, 224.0),
        }
    }

    /// Not clamped.
    fn to_yuv(self, [r, g, b]: [f64; 3]) -> [f64; 3] {
        let ((kr, kb), (black, luma, chroma)) = (self.weights(), self.scale());
        let y = kr * r + (1.0 - kr - kb) * g + kb * b;
        [
            black + y * luma / 255.0,
            128.0 + (b - y) / (2.0 - 2.0 * kb) * chroma / 255.0,
            128.0 + (r - y) / (2.0 - 2.0 * kr) * chroma / 255.0,
        ]
    }

    /// Not clamped. Vector code takes luma below black as black, other code as what it says: so does a test, by `footroom`.
    fn to_rgb(self, yuv: [u8; 3], footroom: bool) -> [f64; 3] {
        let ((kr, kb), (black, luma, chroma)) = (self.weights(), self.scale());
        let [mut y, u, v] = yuv.map(f64::from);
        if !footroom {
            y = y.max(black);
        }
        let y = (y - black) * 255.0 / luma;
        let (u, v) = ((u - 128.0) * 255.0 / chroma, (v - 128.0) * 255.0 / chroma);
        let r = y + (2.0 - 2.0 * kr) * v;
        let b = y + (2.0 - 2.0 * kb) * u;
        [r, (y - kr * r - kb * b) / (1.0 - kr - kb), b]
    }
}

/// The largest difference from the formula so far, and where it was.
#[derive(Default)]
struct Worst(f64, String);

impl Worst {
    /// Takes what is nearer of the two that may be wanted.
    fn note_either(&mut self, is: u8, wanted: [f64; 2], place: impl FnOnce() -> String) {
        let [a, b] = wanted.map(|wanted| (f64::from(is) - wanted.clamp(0.0, 255.0)).abs());
        self.note(is, wanted[usize::from(b < a)], place);
    }

    fn note(&mut self, is: u8, wanted: f64, place: impl FnOnce() -> String) {
        let error = (f64::from(is) - wanted.clamp(0.0, 255.0)).abs();
        if error > self.0 {
            *self = Self(error, format!("{}: {is} is not {wanted:.2}", place()));
        }
    }

    fn judge(&self, most: f64) {
        let Self(error, place) = self;
        assert!(*error <= most, "{place}");
        println!("largest error {error:.2}: {place}");
    }
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

/// What [`wire::OP_CONVERT`] promises.
const MOST_ENCODED: f64 = 2.0;
const MOST_DECODED: f64 = 4.0;

/// Luma and chroma of both nominal and other values.
#[test]
fn rgb_is_made_by_the_formula() {
    let mut worst = Worst::default();
    for colours in all_colours() {
        for fourcc in [b"GREY", b"NV12", b"YUYV"] {
            for size @ (width, height) in SIZES {
                let image = image(fourcc, width, height);
                let layout = |fourcc| layout(fourcc, width, height, colours);
                let rgb = convert(&layout(fourcc), &layout(b"RGB3"), &image);
                for (i, pixel) in rgb.chunks_exact(3).enumerate() {
                    let (x, y) = (i % width as usize, i / width as usize);
                    let yuv = at(fourcc, &image, size, x, y);
                    let wanted = [true, false].map(|footroom| colours.to_rgb(yuv, footroom));
                    for channel in 0..3 {
                        worst.note_either(pixel[channel], wanted.map(|rgb| rgb[channel]), || {
                            format!("{colours:?} {yuv:?} at {size:?} {x}, {y} channel {channel}")
                        });
                    }
                }
            }
        }
    }
    worst.judge(MOST_DECODED);
}

#[test]
fn rgb_is_taken_apart_by_the_formula() {
    let (mut luma_worst, mut chroma_worst) = (Worst::default(), Worst::default());
    for colours in all_colours() {
        for fourcc in [b"GREY", b"NV12", b"YUYV"] {
            for size @ (width, height) in SIZES {
                let rgb = image(b"RGB3", width, height);
                let layout = |fourcc| layout(fourcc, width, height, colours);
                let image = convert(&layout(b"RGB3"), &layout(fourcc), &rgb);
                let (width, height) = (width as usize, height as usize);
                let pixel = |x: usize, y: usize| {
                    let at = (y * width + x) * 3;
                    [rgb[at], rgb[at + 1], rgb[at + 2]].map(f64::from)
                };
                for i in 0..width * height {
                    let (x, y) = (i % width, i / width);
                    let [luma, u, v] = at(fourcc, &image, size, x, y);
                    let place = || format!("{colours:?} {fourcc:?} {size:?} {x}, {y}");
                    luma_worst.note(luma, colours.to_yuv(pixel(x, y))[0], place);
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
                        let sum = shared.iter().map(|pixel| pixel[channel]).sum::<f64>();
                        sum / shared.len() as f64
                    });
                    let [_, wanted_u, wanted_v] = colours.to_yuv(mean);
                    chroma_worst.note(u, wanted_u, place);
                    chroma_worst.note(v, wanted_v, place);
                }
            }
        }
    }
    luma_worst.judge(MOST_ENCODED);
    chroma_worst.judge(MOST_ENCODED);
}

/// A line is long enough for the vector code of each host, which so is held to the same formula as the code without.
#[test]
fn every_colour_converts_by_the_formula() {
    let values = |step: usize| (0..=255u8).step_by(step);
    let triples: Vec<[u8; 3]> = values(5)
        .flat_map(|a| values(15).flat_map(move |b| values(15).map(move |c| [a, b, c])))
        .collect();
    let width = 2 * triples.len() as u32 / 52;
    let height = 52;
    let (mut decoded, mut encoded) = (Worst::default(), Worst::default());
    for colours in all_colours() {
        let layout = |fourcc| layout(fourcc, width, height, colours);
        let yuyv: Vec<u8> = triples
            .iter()
            .flat_map(|[y, u, v]| [*y, *u, *y, *v])
            .collect();
        let rgb = convert(&layout(b"YUYV"), &layout(b"RGB3"), &yuyv);
        for (yuv, pixels) in triples.iter().zip(rgb.chunks_exact(6)) {
            let wanted = [true, false].map(|footroom| colours.to_rgb(*yuv, footroom));
            for channel in 0..3 {
                for pixel in pixels.chunks_exact(3) {
                    decoded.note_either(pixel[channel], wanted.map(|rgb| rgb[channel]), || {
                        format!("{colours:?} {yuv:?}")
                    });
                }
            }
        }
        let rgb: Vec<u8> = triples
            .iter()
            .flat_map(|pixel| [*pixel, *pixel].concat())
            .collect();
        let yuyv = convert(&layout(b"RGB3"), &layout(b"YUYV"), &rgb);
        for (rgb, pair) in triples.iter().zip(yuyv.chunks_exact(4)) {
            let wanted = colours.to_yuv(rgb.map(f64::from));
            for (is, channel) in [(0, 0), (1, 1), (2, 0), (3, 2)] {
                encoded.note(pair[is], wanted[channel], || {
                    format!("{colours:?} {rgb:?} {channel}")
                });
            }
        }
    }
    decoded.judge(MOST_DECODED);
    encoded.judge(MOST_ENCODED);
}

#[test]
fn quantizations_convert_by_the_formula() {
    let mut worst = Worst::default();
    let full = Colours {
        quantization: wire::QUANTIZATION_FULL,
        ..BT601
    };
    for (from, to) in [(full, BT601), (BT601, full)] {
        for (fourcc, to_fourcc) in [(b"NV12", b"YUYV"), (b"YUYV", b"NV12"), (b"GREY", b"GREY")] {
            let size @ (width, height) = (66, 4);
            let mut source = image(fourcc, width, height);
            if to_fourcc == b"NV12" {
                // Both lines of a pair are alike, so that their mean is theirs.
                source.copy_within(..132, 132);
                source.copy_within(264..396, 396);
            }
            let result = convert(
                &layout(fourcc, width, height, from),
                &layout(to_fourcc, width, height, to),
                &source,
            );
            for (x, y) in (0..66).flat_map(|x| (0..4).map(move |y| (x, y))) {
                let was = at(fourcc, &source, size, x, y);
                let is = at(to_fourcc, &result, size, x, y);
                let ((black, luma, chroma), (to_black, to_luma, to_chroma)) =
                    (from.scale(), to.scale());
                for channel in 0..3 {
                    let value = f64::from(was[channel]);
                    let wanted = match channel {
                        0 => (value - black) * to_luma / luma + to_black,
                        _ => (value - 128.0) * to_chroma / chroma + 128.0,
                    };
                    worst.note(is[channel], wanted, || format!("{was:?}"));
                }
            }
        }
    }
    worst.judge(0.5001);
}

/// As GStreamer has videos from files: the names say full range, and white is 255.
#[test]
fn full_range_is_the_full_range() {
    for encoding in all_colours().map(|colours| colours.encoding) {
        let full = Colours {
            encoding,
            quantization: wire::QUANTIZATION_FULL,
        };
        for fourcc in [b"GREY", b"NV12", b"YUYV"] {
            for grey in [0, 255] {
                let layout = |fourcc| layout(fourcc, 34, 2, full);
                let rgb = vec![grey; 34 * 2 * 3];
                let image = convert(&layout(b"RGB3"), &layout(fourcc), &rgb);
                assert_eq!(at(fourcc, &image, (34, 2), 33, 1), [grey, 128, 128]);
                assert_eq!(convert(&layout(fourcc), &layout(b"RGB3"), &image), rgb);
            }
        }
    }
}

#[test]
fn colours_that_make_no_sense_are_refused() {
    let refused = |change: &dyn Fn(&mut wire::Format), fourcc| {
        let mut format = format(fourcc, 16, 16, BT601);
        assert!(Layout::from_wire(&format).is_some());
        change(&mut format);
        assert_eq!(Layout::from_wire(&format), None);
    };
    for fourcc in [b"GREY", b"NV12", b"YUYV", b"RGB3"] {
        for quantization in [0, 3, u32::MAX] {
            refused(&|format| format.quantization = quantization.into(), fourcc);
        }
        for encoding in [3, 4, 5, 7, 9, u32::MAX] {
            refused(&|format| format.encoding = encoding.into(), fourcc);
        }
    }
    refused(&|format| format.encoding = 0.into(), b"GREY");
    refused(&|format| format.encoding = 1.into(), b"RGB3");
    refused(&|format| format.quantization = 2.into(), b"RGB3");
    let bt709 = Colours {
        encoding: wire::ENCODING_BT709,
        ..BT601
    };
    let (a, b) = (
        layout(b"NV12", 16, 16, BT601),
        layout(b"YUYV", 16, 16, bt709),
    );
    assert!(!a.converts_to(&b));
    assert!(b.converts_to(&layout(b"RGB3", 16, 16, BT601)));
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
