// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Conversions between pixel formats, judged by formulas of our own: luma passes unchanged between formats that have it, and
//! colours follow ITU-R BT.601 with limited range, which is what V4L2 defines for these formats by default.

use crate::tests::sources::{EXPBUF, PIXFMT, USERP};
use crate::tests::test::{Test, test};
use pinbed_abi::report::Eye;
use pinbed_guest::harness::ctx::{Ctx, Stop, TestResult};
use pinbed_guest::memory::area::Area;
use pinbed_guest::observe::extent::PAGE;
use pinbed_guest::video::image::{Image, Pixels};
use pinbed_guest::video::m2m::{M2m, judge_job};
use pinbed_guest::video::v4l2::Memory;
use pinbed_guest::video::v4l2::Queue::{Capture, Output};

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
];

/// Not a multiple of anything but 2, so that lines and planes begin at odd places.
const PICTURE: Image = Image::grey(94, 58);

/// Largest error of a channel that rounding in fixed point explains.
const ROUNDING: f64 = 2.0;

/// A pixel in Y'CbCr, and how it looks.
#[derive(Clone, Copy, Debug)]
struct Colour {
    y: f64,
    cb: f64,
    cr: f64,
}

impl Colour {
    /// BT.601, limited range.
    fn of_rgb([r, g, b]: [f64; 3]) -> Self {
        let luma = 0.299 * r + 0.587 * g + 0.114 * b;
        Self {
            y: 16.0 + 219.0 / 255.0 * luma,
            cb: 128.0 + 224.0 / 255.0 * (b - luma) / (2.0 - 2.0 * 0.114),
            cr: 128.0 + 224.0 / 255.0 * (r - luma) / (2.0 - 2.0 * 0.299),
        }
    }

    fn to_rgb(self) -> [f64; 3] {
        let luma = (self.y - 16.0) * 255.0 / 219.0;
        let blue = luma + (self.cb - 128.0) * 255.0 / 224.0 * (2.0 - 2.0 * 0.114);
        let red = luma + (self.cr - 128.0) * 255.0 / 224.0 * (2.0 - 2.0 * 0.299);
        let green = (luma - 0.299 * red - 0.114 * blue) / 0.587;
        [red, green, blue].map(|channel| channel.clamp(0.0, 255.0))
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

/// The colour of the pixel at (x, y), of any format.
fn colour(image: Image, bytes: &[u8], x: usize, y: usize) -> Option<Colour> {
    if image.pixels == Pixels::Rgb24 {
        let at = y * image.stride() + x * 3;
        let channels = bytes.get(at..at + 3)?;
        return Some(Colour::of_rgb(
            [channels[0], channels[1], channels[2]].map(f64::from),
        ));
    }
    let [cb, cr] = chroma(image, bytes, x, y)
        .unwrap_or([128, 128])
        .map(f64::from);
    Some(Colour {
        y: f64::from(image.luma(bytes, x, y)?),
        cb,
        cr,
    })
}

/// What a pixel of `to` should hold, channel by channel, and what it holds.
fn channels(
    from: Image,
    source: &[u8],
    to: Image,
    result: &[u8],
    x: usize,
    y: usize,
) -> Option<Vec<(f64, f64)>> {
    let wanted = colour(from, source, x, y)?;
    if to.pixels == Pixels::Rgb24 {
        let at = y * to.stride() + x * 3;
        let got = result.get(at..at + 3)?;
        return Some(
            wanted
                .to_rgb()
                .into_iter()
                .zip(got.iter().map(|value| f64::from(*value)))
                .collect(),
        );
    }
    let mut pairs = vec![(wanted.y, f64::from(to.luma(result, x, y)?))];
    if let Some([cb, cr]) = chroma(to, result, x, y) {
        // Chroma of a pixel group is the mean of what its pixels had.
        let (columns, lines) = (
            x / 2 * 2..x / 2 * 2 + 2,
            if to.pixels == Pixels::Nv12 {
                y / 2 * 2..y / 2 * 2 + 2
            } else {
                y..y + 1
            },
        );
        let group: Vec<_> = lines
            .flat_map(|y| columns.clone().map(move |x| (x, y)))
            .filter_map(|(x, y)| colour(from, source, x, y))
            .collect();
        let mean = |of: fn(&Colour) -> f64| group.iter().map(of).sum::<f64>() / group.len() as f64;
        pairs.push((mean(|colour| colour.cb), f64::from(cb)));
        pairs.push((mean(|colour| colour.cr), f64::from(cr)));
    }
    Some(pairs)
}

/// Every pixel of the result is what the source makes it; luma exactly so, where both have it.
fn judge_pixels(t: &mut Ctx, from: Image, source: &[u8], to: Image, result: &[u8]) {
    let exact = from.pixels != Pixels::Rgb24 && to.pixels != Pixels::Rgb24;
    let what = format!("{:?} to {:?}", from.pixels, to.pixels);
    let (mut worst, mut wrong, mut first) = (0.0f64, 0, None);
    for (x, y) in (0..to.height).flat_map(|y| (0..to.width).map(move |x| (x, y))) {
        let Some(pairs) = channels(from, source, to, result, x, y) else {
            t.find(Eye::Harness, format!("{what}: no pixel at {x}, {y}"));
            return;
        };
        let errors = pairs.iter().map(|(wanted, got)| (wanted - got).abs());
        let bad = errors
            .clone()
            .enumerate()
            .any(|(channel, error)| error > if exact && channel == 0 { 0.0 } else { ROUNDING });
        worst = errors.fold(worst, f64::max);
        if bad {
            wrong += 1;
            first.get_or_insert(format!("at {x}, {y}: (expected, actual) {pairs:?}"));
        }
    }
    t.note(format!("{what}: largest error {worst:.2}"));
    t.check(Eye::Cpu, wrong == 0, || {
        format!(
            "{what}: {wrong} pixels are wrong, the first {}",
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
    judge_job(t, "OUTPUT", &read, src.written());
    judge_job(t, "CAPTURE", &wrote, &result);
    src.judge_untouched(t, "the OUTPUT buffer")?;
    // The image is judged by its pixels; this judges what is around it.
    dst.judge(t, "the CAPTURE buffer", &result)?;
    Ok(result)
}

fn from_user_memory(t: &mut Ctx, pixels: Pixels) -> TestResult {
    let from = PICTURE.with(pixels);
    for to in Pixels::ALL
        .into_iter()
        .filter(|to| *to != pixels)
        .map(|to| PICTURE.with(to))
    {
        let m2m = M2m::open(from, to)?;
        let mut src = m2m.with(Output, Area::anon(24, from.size())?)?;
        let mut dst = m2m.with(Capture, Area::anon(PAGE - 8, to.size())?)?;
        src.fill(t)?;
        let source = picture(t, from);
        src.put(&source)?;
        let result = convert(t, &m2m, &src, &mut dst)?;
        judge_pixels(t, from, &source, to, &result);
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
