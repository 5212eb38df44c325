"""One picture in every kind of file there is on the web, and the pixels that it stands for."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image, ImageCms

Build = Callable[[np.ndarray], tuple[bytes, np.ndarray]]
"""RGB uint8 (H, W, 3) -> a file, and the pixels, RGB uint8, that it has to give."""

_UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def by_pillow(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def grey_of(rgb: np.ndarray) -> np.ndarray:
    return rgb[..., 0].copy()


def _three(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


def _as_pillow(kind: str, mode: str = "RGB", **options) -> Build:
    def build(rgb):
        data = saved(Image.fromarray(rgb).convert(mode), kind, **options)
        return data, by_pillow(data)

    return build


def _same(kind: str, **options) -> Build:
    return lambda rgb: (saved(Image.fromarray(rgb), kind, **options), rgb)


def _wide(rgb: np.ndarray) -> np.ndarray:
    """16 bits whose low byte is another number: only the high byte may count."""
    return (rgb.astype(np.uint16) << 8) | (rgb[::-1] ^ 0x5A)


def _grey_16(kind: str) -> Build:
    return lambda rgb: (saved(Image.fromarray(_wide(grey_of(rgb))), kind), _three(grey_of(rgb)))


def _colour_16_png(rgb):
    bgr = np.ascontiguousarray(_wide(rgb)[..., ::-1])
    return cv2.imencode(".png", bgr)[1].tobytes(), rgb


def _colour_16_tiff(rgb):
    bgr = np.ascontiguousarray(_wide(rgb)[..., ::-1])
    expected = np.rint(_wide(rgb) / 257).astype(np.uint8)
    return cv2.imencode(".tiff", bgr)[1].tobytes(), expected


def turned(kind: str, orientation: int, **options) -> Build:
    exif = Image.Exif()
    exif[0x0112] = orientation

    def build(rgb):
        data = saved(Image.fromarray(rgb), kind, exif=exif, **options)
        return data, _UPRIGHT[orientation](by_pillow(saved(Image.fromarray(rgb), kind, **options)))

    return build


def _late_exif(rgb):
    """The chunk behind the pixels, where PNG allows it too."""
    data, expected = turned("PNG", 6)(rgb)
    start = data.index(b"eXIf") - 4
    size = struct.unpack(">I", data[start : start + 4])[0] + 12
    chunk, rest = data[start : start + size], data[:start] + data[start + size :]
    end = rest.index(b"IEND") - 4
    return rest[:end] + chunk + rest[end:], expected


def _with_alpha(rgb: np.ndarray) -> np.ndarray:
    alpha = np.full(rgb.shape[:2], 130, np.uint8)
    alpha[:, ::2] = 0
    return np.dstack([rgb, alpha])


def _alpha(kind: str, **options) -> Build:
    return lambda rgb: (saved(Image.fromarray(_with_alpha(rgb)), kind, **options), rgb)


def _alpha_tiff(rgb):
    with_alpha = _with_alpha(rgb)
    expected = np.rint(rgb * (with_alpha[..., 3:] / 255)).astype(np.uint8)
    return saved(Image.fromarray(with_alpha), "TIFF"), expected


def _grey_alpha(rgb):
    pixels = np.dstack([grey_of(rgb), _with_alpha(rgb)[..., 3]])
    return saved(Image.fromarray(pixels)), _three(grey_of(rgb))


def _clear_colour(mode: str, transparency: object) -> Build:
    def build(rgb):
        image = Image.fromarray(rgb).convert(mode)
        return saved(image, transparency=transparency), by_pillow(saved(image))

    return build


def _inked(mark: Callable[[bytes], bytes]) -> Build:
    """CMYK as Pillow writes it, inverted with Adobe's marker, which `mark` may change. The ink is
    what libjpeg makes of the file through Pillow."""

    def build(rgb):
        image = Image.fromarray(rgb).convert("CMYK")
        data = mark(saved(image, "JPEG", quality=95, subsampling=0))
        with Image.open(io.BytesIO(data)) as opened:
            ink = np.asarray(opened).astype(np.float64)
        return data, np.rint((255 - ink[..., :3]) * (255 - ink[..., 3:]) / 255).astype(np.uint8)

    return build


def _as_ycck(data: bytes) -> bytes:
    """Pillow cannot write YCCK: the transform in Adobe's marker says it of the same ink."""
    place = data.index(b"Adobe") + 11
    assert data[place] == 0
    return data[:place] + b"\x02" + data[place + 1 :]


def _without_marker(data: bytes) -> bytes:
    place = data.index(b"Adobe") - 4
    return data[:place] + data[place + 2 + int.from_bytes(data[place + 2 : place + 4], "big") :]


def _gamma(rgb):
    data = saved(Image.fromarray(rgb))
    body = b"gAMA" + struct.pack(">I", 100_000)
    chunk = struct.pack(">I", 4) + body + struct.pack(">I", zlib.crc32(body))
    return data[:33] + chunk + data[33:], rgb


def _profile() -> bytes:
    """A profile whose red and green are exchanged: to apply it would show."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = profile.index(b"rXYZ"), profile.index(b"gXYZ")
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(profile)


def _animated(kind: str, mode: str = "RGB", **options) -> Build:
    def build(rgb):
        first, second = (Image.fromarray(a).convert(mode) for a in (rgb, 255 - rgb))
        data = saved(first, kind, save_all=True, append_images=[second], duration=90, **options)
        return data, np.asarray(first.convert("RGB"))

    return build


ROWS: dict[str, dict[str, Build]] = {
    "JPEG, baseline or progressive, grey or colour": {
        "jpeg": _as_pillow("JPEG", quality=90),
        "jpeg 4:4:4": _as_pillow("JPEG", quality=95, subsampling=0),
        "jpeg 4:2:2": _as_pillow("JPEG", quality=75, subsampling=1),
        "jpeg progressive": _as_pillow("JPEG", progressive=True),
        "jpeg grey": _as_pillow("JPEG", "L", quality=90),
        "jpeg of RGB": _as_pillow("JPEG", keep_rgb=True),
    },
    "8-bit PNG, WebP, GIF, BMP": {
        "png": _same("PNG"),
        "png grey": _as_pillow("PNG", "L"),
        "webp": _same("WEBP", lossless=True),
        "webp lossy": _as_pillow("WEBP", quality=80),
        "gif": _as_pillow("GIF", "P"),
        "bmp": _same("BMP"),
        "tiff": _same("TIFF"),
        "tiff lzw": _same("TIFF", compression="tiff_lzw"),
    },
    "1 bit, palette": {
        "png 1 bit": _as_pillow("PNG", "1"),
        "bmp 1 bit": _as_pillow("BMP", "1"),
        "tiff fax": _as_pillow("TIFF", "1", compression="group4"),
        "png palette": _as_pillow("PNG", "P"),
        "bmp palette": _as_pillow("BMP", "P"),
        "tiff palette": _as_pillow("TIFF", "P"),
    },
    "16 bits a channel, grey or colour": {
        "png grey 16": _grey_16("PNG"),
        "tiff grey 16": _grey_16("TIFF"),
        "png colour 16": _colour_16_png,
        "tiff colour 16": _colour_16_tiff,
    },
    "EXIF orientation 1 to 8 of JPEG, PNG, WebP, TIFF": {
        f"{kind.lower()} turned {number}": turned(kind, number, **options)
        for kind, options in (
            ("JPEG", {"quality": 95, "subsampling": 0}),
            ("PNG", {}),
            ("WEBP", {"lossless": True}),
            ("TIFF", {}),
        )
        for number in range(1, 9)
    }
    | {"png turned at the end": _late_exif},
    "transparency: an alpha channel, a transparent colour": {
        "png alpha": _alpha("PNG"),
        "webp alpha": _alpha("WEBP", lossless=True, exact=True),
        "tiff alpha": _alpha_tiff,
        "png grey alpha": _grey_alpha,
        "png clear grey": _clear_colour("L", 3),
        "png clear colour": _clear_colour("RGB", (4, 5, 6)),
        "png clear index": _clear_colour("P", 3),
        "png clear indices": _clear_colour("P", bytes(range(256))),
    },
    "CMYK and YCCK JPEG, inverted as Adobe does": {
        "jpeg cmyk": _inked(lambda data: data),
        "jpeg ycck": _inked(_as_ycck),
        "jpeg cmyk unmarked": _inked(_without_marker),
    },
    "ICC profile, gamma": {
        "jpeg profile": _as_pillow("JPEG", quality=95, icc_profile=_profile()),
        "png profile": _same("PNG", icc_profile=_profile()),
        "png gamma": _gamma,
    },
    "animated GIF, WebP, PNG": {
        "gif animated": _animated("GIF", "P"),
        "webp animated": _animated("WEBP", lossless=True),
        "png animated": _animated("PNG"),
    },
}
"""By the rows of the table in pipeline/data/README.md."""

TOLERANCE = {"jpeg cmyk": 2, "jpeg ycck": 2, "jpeg cmyk unmarked": 2, "tiff alpha": 1}
"""Levels, where the table's words are not exact."""

KINDS: dict[str, Build] = {name: build for row in ROWS.values() for name, build in row.items()}


def _float_tiff(rgb: np.ndarray) -> bytes:
    return saved(Image.fromarray((grey_of(rgb) / 255).astype(np.float32)), "TIFF")


def _whole_number_tiff(rgb: np.ndarray) -> bytes:
    return saved(Image.fromarray(grey_of(rgb).astype(np.int32) * 9000), "TIFF")


REFUSED: dict[str, Callable[[np.ndarray], bytes]] = {
    "tiff of floats": _float_tiff,
    "tiff of 32 bits": _whole_number_tiff,
    "svg": lambda rgb: b"<svg xmlns='http://www.w3.org/2000/svg'></svg>",
    "jpeg cut": lambda rgb: saved(Image.fromarray(rgb), "JPEG", quality=95)[:-200],
    "png cut": lambda rgb: saved(Image.fromarray(rgb))[:-200],
    "webp cut": lambda rgb: saved(Image.fromarray(rgb), "WEBP", lossless=True)[:-200],
    "gif cut": lambda rgb: saved(Image.fromarray(rgb).convert("P"), "GIF")[:-200],
}
