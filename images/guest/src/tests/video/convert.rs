// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Conversions between pixel formats, as clients ask for them: with padding and in the colours that they name. Judged by formulas of
//! our own, with the colours that both queues' formats say: so what V4L2 says of an image is true of its pixels.

use crate::tests::sources::{COLORSPACES, EXPBUF, PIXFMT, QUANTIZATION, USERP};
use crate::tests::test::{Test, test};
use pinbed_abi::report::Eye;
use pinbed_guest::harness::ctx::{Ctx, Stop, TestResult};
use pinbed_guest::memory::area::Area;
use pinbed_guest::observe::extent::PAGE;
use pinbed_guest::observe::swiotlb;
use pinbed_guest::video::image::{Colours, Image, Pixels};
use pinbed_guest::video::m2m::{M2m, judge_job};
use pinbed_guest::video::v4l2::Queue::{Capture, Output};
use pinbed_guest::video::v4l2::{
    COLORSPACE_JPEG, COLORSPACE_REC709, COLORSPACE_SMPTE170M, COLORSPACE_SRGB, Memop, Memory, Node,
    PixFormat, QUANTIZATION_FULL_RANGE, QUANTIZATION_LIM_RANGE, Queue, YCBCR_ENC_601,
    YCBCR_ENC_709, YCBCR_ENC_BT2020,
};

#[rustfmt::skip]
pub const TESTS: &[Test] = &[
    test("convert::grey_from_user_memory", grey_from_user_memory, PIXFMT,
        "A GREY image in user memory becomes NV12, YUYV and RGB24 in user memory, with its luma unchanged and no colour."),
    test("convert::nv12_from_user_memory", nv12_from_user_memory, PIXFMT,
        "An NV12 image in user memory becomes GREY, YUYV and RGB24 in user memory, with its luma unchanged and its colours."),
    test("convert::yuyv_from_user_memory", yuyv_from_user_memory, PIXFMT,
        "A YUYV image in user memory becomes GREY, NV12 and RGB24 in user memory, with its luma unchanged and its colours."),
    test("convert::rgb24_from_user_memory", rgb24_from_user_memory, PIXFMT,
        "An RGB24 image in user memory becomes GREY, NV12 and YUYV in user memory, with its colours."),
    test("convert::round_trip_of_nv12_loses_nothing", round_trip_of_nv12_loses_nothing, USERP,
        "NV12 to YUYV and back is the same image to the bit, through unaligned user memory."),
    test("convert::dmabuf_round_trip_loses_nothing", dmabuf_round_trip_loses_nothing, EXPBUF,
        "NV12 to YUYV in an exported buffer, which another instance imports and turns back, is the same image to the bit."),
    test("convert::grey_is_full_range_by_default", grey_is_full_range_by_default, QUANTIZATION,
        "GREY of which no quantization is said is full range, as vivid's is: white is 255, and what is made of it says so."),
    test("convert::capture_says_the_colours_of_its_pixels", capture_says_the_colours_of_its_pixels, COLORSPACES,
        "Whatever encoding and quantization OUTPUT declares, the pixels are converted from these, and CAPTURE's format says what they are then."),
    test("convert::set_csc_chooses_the_colours_of_capture", set_csc_chooses_the_colours_of_capture, COLORSPACES,
        "With V4L2_PIX_FMT_FLAG_SET_CSC, CAPTURE has the encoding and quantization that were asked for, and so have the pixels."),
    test("convert::capture_keeps_its_colours_without_set_csc", capture_keeps_its_colours_without_set_csc, COLORSPACES,
        "What S_FMT asks of CAPTURE's colours without V4L2_PIX_FMT_FLAG_SET_CSC is replaced by what is true of the pixels."),
    test("convert::a_chain_takes_each_format_as_it_is", a_chain_takes_each_format_as_it_is, COLORSPACES,
        "What one instance says of its CAPTURE images another one takes for OUTPUT without a change, so that converters form chains."),
    test("convert::lines_are_padded_as_asked", lines_are_padded_as_asked, PIXFMT,
        "S_FMT takes the bytesperline that is asked for, on both queues; lines are read and written there, and padding is left alone."),
    test("convert::bytesperline_out_of_range_is_replaced", bytesperline_out_of_range_is_replaced, PIXFMT,
        "A bytesperline that is shorter than a line, or absurd, makes S_FMT say that there is no padding."),
];

/// Not a multiple of anything but 2, so that lines and planes begin at odd places.
const PICTURE: Image = Image::grey(94, 58);

/// Largest error of luma and chroma that rounding explains.
const ROUNDING: f64 = 2.0;

/// Largest error of red, green and blue: the device's promise (OP_CONVERT).
const RGB_ROUNDING: f64 = 4.0;

/// What a queue's format says of its colours.
#[derive(Clone, Copy, Debug)]
struct Meaning {
    /// Of red and blue in luma.
    weights: (f64, f64),
    /// Black, and the spans of luma and chroma.
    scale: (f64, f64, f64),
}

impl Meaning {
    /// V4L2's defaults are those of videodev2.h, V4L2_MAP_YCBCR_ENC_DEFAULT() and V4L2_MAP_QUANTIZATION_DEFAULT().
    fn of(t: &mut Ctx, image: Image, pix: &PixFormat) -> Self {
        let encoding = match (pix.ycbcr_enc, pix.colorspace) {
            (0, COLORSPACE_REC709) => YCBCR_ENC_709,
            (0, _) => YCBCR_ENC_601,
            (encoding, _) => encoding,
        };
        let full = match image.pixels {
            Pixels::Rgb24 | Pixels::Grey => true,
            Pixels::Nv12 | Pixels::Yuyv => pix.colorspace == COLORSPACE_JPEG,
        };
        let full = match pix.quantization {
            0 => full,
            quantization => quantization == QUANTIZATION_FULL_RANGE,
        };
        t.check(Eye::Cpu, full || image.pixels != Pixels::Rgb24, || {
            format!("RGB24 is said to be limited range: {pix:?}")
        });
        Self {
            weights: match encoding {
                YCBCR_ENC_709 => (0.2126, 0.0722),
                YCBCR_ENC_BT2020 => (0.2627, 0.0593),
                _ => (0.299, 0.114),
            },
            scale: match full {
                true => (0.0, 255.0, 255.0),
                false => (16.0, 219.0, 224.0),
            },
        }
    }
}

/// A pixel in Y'CbCr, from 0 to 1 and from -1/2 to 1/2.
#[derive(Clone, Copy, Debug)]
struct Colour {
    y: f64,
    cb: f64,
    cr: f64,
}

impl Colour {
    fn of_rgb([r, g, b]: [f64; 3], (kr, kb): (f64, f64)) -> Self {
        let y = kr * r + (1.0 - kr - kb) * g + kb * b;
        Self {
            y,
            cb: (b - y) / (2.0 - 2.0 * kb),
            cr: (r - y) / (2.0 - 2.0 * kr),
        }
    }

    fn to_rgb(self, (kr, kb): (f64, f64)) -> [f64; 3] {
        let blue = self.y + self.cb * (2.0 - 2.0 * kb);
        let red = self.y + self.cr * (2.0 - 2.0 * kr);
        let green = (self.y - kr * red - kb * blue) / (1.0 - kr - kb);
        [red, green, blue].map(|channel| channel.clamp(0.0, 1.0) * 255.0)
    }

    /// Luma and chroma as bytes hold them.
    fn scaled(self, (black, luma, chroma): (f64, f64, f64)) -> [f64; 3] {
        [
            black + self.y * luma,
            128.0 + self.cb * chroma,
            128.0 + self.cr * chroma,
        ]
        .map(|channel| channel.clamp(0.0, 255.0))
    }
}

/// The chroma that applies to the pixel at (x, y); grey has none.
fn chroma(image: Image, bytes: &[u8], x: usize, y: usize) -> Option<[u8; 2]> {
    let at = match image.pixels {
        Pixels::Nv12 => image.stride() * (image.height + y / 2) + x / 2 * 2,
        Pixels::Yuyv => {
            let pair = image.stride() * y + x / 2 * 4;
            return Some([*bytes.get(pair + 1)?, *bytes.get(pair + 3)?]);
        }
        Pixels::Grey | Pixels::Rgb24 => return None,
    };
    Some([*bytes.get(at)?, *bytes.get(at + 1)?])
}

/// The colour of the pixel at (x, y), of any format. RGB24 is seen with the weights of the other image.
fn colour(
    image: Image,
    meaning: Meaning,
    weights: (f64, f64),
    bytes: &[u8],
    x: usize,
    y: usize,
) -> Option<Colour> {
    if image.pixels == Pixels::Rgb24 {
        let at = y * image.stride() + x * 3;
        let channels = bytes.get(at..at + 3)?;
        let rgb = [channels[0], channels[1], channels[2]].map(|value| f64::from(value) / 255.0);
        return Some(Colour::of_rgb(rgb, weights));
    }
    let [cb, cr] = chroma(image, bytes, x, y)
        .unwrap_or([128, 128])
        .map(f64::from);
    let (black, luma, chroma) = meaning.scale;
    Some(Colour {
        y: (f64::from(image.luma(bytes, x, y)?) - black) / luma,
        cb: (cb - 128.0) / chroma,
        cr: (cr - 128.0) / chroma,
    })
}

/// An image with what its format says of it.
#[derive(Clone, Copy)]
struct Picture<'a> {
    image: Image,
    meaning: Meaning,
    bytes: &'a [u8],
}

/// What a pixel of `to` should hold, channel by channel, and what it holds.
fn channels(from: Picture, to: Picture, x: usize, y: usize) -> Option<Vec<(f64, f64)>> {
    let weights = match to.image.pixels {
        Pixels::Rgb24 => from.meaning.weights,
        _ => to.meaning.weights,
    };
    let at = |x, y| colour(from.image, from.meaning, weights, from.bytes, x, y);
    let wanted = at(x, y)?;
    if to.image.pixels == Pixels::Rgb24 {
        let start = y * to.image.stride() + x * 3;
        let got = to.bytes.get(start..start + 3)?;
        let got = got.iter().map(|value| f64::from(*value));
        return Some(wanted.to_rgb(weights).into_iter().zip(got).collect());
    }
    let luma = f64::from(to.image.luma(to.bytes, x, y)?);
    let mut pairs = vec![(wanted.scaled(to.meaning.scale)[0], luma)];
    if let Some([cb, cr]) = chroma(to.image, to.bytes, x, y) {
        // Chroma of a pixel group is the mean of what its pixels had.
        let (columns, lines) = (
            x / 2 * 2..x / 2 * 2 + 2,
            if to.image.pixels == Pixels::Nv12 {
                y / 2 * 2..y / 2 * 2 + 2
            } else {
                y..y + 1
            },
        );
        let group: Vec<_> = lines
            .flat_map(|y| columns.clone().map(move |x| (x, y)))
            .filter_map(|(x, y)| Some(at(x, y)?.scaled(to.meaning.scale)))
            .collect();
        let mean = |channel: usize| {
            let sum: f64 = group.iter().map(|colour| colour[channel]).sum();
            sum / group.len() as f64
        };
        pairs.push((mean(1), f64::from(cb)));
        pairs.push((mean(2), f64::from(cr)));
    }
    Some(pairs)
}

/// Every pixel of the result is what the source makes it; luma exactly so, where both have it in the same range.
fn judge_pixels(t: &mut Ctx, from: Picture, to: Picture) {
    let (source, sink) = (from.image, to.image);
    let exact = source.pixels != Pixels::Rgb24
        && sink.pixels != Pixels::Rgb24
        && from.meaning.scale == to.meaning.scale;
    let most = |channel: usize| match sink.pixels {
        Pixels::Rgb24 => RGB_ROUNDING,
        // Rounding errors of the formula itself.
        _ if exact && channel == 0 => 0.01,
        _ => ROUNDING,
    };
    let what = format!("{:?} to {:?}", source.pixels, sink.pixels);
    let (mut worst, mut wrong, mut first) = (0.0f64, 0, None);
    for (x, y) in (0..sink.height).flat_map(|y| (0..sink.width).map(move |x| (x, y))) {
        let Some(pairs) = channels(from, to, x, y) else {
            t.find(Eye::Harness, format!("{what}: no pixel at {x}, {y}"));
            return;
        };
        let errors = pairs.iter().map(|(wanted, got)| (wanted - got).abs());
        let bad = errors
            .clone()
            .enumerate()
            .any(|(channel, error)| error > most(channel));
        worst = errors.fold(worst, f64::max);
        if bad {
            wrong += 1;
            first.get_or_insert(format!("at {x}, {y}: (expected, actual) {pairs:?}"));
        }
    }
    t.note(format!("{what}: largest error {worst:.2}"));
    t.check(Eye::Cpu, wrong == 0, || {
        format!(
            "{what}, {:?} to {:?}: {wrong} pixels are wrong, the first {}",
            from.meaning,
            to.meaning,
            first.unwrap_or_default()
        )
    });
}

/// A random image. Luma and chroma keep to their nominal range, outside which converters differ. RGB24 is the same within each 2×2
/// group, so that it does not matter how a converter weighs their colours.
fn picture(t: &mut Ctx, image: Image) -> Vec<u8> {
    let mut bytes = t.random(image.size());
    if image.pixels != Pixels::Rgb24 {
        for byte in &mut bytes {
            *byte = 16 + *byte % (235 - 16 + 1);
        }
        return bytes;
    }
    for (x, y) in (0..image.height).flat_map(|y| (0..image.width).map(move |x| (x, y))) {
        let to = y * image.stride() + x * 3;
        let from = y / 2 * 2 * image.stride() + x / 2 * 2 * 3;
        bytes.copy_within(from..from + 3, to);
    }
    bytes
}

/// One conversion of what is in `src`, judged but for the pixels.
fn convert(t: &mut Ctx, m2m: &M2m, src: &Area, dst: &mut Area) -> TestResult<Vec<u8>> {
    dst.fill(t)?;
    m2m.queue(t, Output, 0, src)?;
    m2m.queue(t, Capture, 0, dst)?;
    m2m.stream_on()?;
    let (read, wrote) = m2m.dequeue_pair(src, dst)?;
    let result = dst.contents()?;
    judge_job(t, "OUTPUT", &read, &m2m.source.lines(src.written(), false));
    judge_job(t, "CAPTURE", &wrote, &m2m.sink.lines(&result, false));
    t.equal(
        Eye::Cpu,
        "bytesused of the CAPTURE buffer",
        wrote.buffer.bytesused as usize,
        m2m.sink.size(),
    );
    // A bounce buffer of the kernel's own memory brings back what was there, where the device writes nothing.
    if !swiotlb::is_forced()? {
        t.same_bytes(
            Eye::Cpu,
            "the CAPTURE image's padding",
            &m2m.sink.lines(&result, true),
            &m2m.sink.lines(dst.written(), true),
        );
    }
    src.judge_untouched(t, "the OUTPUT buffer")?;
    // The image is judged by its pixels; this judges what is around it.
    dst.judge(t, "the CAPTURE buffer", &result)?;
    Ok(result)
}

/// A queue's format as G_FMT says it.
fn format(m2m: &M2m, queue: Queue) -> TestResult<PixFormat> {
    m2m.node
        .format(queue)
        .map_err(|errno| Stop::finding(Eye::Cpu, format!("G_FMT fails with {errno:?}")))
}

/// One conversion of a random image in buffers of the node's own, judged in all respects. Gives CAPTURE's format.
fn one(t: &mut Ctx, memop: Memop, from: Image, to: Image) -> TestResult<PixFormat> {
    let m2m = M2m::open_on(memop, from, to)?;
    let (src, dst) = (m2m.own(Output)?, m2m.own(Capture)?);
    random_image(t, &m2m, src, dst)
}

/// One conversion of a random image from `src` to `dst`, judged in all respects. Gives CAPTURE's format.
fn random_image(t: &mut Ctx, m2m: &M2m, mut src: Area, mut dst: Area) -> TestResult<PixFormat> {
    let (from, to) = (m2m.source, m2m.sink);
    src.fill(t)?;
    let bytes = picture(t, from);
    src.put(&bytes)?;
    let result = convert(t, m2m, &src, &mut dst)?;
    let (out, cap) = (format(m2m, Output)?, format(m2m, Capture)?);
    let source = Picture {
        image: from,
        meaning: Meaning::of(t, from, &out),
        bytes: &bytes,
    };
    let sink = Picture {
        image: to,
        meaning: Meaning::of(t, to, &cap),
        bytes: &result,
    };
    judge_pixels(t, source, sink);
    Ok(cap)
}

fn from_user_memory(t: &mut Ctx, pixels: Pixels) -> TestResult {
    for to in Pixels::ALL.into_iter().filter(|to| *to != pixels) {
        let m2m = M2m::open(PICTURE.with(pixels), PICTURE.with(to))?;
        let src = m2m.with(Output, Area::anon(24, m2m.source.size())?)?;
        let dst = m2m.with(Capture, Area::anon(PAGE - 8, m2m.sink.size())?)?;
        random_image(t, &m2m, src, dst)?;
    }
    Ok(())
}

fn grey_from_user_memory(t: &mut Ctx) -> TestResult {
    from_user_memory(t, Pixels::Grey)
}

fn nv12_from_user_memory(t: &mut Ctx) -> TestResult {
    from_user_memory(t, Pixels::Nv12)
}

fn yuyv_from_user_memory(t: &mut Ctx) -> TestResult {
    from_user_memory(t, Pixels::Yuyv)
}

fn rgb24_from_user_memory(t: &mut Ctx) -> TestResult {
    from_user_memory(t, Pixels::Rgb24)
}

fn round_trip_of_nv12_loses_nothing(t: &mut Ctx) -> TestResult {
    let (nv12, yuyv) = (PICTURE.with(Pixels::Nv12), PICTURE.with(Pixels::Yuyv));
    let there = M2m::open(nv12, yuyv)?;
    let back = M2m::open(yuyv, nv12)?;
    let mut first = there.with(Output, Area::anon(1, nv12.size())?)?;
    let mut middle = there.with(Capture, Area::anon(3, yuyv.size())?)?;
    back.request_for(Output, &middle, 1)?;
    let mut last = back.with(Capture, Area::anon(5, nv12.size())?)?;
    first.fill(t)?;
    convert(t, &there, &first, &mut middle)?;
    middle.adopt()?;
    let result = convert(t, &back, &middle, &mut last)?;
    t.same_bytes(
        Eye::Cpu,
        "NV12 after the round trip",
        &result,
        first.written(),
    );
    Ok(())
}

fn dmabuf_round_trip_loses_nothing(t: &mut Ctx) -> TestResult {
    let (nv12, yuyv) = (PICTURE.with(Pixels::Nv12), PICTURE.with(Pixels::Yuyv));
    let there = M2m::open(nv12, yuyv)?;
    let back = M2m::open(yuyv, nv12)?;
    let mut first = there.with(Output, Area::anon(0, nv12.size())?)?;
    there.request(Capture, Memory::Mmap, 1)?;
    let mut middle = there.map(Capture, 0)?;
    let fd = there
        .node
        .export(Capture, 0)
        .map_err(|errno| Stop::finding(Eye::Cpu, format!("EXPBUF fails with {errno:?}")))?;
    let mut shared = back.with(Output, Area::dmabuf(fd, middle.mapping.len(), yuyv.size())?)?;
    let mut last = back.with(Capture, Area::heap(nv12.size())?)?;
    first.fill(t)?;
    convert(t, &there, &first, &mut middle)?;
    shared.adopt()?;
    let result = convert(t, &back, &shared, &mut last)?;
    t.same_bytes(
        Eye::Cpu,
        "NV12 after the round trip",
        &result,
        first.written(),
    );
    Ok(())
}

fn grey_is_full_range_by_default(t: &mut Ctx) -> TestResult {
    let grey = Image::grey(16, 2);
    for (pixels, white) in [
        (Pixels::Grey, 255),
        (Pixels::Rgb24, 255),
        (Pixels::Nv12, 255),
    ] {
        let m2m = M2m::open(grey, grey.with(pixels))?;
        let (mut src, mut dst) = (m2m.own(Output)?, m2m.own(Capture)?);
        src.fill(t)?;
        src.put(&[255; 32])?;
        if pixels == Pixels::Grey {
            dst.fill(t)?;
            m2m.copy_as_is(t, &src, &dst)?;
            continue;
        }
        let result = convert(t, &m2m, &src, &mut dst)?;
        let what = format!("white of GREY as {pixels:?}");
        t.equal(Eye::Cpu, &what, result[0], white);
        t.equal(
            Eye::Cpu,
            &format!("the quantization of {pixels:?} that was made of GREY"),
            format(&m2m, Capture)?.quantization,
            QUANTIZATION_FULL_RANGE,
        );
    }
    // Other software says it outright, as it does when it means the other one.
    let limited = Colours {
        colorspace: COLORSPACE_SRGB,
        quantization: QUANTIZATION_LIM_RANGE,
        ..Colours::ANY
    };
    one(
        t,
        Memop::DmaSg,
        grey.coloured(limited),
        grey.with(Pixels::Rgb24),
    )?;
    let made = one(t, Memop::DmaSg, grey.with(Pixels::Rgb24), grey)?;
    t.equal(
        Eye::Cpu,
        "the quantization of GREY that was made of RGB24",
        made.quantization,
        QUANTIZATION_FULL_RANGE,
    );
    Ok(())
}

/// Small, since there are many.
const STAMP: Image = Image::grey(34, 6);

/// What clients say of videos from files, cameras and screens.
const DECLARED: [Colours; 6] = [
    Colours::ANY,
    Colours {
        colorspace: COLORSPACE_JPEG,
        ..Colours::ANY
    },
    Colours {
        colorspace: COLORSPACE_REC709,
        ..Colours::ANY
    },
    Colours {
        colorspace: COLORSPACE_SRGB,
        encoding: YCBCR_ENC_601,
        quantization: QUANTIZATION_FULL_RANGE,
        ..Colours::ANY
    },
    Colours {
        colorspace: COLORSPACE_SMPTE170M,
        encoding: YCBCR_ENC_601,
        quantization: QUANTIZATION_LIM_RANGE,
        ..Colours::ANY
    },
    Colours {
        colorspace: COLORSPACE_REC709,
        encoding: YCBCR_ENC_BT2020,
        quantization: QUANTIZATION_FULL_RANGE,
        ..Colours::ANY
    },
];

fn capture_says_the_colours_of_its_pixels(t: &mut Ctx) -> TestResult {
    for colours in DECLARED {
        for from in Pixels::ALL {
            for to in Pixels::ALL.into_iter().filter(|to| *to != from) {
                let source = STAMP.with(from).coloured(colours);
                let made = one(t, Memop::DmaSg, source, STAMP.with(to))?;
                let what = format!("colorspace of {to:?} made of {from:?} in {colours:?}");
                let wanted = match colours.colorspace {
                    0 => COLORSPACE_SRGB,
                    colorspace => colorspace,
                };
                t.equal(Eye::Cpu, &what, made.colorspace, wanted);
            }
        }
    }
    Ok(())
}

fn set_csc_chooses_the_colours_of_capture(t: &mut Ctx) -> TestResult {
    let full = Colours {
        // Without a valid colorspace V4L2 drops the others, but not on 5.10 (v4l_sanitize_colorspace()).
        colorspace: COLORSPACE_REC709,
        quantization: QUANTIZATION_FULL_RANGE,
        encoding: YCBCR_ENC_709,
        convert: true,
    };
    let limited = Colours {
        quantization: QUANTIZATION_LIM_RANGE,
        ..full
    };
    for (from, to, colours) in [
        (Pixels::Rgb24, Pixels::Nv12, full),
        (Pixels::Rgb24, Pixels::Yuyv, limited),
        (Pixels::Rgb24, Pixels::Grey, limited),
        (Pixels::Grey, Pixels::Nv12, limited),
        (Pixels::Grey, Pixels::Grey, limited),
        (Pixels::Nv12, Pixels::Yuyv, full),
        (Pixels::Yuyv, Pixels::Yuyv, full),
    ] {
        let made = one(
            t,
            Memop::DmaSg,
            STAMP.with(from),
            STAMP.with(to).coloured(colours),
        )?;
        let what = format!("{to:?} made of {from:?}");
        t.equal(
            Eye::Cpu,
            &format!("the quantization of {what}"),
            made.quantization,
            colours.quantization,
        );
        // From one encoding to another there is no way for the device.
        let encoding = match from {
            Pixels::Rgb24 => YCBCR_ENC_709,
            _ => 0,
        };
        t.equal(
            Eye::Cpu,
            &format!("the encoding of {what}"),
            made.ycbcr_enc,
            encoding,
        );
    }
    Ok(())
}

fn capture_keeps_its_colours_without_set_csc(t: &mut Ctx) -> TestResult {
    let declared = Colours {
        colorspace: COLORSPACE_REC709,
        encoding: YCBCR_ENC_709,
        quantization: QUANTIZATION_LIM_RANGE,
        ..Colours::ANY
    };
    // What GStreamer asks for between two converters.
    let asked = Colours {
        colorspace: COLORSPACE_SRGB,
        encoding: YCBCR_ENC_601,
        quantization: QUANTIZATION_FULL_RANGE,
        ..Colours::ANY
    };
    for (from, to) in [(Pixels::Nv12, Pixels::Yuyv), (Pixels::Yuyv, Pixels::Grey)] {
        let source = STAMP.with(from).coloured(declared);
        let made = one(t, Memop::DmaSg, source, STAMP.with(to).coloured(asked))?;
        let what = format!("(colorspace, encoding, quantization) of {to:?} made of {from:?}");
        t.equal(
            Eye::Cpu,
            &what,
            (made.colorspace, made.ycbcr_enc, made.quantization),
            (COLORSPACE_REC709, YCBCR_ENC_709, QUANTIZATION_LIM_RANGE),
        );
    }
    Ok(())
}

fn a_chain_takes_each_format_as_it_is(t: &mut Ctx) -> TestResult {
    for first in Pixels::ALL {
        let mut pix = STAMP.with(first).to_v4l2();
        let chain = [Pixels::Rgb24, Pixels::Nv12, Pixels::Grey, Pixels::Yuyv];
        for pixels in chain.into_iter().filter(|pixels| *pixels != first) {
            let node = Node::open(Memop::DmaSg)?;
            let failed = |what: &'static str| {
                move |errno| Stop::finding(Eye::Cpu, format!("{what} fails with {errno:?}"))
            };
            let out = node.set_format(Output, pix).map_err(failed("S_FMT"))?;
            if pix.colorspace != 0 {
                let what = format!("what OUTPUT makes of CAPTURE's format, before {pixels:?}");
                t.equal(Eye::Cpu, &what, out, pix);
            }
            let wanted = STAMP.with(pixels).to_v4l2();
            node.set_format(Capture, wanted).map_err(failed("S_FMT"))?;
            pix = node.format(Capture).map_err(failed("G_FMT"))?;
        }
    }
    Ok(())
}

fn lines_are_padded_as_asked(t: &mut Ctx) -> TestResult {
    // The widths and alignment are GStreamer's, and those of a GPU with a larger one.
    for (width, bytes) in [(322, 4), (330, 4), (94, 256)] {
        let image = Image::grey(width, 4);
        for from in Pixels::ALL {
            for to in Pixels::ALL {
                let (from, to) = (image.with(from), image.with(to));
                one(t, Memop::DmaSg, from.aligned(bytes), to)?;
                one(t, Memop::DmaSg, from, to.aligned(bytes))?;
            }
        }
    }
    let (from, to) = (PICTURE.with(Pixels::Nv12), PICTURE.with(Pixels::Yuyv));
    for memop in [Memop::DmaContig, Memop::Vmalloc] {
        one(t, memop, from.aligned(64), to.aligned(128))?;
        one(t, memop, from.aligned(64), from)?;
    }
    Ok(())
}

fn bytesperline_out_of_range_is_replaced(t: &mut Ctx) -> TestResult {
    for pixels in Pixels::ALL {
        let image = STAMP.with(pixels);
        for bytesperline in [1, image.line() as u32 - 1, 1 << 20, u32::MAX] {
            let node = Node::open(Memop::DmaSg)?;
            for queue in [Output, Capture] {
                let pix = PixFormat {
                    bytesperline,
                    ..image.to_v4l2()
                };
                let got = node.set_format(queue, pix).map_err(|errno| {
                    Stop::finding(Eye::Cpu, format!("S_FMT fails with {errno:?}"))
                })?;
                t.equal(
                    Eye::Cpu,
                    &format!("{queue:?} {pixels:?}: (bytesperline, sizeimage) for {bytesperline}"),
                    (got.bytesperline as usize, got.sizeimage as usize),
                    (image.line(), image.size()),
                );
            }
        }
    }
    Ok(())
}
