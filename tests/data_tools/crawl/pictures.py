"""Image files as the web has them: plain, odd, hostile. Each function returns the file's bytes."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image


def gradient(width: int = 60, height: int = 40) -> Image.Image:
    """RGB: red grows to the right, green downwards, blue is 30. No two places look alike."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1), np.full_like(x, 30)]
    return Image.fromarray(np.stack(channels, axis=2).astype(np.uint8))


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def decode(content: bytes) -> np.ndarray:
    """(height, width, 3) uint8, as img2dataset's cv2 would see a plain file."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def jpeg(width: int = 60, height: int = 40) -> bytes:
    return encode(gradient(width, height), "JPEG", quality=95)


def png(width: int = 60, height: int = 40) -> bytes:
    return encode(gradient(width, height), "PNG")


def rotated_jpeg() -> bytes:
    """40 wide and 60 high on disk, 60 x 40 when it is shown: EXIF orientation 6."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(gradient().transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=exif)


def png_16_bit(grey: int = 100) -> bytes:
    """Every sample is grey * 257: the 16-bit form of an 8-bit grey."""
    return encode(Image.fromarray(np.full((40, 60), grey * 257, np.uint16)), "PNG")


def rgb_png_16_bit() -> bytes:
    """16 bits a channel, which Pillow can't write: 8 x 8 of (100, 150, 200) * 257."""
    row = b"\0" + struct.pack(">HHH", 100 * 257, 150 * 257, 200 * 257) * 8
    return _png(8, 8, bit_depth=16, colour=2, data=zlib.compress(row * 8))


def float_tiff() -> bytes:
    return encode(Image.fromarray(np.full((40, 60), 0.5, np.float32)), "TIFF")


def cmyk_jpeg() -> bytes:
    return encode(gradient().convert("CMYK"), "JPEG", quality=95)


def transparent_png() -> bytes:
    """Left half opaque red, right half fully transparent black."""
    values = np.zeros((40, 60, 4), np.uint8)
    values[:, :30] = [255, 0, 0, 255]
    return encode(Image.fromarray(values), "PNG")


def palette_png() -> bytes:
    """Two colours, of which the second is transparent by tRNS."""
    image = Image.new("P", (60, 40), 0)
    image.putpalette([200, 10, 10, 0, 0, 0])
    image.paste(1, (30, 0, 60, 40))
    return encode(image, "PNG", transparency=1)


def animated(kind: str) -> bytes:
    """First frame red, second blue. `kind`: GIF, WEBP or PNG."""
    frames = [Image.new("RGB", (60, 40), colour) for colour in ("red", "blue")]
    return encode(frames[0], kind, save_all=True, append_images=frames[1:], duration=100)


def rotated_png() -> bytes:
    """As rotated_jpeg, its EXIF in a chunk."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(gradient().transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)


def rotated_16_bit_tiff() -> bytes:
    """16 bits, 40 wide and 60 high on disk, black above and white below; upright the black is on
    the right."""
    values = np.zeros((60, 40), np.uint16)
    values[30:] = 65535
    return encode(Image.fromarray(values), "TIFF", tiffinfo={274: 6})


def header_png(width: int, height: int) -> bytes:
    """8-bit RGB, all black."""
    return _png(width, height, 8, 2, zlib.compress(b"\0" * ((3 * width + 1) * height), 1))


def bomb_jpeg() -> bytes:
    """A small JPEG whose header claims 60,000 x 60,000."""
    content = bytearray(jpeg())
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = struct.pack(">HH", 60_000, 60_000)
    return bytes(content)


def bomb_gif() -> bytes:
    """A canvas of 65,535 x 65,535."""
    content = bytearray(encode(gradient(), "GIF"))
    content[6:10] = struct.pack("<HH", 65_535, 65_535)
    return bytes(content)


def bomb_png(side: int = 12_000) -> bytes:
    """A header of side x side pixels and almost nothing behind it."""
    return _png(side, side, bit_depth=8, colour=2, data=zlib.compress(b"\0" * 1000))


def _png(width: int, height: int, bit_depth: int, colour: int, data: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour, 0, 0, 0)
    chunks = b""
    for name, body in ((b"IHDR", header), (b"IDAT", data), (b"IEND", b"")):
        chunks += struct.pack(">I", len(body)) + name + body
        chunks += struct.pack(">I", zlib.crc32(name + body))
    return b"\x89PNG\r\n\x1a\n" + chunks
