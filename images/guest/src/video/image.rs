// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Images as V4L2 lays them out (Documentation/userspace-api/media/v4l/pixfmt.rst), without padding between lines.

use crate::video::v4l2::{FIELD_NONE, PixFormat};

/// A pixel format that the device knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pixels {
    /// One byte of luma.
    Grey,
    /// Luma, then a plane of Cb and Cr for each 2×2 pixels.
    Nv12,
    /// Y0 Cb Y1 Cr for each two pixels.
    Yuyv,
    /// Red, green, blue.
    Rgb24,
}

impl Pixels {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Grey, Self::Nv12, Self::Yuyv, Self::Rgb24];

    /// `V4L2_PIX_FMT_…`.
    pub fn fourcc(self) -> u32 {
        u32::from_le_bytes(*match self {
            Self::Grey => b"GREY",
            Self::Nv12 => b"NV12",
            Self::Yuyv => b"YUYV",
            Self::Rgb24 => b"RGB3",
        })
    }
}

/// Pixel format and size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Image {
    /// The format.
    pub pixels: Pixels,
    /// Pixels in a line.
    pub width: usize,
    /// Lines.
    pub height: usize,
}

impl Image {
    /// A page: whoever makes a buffer of it, it is contiguous.
    pub const PAGE: Self = Self::grey(64, 64);

    /// A byte for each pixel: the way to a buffer of any length.
    pub const fn grey(width: usize, height: usize) -> Self {
        Self {
            pixels: Pixels::Grey,
            width,
            height,
        }
    }

    /// The same picture in another format.
    pub const fn with(self, pixels: Pixels) -> Self {
        Self { pixels, ..self }
    }

    /// Bytes from one line to the next (of the luma, for NV12).
    pub fn stride(self) -> usize {
        match self.pixels {
            Pixels::Grey | Pixels::Nv12 => self.width,
            Pixels::Yuyv => self.width.next_multiple_of(2) * 2,
            Pixels::Rgb24 => self.width * 3,
        }
    }

    /// Bytes.
    pub fn size(self) -> usize {
        match self.pixels {
            Pixels::Nv12 => self.stride() * self.height + self.stride() * self.height.div_ceil(2),
            _ => self.stride() * self.height,
        }
    }

    /// What to ask of S_FMT.
    pub fn to_v4l2(self) -> PixFormat {
        PixFormat {
            width: self.width as u32,
            height: self.height as u32,
            pixelformat: self.pixels.fourcc(),
            field: FIELD_NONE,
            ..PixFormat::default()
        }
    }

    /// The luma of the pixel at (x, y), for formats that have it as such.
    pub fn luma(self, bytes: &[u8], x: usize, y: usize) -> Option<u8> {
        let at = match self.pixels {
            Pixels::Grey | Pixels::Nv12 => y * self.stride() + x,
            Pixels::Yuyv => y * self.stride() + x * 2,
            Pixels::Rgb24 => return None,
        };
        bytes.get(at).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_format_descriptions() {
        let size = |pixels| Image::grey(16, 8).with(pixels).size();
        assert_eq!(Pixels::ALL.map(size), [128, 192, 256, 384]);
    }
}
