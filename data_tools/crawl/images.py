"""Checks downloaded images, and converts those that img2dataset would damage.

img2dataset decodes with cv2.IMREAD_UNCHANGED and encodes the result: a 16-bit PNG becomes white, a
float TIFF black, EXIF rotation is lost, and all this counts as success. Such images become 8-bit
RGB here; all others pass byte for byte. The size is read from the header and checked before a pixel
is decoded: a 445 kB PNG can hold 144 million of them.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

# ImageLimits checks every header; Pillow's own limit is another number, and only warns.
Image.MAX_IMAGE_PIXELS = None
# Only these: Pillow also "opens" PostScript (by running Ghostscript) and scientific formats.
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"]
# How files of these formats begin: JPEG, PNG, GIF, TIFF, BMP.
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*", b"BM")
_EXIF_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_OF_16_BIT = np.rint(np.arange(65536) / 257).astype(np.uint8)
ROWS_AT_A_TIME = 256
_PNG_BIT_DEPTH = 24  # offset of IHDR's bit depth: Pillow reports 16-bit RGB as mode "RGB"


class ImageRefused(Exception):
    """Why an image is not used: `status` as it is in the ledger, `detail` in words."""

    def __init__(self, status: str, detail: str) -> None:
        super().__init__(status, detail)
        self.status, self.detail = status, detail


@dataclass(frozen=True)
class ImageLimits:
    """Limits on the size that the header states, in pixels; checked before anything is decoded."""

    max_pixels: int
    min_side: int
    max_side: int
    max_aspect: float
    """Longer side / shorter side."""

    def check(self, width: int, height: int) -> None:
        """Raise ImageRefused if a limit is not kept."""
        size = f"{width}x{height}"
        shorter, longer = min(width, height), max(width, height)
        if width * height > self.max_pixels:
            raise ImageRefused("rejected:too_many_pixels", f"{size}, {self.max_pixels} allowed")
        if shorter < self.min_side:
            raise ImageRefused("rejected:too_small", f"{size}, at least {self.min_side} asked")
        if longer > self.max_side:
            raise ImageRefused("rejected:too_long_side", f"{size}, {self.max_side} allowed")
        if longer > shorter * self.max_aspect:
            raise ImageRefused("rejected:aspect", f"{size}, {self.max_aspect:g} to 1 allowed")


@dataclass(frozen=True)
class CheckedImage:
    """`content`: bytes of a JPEG, PNG or WebP; width and height: pixels of the upright image;
    `turned`: the file as the site sent it was not upright."""

    content: bytes
    width: int
    height: int
    turned: bool = False


def looks_like_image(content: bytes) -> bool:
    """Whether a body begins as a file of one of FORMATS does; no compressed stream does."""
    in_box = content[:4] == b"RIFF" and content[8:12] == b"WEBP"
    return content.startswith(_BEGINNINGS) or in_box or content[4:8] == b"ftyp"


def is_complete_image(content: bytes) -> bool:
    """Whether a JPEG, PNG or GIF ends with the mark of its end."""
    if content.startswith(b"\xff\xd8\xff"):
        return content.endswith(b"\xff\xd9")
    if content.startswith(b"\x89PNG"):
        return content.endswith(b"IEND\xaeB`\x82")
    return content.startswith(b"GIF8") and content.endswith(b"\0;")


def is_plain_jpeg(content: bytes) -> bool:
    """Whether check_image takes only about 0.1 ms for this image, as for most images of the web."""
    return (
        len(content) < 1_000_000 and content[:3] == b"\xff\xd8\xff" and b"Exif" not in content[:64]
    )


def check_image(content: bytes, limits: ImageLimits) -> CheckedImage:
    """Read the header, refuse what is no image or has a size outside the limits, and convert what
    img2dataset would damage. Raises ImageRefused.

    It blocks, and is slow where it decodes (a second for 50 megapixels): call it in a thread.
    """
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
    except Exception as error:  # Pillow raises anything on hostile bytes: SyntaxError, struct.error
        looks = "SVG" if b"<svg" in content[:1000].lower() else f"starts with {content[:12]!r}"
        raise ImageRefused("rejected:not_an_image", f"{looks} ({type(error).__name__})") from error
    with image:
        limits.check(*image.size)
        try:
            if _passes(image, content):
                return CheckedImage(content, *image.size)
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


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 is upright."""
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # the pixels of a file with broken EXIF are fine most of the time
        return 1
    return value if value in _TURNS else 1


def _upright(image: Image.Image) -> bool:
    return _orientation(image) == 1


def _normalise(image: Image.Image) -> CheckedImage:
    """The first frame as 8-bit RGB, upright, transparent parts on white. JPEGs stay JPEG (quality
    100, 4:4:4), because to encode a 12-megapixel PNG takes seconds."""
    lossy = image.format in ("JPEG", "MPO")
    image.load()  # a PNG's EXIF may lie behind its pixels
    orientation = _orientation(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = Image.fromarray(_to_8_bit(np.asarray(image)))
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        white = Image.new("RGBA", colours.size, "white")
        image = Image.alpha_composite(white, colours)
    image = image.convert("RGB")
    if orientation != 1:
        image = image.transpose(_TURNS[orientation])
    stream = io.BytesIO()
    if lossy:
        image.save(stream, "JPEG", quality=100, subsampling=0)
    else:
        image.save(stream, "PNG", compress_level=1)
    return CheckedImage(stream.getvalue(), *image.size, turned=orientation != 1)


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    """(height, width) of 16-bit, 32-bit or float samples -> uint8 of the same shape.

    Integers up to 65535 and floats in 0..1 keep their scale. Other values have no known scale and
    are stretched from their minimum to their maximum.
    """
    if values.dtype == np.uint16:
        return _OF_16_BIT[values]
    is_float = values.dtype.kind == "f"
    if is_float:
        values = np.nan_to_num(values)
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= (1.0 if is_float else 65535):
        offset, scale = 0.0, 255.0 if is_float else 255 / 65535
    else:
        offset, scale = low, 255 / max(high - low, 1e-12)
    out = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), ROWS_AT_A_TIME):  # float64 of 50 megapixels is 400 MB
        rows = (values[start : start + ROWS_AT_A_TIME].astype(np.float64) - offset) * scale
        out[start : start + ROWS_AT_A_TIME] = np.rint(rows).clip(0, 255)
    return out
