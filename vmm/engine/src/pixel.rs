// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Pixel formats: where an image's lines lie in a buffer, and conversion between formats.
//!
//! Formats are V4L2's: GREY, NV12, YUYV and RGB24. Images are converted without the padding at their lines' ends:
//! [`Layout::extents`] says where the lines are, and conversion works on them back to back.
//!
//! All formats but RGB24 are seen as a luma plane and a plane of interleaved chroma, which GREY lacks, NV12 has for every
//! second line and YUYV for every line. Between these, luma is moved unchanged and chroma lines are repeated, averaged in
//! pairs, or made neutral; from and to RGB24 the `yuv` crate converts, with the host's vector code.

use pinbed_abi::wire;
use yuv::{
    BufferStoreMut, YuvBiPlanarImage, YuvBiPlanarImageMut, YuvConversionMode, YuvError,
    YuvGrayImage, YuvGrayImageMut, YuvRange, YuvStandardMatrix,
};

use crate::access::Extent;

/// Largest width and height in pixels.
pub const MAX_SIDE: u32 = 16384;

/// A pixel format of V4L2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pixels {
    /// `V4L2_PIX_FMT_GREY`: luma only.
    Grey,
    /// `V4L2_PIX_FMT_NV12`: luma, then interleaved chroma of half width and height. Even width and height.
    Nv12,
    /// `V4L2_PIX_FMT_YUYV`: luma and chroma of half width interleaved. Even width.
    Yuyv,
    /// `V4L2_PIX_FMT_RGB24`.
    Rgb24,
}

impl Pixels {
    /// From a V4L2 fourcc; `None` if the device does not have it.
    pub fn from_fourcc(fourcc: u32) -> Option<Self> {
        match &fourcc.to_le_bytes() {
            b"GREY" => Some(Self::Grey),
            b"NV12" => Some(Self::Nv12),
            b"YUYV" => Some(Self::Yuyv),
            b"RGB3" => Some(Self::Rgb24),
            _ => None,
        }
    }
}

/// How luma and chroma are made of red, green and blue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// ITU-R BT.601.
    Bt601,
    /// ITU-R BT.709.
    Bt709,
    /// ITU-R BT.2020, not constant luminance.
    Bt2020,
    /// SMPTE 240M.
    Smpte240m,
}

impl Encoding {
    fn from_wire(value: u32) -> Option<Self> {
        match value {
            wire::ENCODING_BT601 => Some(Self::Bt601),
            wire::ENCODING_BT709 => Some(Self::Bt709),
            wire::ENCODING_BT2020 => Some(Self::Bt2020),
            wire::ENCODING_SMPTE240M => Some(Self::Smpte240m),
            _ => None,
        }
    }

    fn matrix(self) -> YuvStandardMatrix {
        match self {
            Self::Bt601 => YuvStandardMatrix::Bt601,
            Self::Bt709 => YuvStandardMatrix::Bt709,
            Self::Bt2020 => YuvStandardMatrix::Bt2020,
            // V4L2's; the crate's are rounded to three digits.
            Self::Smpte240m => YuvStandardMatrix::Custom(0.2122, 0.0865),
        }
    }
}

/// The values that luma and chroma take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantization {
    /// 0 to 255.
    Full,
    /// Luma 16 to 235, chroma 16 to 240.
    Limited,
}

impl Quantization {
    fn from_wire(value: u32) -> Option<Self> {
        match value {
            wire::QUANTIZATION_FULL => Some(Self::Full),
            wire::QUANTIZATION_LIMITED => Some(Self::Limited),
            _ => None,
        }
    }

    fn range(self) -> YuvRange {
        match self {
            Self::Full => YuvRange::Full,
            Self::Limited => YuvRange::Limited,
        }
    }

    /// Black and the span to white of luma, or neutral and the span of chroma.
    fn scale(self, luma: bool) -> (f32, f32) {
        match (self, luma) {
            (Self::Full, true) => (0.0, 255.0),
            (Self::Full, false) => (128.0, 255.0),
            (Self::Limited, true) => (16.0, 219.0),
            (Self::Limited, false) => (128.0, 224.0),
        }
    }
}

/// An image's checked layout in a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The pixel format.
    pub pixels: Pixels,
    /// Width in pixels, 1 to [`MAX_SIDE`].
    pub width: u32,
    /// Height in lines, 1 to [`MAX_SIDE`].
    pub height: u32,
    /// Bytes from one line to the next; not less than a line.
    pub stride: u32,
    /// `None` for RGB24.
    pub encoding: Option<Encoding>,
    /// Full for RGB24.
    pub quantization: Quantization,
}

impl Layout {
    /// Checks a layout; `None` if the format is unknown, cannot have this size, encoding or quantization, or the stride is shorter
    /// than a line.
    pub fn from_wire(format: &wire::Format) -> Option<Self> {
        let pixels = Pixels::from_fourcc(format.fourcc.get())?;
        let quantization = Quantization::from_wire(format.quantization.get())?;
        let encoding = match (pixels, format.encoding.get()) {
            (Pixels::Rgb24, wire::ENCODING_NONE) if quantization == Quantization::Full => None,
            (Pixels::Rgb24, _) => return None,
            (_, encoding) => Some(Encoding::from_wire(encoding)?),
        };
        let layout = Self {
            pixels,
            width: format.width.get(),
            height: format.height.get(),
            stride: format.stride.get(),
            encoding,
            quantization,
        };
        let size_fits = match pixels {
            Pixels::Grey | Pixels::Rgb24 => true,
            Pixels::Nv12 => layout.width.is_multiple_of(2) && layout.height.is_multiple_of(2),
            Pixels::Yuyv => layout.width.is_multiple_of(2),
        };
        let sides = 1..=MAX_SIDE;
        (size_fits
            && sides.contains(&layout.width)
            && sides.contains(&layout.height)
            && layout.stride >= layout.line())
        .then_some(layout)
    }

    /// Whether an image of this layout can be converted to `to`: of the same size, and with the same encoding unless one is RGB24.
    pub fn converts_to(&self, to: &Layout) -> bool {
        let same_size = self.width == to.width && self.height == to.height;
        let encodings = self.encoding.zip(to.encoding);
        same_size && encodings.is_none_or(|(from, to)| from == to)
    }

    /// Bytes of a line without padding.
    fn line(&self) -> u32 {
        match self.pixels {
            Pixels::Grey | Pixels::Nv12 => self.width,
            Pixels::Yuyv => self.width * 2,
            Pixels::Rgb24 => self.width * 3,
        }
    }

    fn pixel_count(&self) -> usize {
        self.width as usize * self.height as usize
    }

    /// Lines of all planes.
    fn lines(&self) -> u32 {
        match self.pixels {
            Pixels::Nv12 => self.height / 2 * 3,
            _ => self.height,
        }
    }

    /// Bytes of the buffer that the image takes up, padding included: V4L2's `sizeimage`.
    pub fn size(&self) -> u64 {
        u64::from(self.stride) * u64::from(self.lines())
    }

    /// Bytes of the image without padding.
    pub fn packed_size(&self) -> usize {
        self.line() as usize * self.lines() as usize
    }

    /// The image's lines.
    pub fn extents(&self) -> Vec<Extent> {
        let length = u64::from(self.line());
        (0..u64::from(self.lines()))
            .map(|line| Extent {
                offset: line * u64::from(self.stride),
                length,
            })
            .collect()
    }
}

/// Converts images, with memory that is kept from one to the next, since fresh memory costs more than the conversion.
#[derive(Debug, Default)]
pub struct Converter {
    output: Vec<u8>,
    planes: Vec<u8>,
}

impl Converter {
    /// Converts `image`, of `from`'s format and with its lines back to back, to `to`'s, likewise. `from` converts to `to`, and `image`
    /// has [`Layout::packed_size`] of it; its bytes may be changed.
    pub fn convert<'a>(
        &'a mut self,
        from: &Layout,
        to: &Layout,
        image: &'a mut [u8],
    ) -> Result<&'a [u8], YuvError> {
        if from.encoding.is_some() && to.encoding.is_some() {
            requantize(from, to.quantization, image);
        }
        let (width, pixels) = (from.width as usize, from.pixel_count());
        let output = sized(&mut self.output, to.packed_size());
        match (from.pixels, to.pixels) {
            (a, b) if a == b => return Ok(image),
            (Pixels::Nv12, Pixels::Grey) => return Ok(&image[..pixels]),
            (Pixels::Rgb24, Pixels::Grey) => encode_grey(from, to, image, output)?,
            (Pixels::Rgb24, Pixels::Nv12) => {
                let (luma, chroma) = output.split_at_mut(pixels);
                encode(from, to, image, luma, chroma)?;
            }
            (Pixels::Rgb24, _) => encode_yuyv(from, to, image, output, &mut self.planes)?,
            (Pixels::Grey, Pixels::Rgb24) => decode_grey(from, to, image, output)?,
            (Pixels::Nv12, Pixels::Rgb24) => decode_nv12(from, to, image, output)?,
            (_, Pixels::Rgb24) => decode_yuyv(from, to, image, output, &mut self.planes)?,
            (Pixels::Grey, Pixels::Nv12) => {
                output[..pixels].copy_from_slice(image);
                output[pixels..].fill(NEUTRAL);
            }
            (Pixels::Grey, _) => {
                for (pair, y) in output.chunks_exact_mut(2).zip(image) {
                    pair.copy_from_slice(&[*y, NEUTRAL]);
                }
            }
            (Pixels::Nv12, _) => {
                let (luma, chroma) = image.split_at(pixels);
                let pairs = luma.chunks_exact(2 * width).zip(chroma.chunks_exact(width));
                for ((luma, chroma), output) in pairs.zip(output.chunks_exact_mut(4 * width)) {
                    let (above, below) = output.split_at_mut(2 * width);
                    pack(&luma[..width], chroma, above);
                    pack(&luma[width..], chroma, below);
                }
            }
            (Pixels::Yuyv, Pixels::Grey) => luma_of_yuyv(image, output),
            (Pixels::Yuyv, _) => {
                let (luma, chroma) = output.split_at_mut(pixels);
                luma_of_yuyv(image, luma);
                let pairs = image.chunks_exact(4 * width);
                for (image, chroma) in pairs.zip(chroma.chunks_exact_mut(width)) {
                    let (above, below) = image.split_at(2 * width);
                    mean_chroma(above, below, chroma);
                }
            }
        }
        Ok(output)
    }

    /// Gives back memory of more than `kept` bytes.
    pub fn shrink(&mut self, kept: usize) {
        if self.output.len() > kept {
            self.output = Vec::new();
        }
    }
}

/// `length` bytes of `scratch`, with whatever is in them, from the start of a cache line on: stores of vectors that cross lines made GREY to
/// RGB24 a fifth slower.
pub(crate) fn sized(scratch: &mut Vec<u8>, length: usize) -> &mut [u8] {
    if scratch.len() < length + LINE - 1 {
        scratch.resize(length + LINE - 1, 0);
    }
    let start = scratch.as_ptr().align_offset(LINE);
    &mut scratch[start..start + length]
}

/// Bytes of a cache line.
const LINE: usize = 64;

/// Chroma of grey.
const NEUTRAL: u8 = 128;

/// Scales luma and chroma of an image with both from its quantization to another.
fn requantize(from: &Layout, to: Quantization, image: &mut [u8]) {
    if from.quantization == to {
        return;
    }
    let table = |luma: bool| -> [u8; 256] {
        let ((zero, span), (to_zero, to_span)) = (from.quantization.scale(luma), to.scale(luma));
        // The conversion saturates, and what is outside of limited range is as good as its end.
        std::array::from_fn(|value| {
            ((value as f32 - zero) * to_span / span + to_zero).round() as u8
        })
    };
    let (luma, chroma) = (table(true), table(false));
    match from.pixels {
        Pixels::Yuyv => {
            for pair in image.chunks_exact_mut(2) {
                (pair[0], pair[1]) = (luma[usize::from(pair[0])], chroma[usize::from(pair[1])]);
            }
        }
        _ => {
            let (luma_plane, chroma_plane) = image.split_at_mut(from.pixel_count());
            for (plane, table) in [(luma_plane, luma), (chroma_plane, chroma)] {
                for byte in plane {
                    *byte = table[usize::from(*byte)];
                }
            }
        }
    }
}

fn pack(luma: &[u8], chroma: &[u8], yuyv: &mut [u8]) {
    for ((pair, y), c) in yuyv.chunks_exact_mut(2).zip(luma).zip(chroma) {
        pair.copy_from_slice(&[*y, *c]);
    }
}

// These loops take both bytes of a pair as one number, or the compiler makes no vector code of them.

fn luma_of_yuyv(yuyv: &[u8], luma: &mut [u8]) {
    for (pair, y) in yuyv.as_chunks().0.iter().zip(luma) {
        *y = u16::from_le_bytes(*pair) as u8;
    }
}

fn chroma_of_yuyv(yuyv: &[u8], chroma: &mut [u8]) {
    for (pair, c) in yuyv.as_chunks().0.iter().zip(chroma) {
        *c = (u16::from_le_bytes(*pair) >> 8) as u8;
    }
}

/// The chroma of two lines of YUYV, averaged and rounded up.
fn mean_chroma(above: &[u8], below: &[u8], chroma: &mut [u8]) {
    let pairs = above.as_chunks().0.iter().zip(below.as_chunks().0);
    for ((above, below), c) in pairs.zip(chroma) {
        let [above, below] = [above, below].map(|pair| u16::from_le_bytes(*pair) >> 8);
        *c = (above + below).div_ceil(2) as u8;
    }
}

/// Range and matrix of the side that is not RGB24.
fn colours(layout: &Layout) -> (YuvRange, YuvStandardMatrix) {
    let encoding = layout.encoding.unwrap_or(Encoding::Bt601);
    (layout.quantization.range(), encoding.matrix())
}

fn encode_grey(from: &Layout, to: &Layout, rgb: &[u8], luma: &mut [u8]) -> Result<(), YuvError> {
    let (range, matrix) = colours(to);
    let mut image = YuvGrayImageMut {
        y_plane: BufferStoreMut::Borrowed(luma),
        y_stride: to.width,
        width: to.width,
        height: to.height,
    };
    yuv::rgb_to_yuv400(&mut image, rgb, from.line(), range, matrix)
}

/// From RGB24 to planes; the length of `chroma` tells whether each line has some, or every second.
fn encode(
    from: &Layout,
    to: &Layout,
    rgb: &[u8],
    luma: &mut [u8],
    chroma: &mut [u8],
) -> Result<(), YuvError> {
    let (range, matrix) = colours(to);
    let every_line = chroma.len() == luma.len();
    let mut image = YuvBiPlanarImageMut {
        width: to.width,
        height: luma.len() as u32 / to.width,
        y_plane: BufferStoreMut::Borrowed(luma),
        y_stride: to.width,
        uv_plane: BufferStoreMut::Borrowed(chroma),
        uv_stride: to.width,
    };
    let rgb_to_planes = if every_line {
        yuv::rgb_to_yuv_nv16
    } else {
        yuv::rgb_to_yuv_nv12
    };
    rgb_to_planes(&mut image, rgb, from.line(), range, matrix, MODE)
}

/// The crate makes planes only. They are made and packed a few lines at a time, while the cache has them.
fn encode_yuyv(
    from: &Layout,
    to: &Layout,
    rgb: &[u8],
    yuyv: &mut [u8],
    planes: &mut Vec<u8>,
) -> Result<(), YuvError> {
    let band = band(to.width);
    let (luma, chroma) = sized(planes, 2 * band).split_at_mut(band);
    for (rgb, yuyv) in rgb.chunks(3 * band).zip(yuyv.chunks_mut(2 * band)) {
        let pixels = yuyv.len() / 2;
        let (luma, chroma) = (&mut luma[..pixels], &mut chroma[..pixels]);
        encode(from, to, rgb, luma, chroma)?;
        pack(luma, chroma, yuyv);
    }
    Ok(())
}

/// Pixels of the lines that are packed or unpacked at a time.
fn band(width: u32) -> usize {
    const BAND: usize = 8192;
    let width = width as usize;
    width * (BAND / width).max(1)
}

/// The crate's usual one, of 13 bits where it computes in 16.
const MODE: YuvConversionMode = YuvConversionMode::Balanced;

fn decode_grey(from: &Layout, to: &Layout, luma: &[u8], rgb: &mut [u8]) -> Result<(), YuvError> {
    let (range, matrix) = colours(from);
    let image = YuvGrayImage {
        y_plane: luma,
        y_stride: from.width,
        width: from.width,
        height: from.height,
    };
    yuv::yuv400_to_rgb(&image, rgb, to.line(), range, matrix)
}

fn decode_nv12(from: &Layout, to: &Layout, nv12: &[u8], rgb: &mut [u8]) -> Result<(), YuvError> {
    let (luma, chroma) = nv12.split_at(from.pixel_count());
    decode(from, to, luma, chroma, rgb)
}

/// From planes to RGB24; the length of `chroma` tells whether each line has some, or every second.
fn decode(
    from: &Layout,
    to: &Layout,
    luma: &[u8],
    chroma: &[u8],
    rgb: &mut [u8],
) -> Result<(), YuvError> {
    let (range, matrix) = colours(from);
    let image = YuvBiPlanarImage {
        y_plane: luma,
        y_stride: from.width,
        uv_plane: chroma,
        uv_stride: from.width,
        width: from.width,
        height: luma.len() as u32 / from.width,
    };
    let planes_to_rgb = if chroma.len() == luma.len() {
        yuv::yuv_nv16_to_rgb
    } else {
        yuv::yuv_nv12_to_rgb
    };
    planes_to_rgb(&image, rgb, to.line(), range, matrix, MODE)
}

/// The crate has vector code for planes only, to which a few lines at a time are unpacked.
fn decode_yuyv(
    from: &Layout,
    to: &Layout,
    yuyv: &[u8],
    rgb: &mut [u8],
    planes: &mut Vec<u8>,
) -> Result<(), YuvError> {
    let band = band(from.width);
    let (luma, chroma) = sized(planes, 2 * band).split_at_mut(band);
    for (yuyv, rgb) in yuyv.chunks(2 * band).zip(rgb.chunks_mut(3 * band)) {
        let pixels = yuyv.len() / 2;
        let (luma, chroma) = (&mut luma[..pixels], &mut chroma[..pixels]);
        luma_of_yuyv(yuyv, luma);
        chroma_of_yuyv(yuyv, chroma);
        decode(from, to, luma, chroma, rgb)?;
    }
    Ok(())
}
