// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Pixel formats: where an image's lines lie in a buffer, and conversion between formats.
//!
//! Formats are V4L2's: GREY, NV12, YUYV and RGB24, in BT.601 limited range. Images are converted without the padding at
//! their lines' ends: [`Layout::extents`] says where the lines are, and conversion works on them back to back.
//!
//! All formats but RGB24 are seen as a luma plane and a plane of interleaved chroma, which GREY lacks, NV12 has for every
//! second line and YUYV for every line. Between these, luma is moved unchanged and chroma lines are repeated, averaged in
//! pairs, or made neutral; from and to RGB24 the `yuv` crate converts.

use pinbed_abi::wire;
use yuv::{
    BufferStoreMut, YuvBiPlanarImage, YuvBiPlanarImageMut, YuvConversionMode, YuvError,
    YuvGrayImage, YuvGrayImageMut, YuvRange, YuvStandardMatrix,
};

use crate::dma::Extent;

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
}

impl Layout {
    /// Checks a layout; `None` if the format is unknown, cannot have this size, or the stride is shorter than a line.
    pub fn from_wire(format: &wire::Format) -> Option<Self> {
        let pixels = Pixels::from_fourcc(format.fourcc.get())?;
        let layout = Self {
            pixels,
            width: format.width.get(),
            height: format.height.get(),
            stride: format.stride.get(),
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

    /// Bytes of a line without padding.
    fn line(&self) -> u32 {
        match self.pixels {
            Pixels::Grey | Pixels::Nv12 => self.width,
            Pixels::Yuyv => self.width * 2,
            Pixels::Rgb24 => self.width * 3,
        }
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

/// Converts an image of `from`'s format, its lines back to back, to `to`'s, likewise. Both have the same width and height,
/// and `image` has [`Layout::packed_size`] of `from`.
pub fn convert(from: &Layout, to: &Layout, image: &[u8]) -> Result<Vec<u8>, YuvError> {
    let (width, height) = (from.width as usize, from.height as usize);
    let mut converted = vec![0; to.packed_size()];
    match (from.pixels, to.pixels) {
        (a, b) if a == b => converted.copy_from_slice(image),
        (Pixels::Rgb24, Pixels::Yuyv) => {
            let (mut luma, mut chroma) = (vec![0; width * height], vec![0; width * height]);
            encode(from, image, &mut luma, &mut chroma)?;
            pack_yuyv(&luma, &chroma, &mut converted);
        }
        (Pixels::Rgb24, _) => {
            let (luma, chroma) = converted.split_at_mut(width * height);
            encode(from, image, luma, chroma)?;
        }
        (Pixels::Yuyv, _) => {
            let (luma, chroma) = unpack_yuyv(image);
            from_planes(to, &luma, &chroma, &mut converted)?;
        }
        _ => {
            let (luma, chroma) = image.split_at(width * height);
            from_planes(to, luma, chroma, &mut converted)?;
        }
    }
    Ok(converted)
}

/// Makes an image of `to`'s format of a luma plane and a plane of interleaved chroma; the length of `chroma` tells which
/// lines have some.
fn from_planes(to: &Layout, luma: &[u8], chroma: &[u8], image: &mut [u8]) -> Result<(), YuvError> {
    let width = to.width as usize;
    match to.pixels {
        Pixels::Grey => image.copy_from_slice(luma),
        Pixels::Nv12 => {
            let (to_luma, to_chroma) = image.split_at_mut(luma.len());
            to_luma.copy_from_slice(luma);
            if chroma.is_empty() {
                to_chroma.fill(NEUTRAL);
            } else {
                let pairs = chroma.chunks_exact(2 * width);
                for (to, pair) in to_chroma.chunks_exact_mut(width).zip(pairs) {
                    let (above, below) = pair.split_at(width);
                    for ((to, a), b) in to.iter_mut().zip(above).zip(below) {
                        *to = (u16::from(*a) + u16::from(*b)).div_ceil(2) as u8;
                    }
                }
            }
        }
        Pixels::Yuyv => {
            let neutral = vec![NEUTRAL; width];
            let chroma_lines = chroma.len() / width;
            let lines = image
                .chunks_exact_mut(2 * width)
                .zip(luma.chunks_exact(width));
            for (line, (image, luma)) in lines.enumerate() {
                // One chroma line for each line, or for two.
                let at = line * chroma_lines / to.height as usize * width;
                let chroma = chroma.get(at..at + width).unwrap_or(&neutral);
                pack_yuyv(luma, chroma, image);
            }
        }
        Pixels::Rgb24 => decode(to, luma, chroma, image)?,
    }
    Ok(())
}

/// Chroma of grey.
const NEUTRAL: u8 = 128;

fn pack_yuyv(luma: &[u8], chroma: &[u8], image: &mut [u8]) {
    for ((pair, y), c) in image.chunks_exact_mut(2).zip(luma).zip(chroma) {
        pair.copy_from_slice(&[*y, *c]);
    }
}

fn unpack_yuyv(image: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let (mut luma, mut chroma) = (vec![0; image.len() / 2], vec![0; image.len() / 2]);
    for ((pair, y), c) in image.chunks_exact(2).zip(&mut luma).zip(&mut chroma) {
        (*y, *c) = (pair[0], pair[1]);
    }
    (luma, chroma)
}

/// From RGB24 to planes; the length of `chroma` tells which lines have some.
fn encode(from: &Layout, rgb: &[u8], luma: &mut [u8], chroma: &mut [u8]) -> Result<(), YuvError> {
    let (width, height) = (from.width, from.height);
    let every_line = chroma.len() == luma.len();
    let (range, matrix) = (YuvRange::Limited, YuvStandardMatrix::Bt601);
    if chroma.is_empty() {
        let mut image = YuvGrayImageMut {
            y_plane: BufferStoreMut::Borrowed(luma),
            y_stride: width,
            width,
            height,
        };
        return yuv::rgb_to_yuv400(&mut image, rgb, from.line(), range, matrix);
    }
    let mut image = YuvBiPlanarImageMut {
        y_plane: BufferStoreMut::Borrowed(luma),
        y_stride: width,
        uv_plane: BufferStoreMut::Borrowed(chroma),
        uv_stride: width,
        width,
        height,
    };
    let rgb_to_planes = if every_line {
        yuv::rgb_to_yuv_nv16
    } else {
        yuv::rgb_to_yuv_nv12
    };
    let mode = YuvConversionMode::Balanced;
    rgb_to_planes(&mut image, rgb, from.line(), range, matrix, mode)
}

/// From planes to RGB24; the length of `chroma` tells which lines have some.
fn decode(to: &Layout, luma: &[u8], chroma: &[u8], rgb: &mut [u8]) -> Result<(), YuvError> {
    let (width, height) = (to.width, to.height);
    let (range, matrix) = (YuvRange::Limited, YuvStandardMatrix::Bt601);
    if chroma.is_empty() {
        let image = YuvGrayImage {
            y_plane: luma,
            y_stride: width,
            width,
            height,
        };
        return yuv::yuv400_to_rgb(&image, rgb, to.line(), range, matrix);
    }
    let image = YuvBiPlanarImage {
        y_plane: luma,
        y_stride: width,
        uv_plane: chroma,
        uv_stride: width,
        width,
        height,
    };
    let planes_to_rgb = if chroma.len() == luma.len() {
        yuv::yuv_nv16_to_rgb
    } else {
        yuv::yuv_nv12_to_rgb
    };
    let mode = YuvConversionMode::Balanced;
    planes_to_rgb(&image, rgb, to.line(), range, matrix, mode)
}
