// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Images as V4L2 lays them out (Documentation/userspace-api/media/v4l/pixfmt.rst) and colours them (colorspaces.rst there).

use crate::video::v4l2::{FIELD_NONE, PIX_FMT_FLAG_SET_CSC, PIX_FMT_PRIV_MAGIC, PixFormat};

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

/// What S_FMT is asked to make of an image's colours; zero is V4L2's default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Colours {
    /// `V4L2_COLORSPACE_…`
    pub colorspace: u32,
    /// `V4L2_YCBCR_ENC_…`
    pub encoding: u32,
    /// `V4L2_QUANTIZATION_…`
    pub quantization: u32,
    /// On a CAPTURE queue: convert to these colours (`V4L2_PIX_FMT_FLAG_SET_CSC`).
    pub convert: bool,
}

impl Colours {
    /// Whatever the node makes of them.
    pub const ANY: Self = Self {
        colorspace: 0,
        encoding: 0,
        quantization: 0,
        convert: false,
    };
}

/// Pixel format, size and colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Image {
    /// The format.
    pub pixels: Pixels,
    /// Pixels in a line.
    pub width: usize,
    /// Lines.
    pub height: usize,
    /// Bytes between a line's end and the next line.
    pub padding: usize,
    /// What S_FMT is asked for.
    pub colours: Colours,
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
            padding: 0,
            colours: Colours::ANY,
        }
    }

    /// The same picture in another format.
    pub const fn with(self, pixels: Pixels) -> Self {
        Self { pixels, ..self }
    }

    /// The same picture with lines that begin at multiples of `bytes`.
    pub fn aligned(self, bytes: usize) -> Self {
        let line = self.line();
        let padding = line.next_multiple_of(bytes) - line;
        Self { padding, ..self }
    }

    /// The same picture in other colours.
    pub fn coloured(self, colours: Colours) -> Self {
        Self { colours, ..self }
    }

    /// Bytes of a line without padding.
    pub fn line(self) -> usize {
        match self.pixels {
            Pixels::Grey | Pixels::Nv12 => self.width,
            Pixels::Yuyv => self.width.next_multiple_of(2) * 2,
            Pixels::Rgb24 => self.width * 3,
        }
    }

    /// Bytes from one line to the next.
    pub fn stride(self) -> usize {
        self.line() + self.padding
    }

    /// Bytes.
    pub fn size(self) -> usize {
        match self.pixels {
            Pixels::Nv12 => self.stride() * self.height + self.stride() * self.height.div_ceil(2),
            _ => self.stride() * self.height,
        }
    }

    /// The lines of an image, one after the other, without or with only their padding.
    pub fn lines(self, bytes: &[u8], padding: bool) -> Vec<u8> {
        bytes
            .chunks(self.stride())
            .flat_map(|line| {
                let (line, rest) = line.split_at(self.line());
                if padding { rest } else { line }
            })
            .copied()
            .collect()
    }

    /// What to ask of S_FMT.
    pub fn to_v4l2(self) -> PixFormat {
        PixFormat {
            width: self.width as u32,
            height: self.height as u32,
            pixelformat: self.pixels.fourcc(),
            field: FIELD_NONE,
            // Zero asks for no padding.
            bytesperline: if self.padding > 0 {
                self.stride() as u32
            } else {
                0
            },
            colorspace: self.colours.colorspace,
            private: PIX_FMT_PRIV_MAGIC,
            flags: if self.colours.convert {
                PIX_FMT_FLAG_SET_CSC
            } else {
                0
            },
            ycbcr_enc: self.colours.encoding,
            quantization: self.colours.quantization,
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
