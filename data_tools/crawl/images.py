"""From the bytes of a stranger to bytes that img2dataset can't damage.

img2dataset decodes with cv2.IMREAD_UNCHANGED and encodes what it gets: a 16-bit PNG becomes white,
a float TIFF black, EXIF rotation is lost, all counted as success. What would be damaged is turned
into 8-bit RGB here; everything else passes byte for byte. Sizes are read from the header and judged
before a pixel is decoded: a 445 kB PNG can hold 144 million of them.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

# The limit is `max_pixels` of check_image, on every header; Pillow's own would warn once more, with
# another number.
Image.MAX_IMAGE_PIXELS = None
# A white list, because Pillow also "opens" PostScript (by running Ghostscript) and scientific
# formats.
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"]
_EXIF_ORIENTATION = 0x0112
_PNG_BIT_DEPTH = 24  # offset of IHDR's bit depth: Pillow reports 16-bit RGB as mode "RGB"


class ImageRefused(Exception):
    """`status` is the ledger's word."""

    def __init__(self, status: str, detail: str) -> None:
        super().__init__(status, detail)
        self.status, self.detail = status, detail


@dataclass(frozen=True)
class CheckedImage:
    """`content`: bytes of a JPEG, PNG or WebP; width and height in pixels, upright."""

    content: bytes
    width: int
    height: int


def check_image(content: bytes, max_pixels: int) -> CheckedImage:
    """Read the header, refuse what is no image or too large, and normalise what img2dataset would
    damage.

    Blocking and, when it decodes, slow (a second for 50 megapixels): call it in a thread.
    """
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except Exception as error:  # Pillow raises anything on hostile bytes: SyntaxError, struct.error
        looks = "SVG" if b"<svg" in content[:1000].lower() else f"starts with {content[:12]!r}"
        raise ImageRefused("rejected:not_an_image", f"{looks} ({type(error).__name__})") from error
    with image:
        width, height = image.size
        if width * height > max_pixels:
            raise ImageRefused(
                "rejected:too_many_pixels", f"{width}x{height}, {max_pixels} allowed"
            )
        try:
            if _passes(image, content):
                return CheckedImage(content, width, height)
            return _normalise(image)
        except Exception as error:  # as above, now from the decoder
            raise ImageRefused("rejected:not_decodable", f"{error!r}"[:200]) from error


def _passes(image: Image.Image, content: bytes) -> bool:
    if image.mode not in ("RGB", "L") or "transparency" in image.info:
        return False
    if image.format == "PNG":
        # getexif() would decode the whole PNG to look behind its pixels, so the chunk's name is
        # searched instead
        return content[_PNG_BIT_DEPTH] <= 8 and b"eXIf" not in content and not _animated(image)
    if image.format == "WEBP":
        return _upright(image) and not _animated(image)
    # MPO is a JPEG with further views behind it, which cv2 does not see
    return image.format in ("JPEG", "MPO") and _upright(image)


def _animated(image: Image.Image) -> bool:
    return bool(getattr(image, "is_animated", False))


def _upright(image: Image.Image) -> bool:
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1) in (0, 1)
    except Exception:  # broken EXIF says nothing about the pixels, most often fine
        return True


def _normalise(image: Image.Image) -> CheckedImage:
    """8-bit RGB, upright, over white, first frame. JPEGs stay JPEG (quality 100, 4:4:4): a
    12-megapixel PNG takes seconds."""
    lossy = image.format in ("JPEG", "MPO")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(_to_8_bit(np.asarray(image)))
    elif not _upright(image):
        image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        white = Image.new("RGBA", colours.size, "white")
        image = Image.alpha_composite(white, colours)
    image = image.convert("RGB")
    stream = io.BytesIO()
    if lossy:
        image.save(stream, "JPEG", quality=100, subsampling=0)
    else:
        image.save(stream, "PNG", compress_level=1)
    return CheckedImage(stream.getvalue(), *image.size)


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    """(height, width) of 16-bit, 32-bit or float samples -> uint8. Integers up to 65535 and floats
    in 0..1 keep their scale; anything else has no known one and is stretched from its minimum to
    its maximum."""
    is_float = values.dtype.kind == "f"
    values = np.nan_to_num(values.astype(np.float64))
    low, high = values.min(), values.max()
    if low >= 0 and high <= (1.0 if is_float else 65535):
        scaled = values * 255 if is_float else values / 257
    else:
        scaled = (values - low) / max(high - low, 1e-12) * 255
    return np.rint(scaled).clip(0, 255).astype(np.uint8)
