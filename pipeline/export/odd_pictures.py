"""Pictures of odd sizes and kinds, and how many of them another library shows its model as this
project does: measured at every export, for its sentence and its README.md."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.data.samples.decode import decode_rgb
from pipeline.data.samples.transforms import eval_pixels, with_short_side
from pipeline.export.folder import ExportError, Probe
from pipeline.export.opening import open_picture

Processor = Callable[[Image.Image], Tensor]
"""An RGB picture of any size -> float (3, S, S): the levels, 0 to 255, that the model sees."""

# Beside these, sizes around the model's own are tried: there no resize blurs a shifted crop.
_WEB_SIZES = ((640, 427), (500, 333), (1024, 683), (100, 67), (31, 200), (3, 100), (1, 1))
_MAX_LEVELS = 2.0
"""Levels of 255; torchvision's bicubic differs from Pillow's by one."""


@dataclass(frozen=True)
class SizeComparison:
    reader: str
    shifted: list[tuple[int, int]]
    """Sizes (width, height) at which the reader's crop lies one pixel before this project's."""
    count: int
    """Sizes tried."""
    most_levels: float
    """Largest difference of a level, 0 to 255, of pixels that lie at the same place."""
    lowest_cosine: float
    """Between the features of a picture and of its shifted crop; 1 without any."""

    def sentence(self) -> str:
        alike = f"{self.count - len(self.shifted)} of {self.count} odd sizes have the same pixels"
        if self.most_levels >= 0.5:
            alike += f" to {self.most_levels:.0f} of 255 levels"
        if not self.shifted:
            return alike
        return (
            f"{alike}, the crop of the others lies one pixel aside (cosine of the features "
            f"{self.lowest_cosine:.3f} at least)"
        )


def odd_sizes(image_size: int) -> list[tuple[int, int]]:
    """(width, height) in pixels: `image_size` by up to 7 more either way, and sizes of the web."""
    near = [image_size + more for more in range(8)]
    sizes = [(side, image_size) for side in near] + [(image_size, side) for side in near[1:]]
    return sizes + list(_WEB_SIZES)


def compare_sizes(reader: str, process: Processor, probe: Probe) -> SizeComparison:
    """Raises ExportError for pixels that are neither this project's nor `_floored_crop`'s."""
    image_size = probe.images.shape[-1]
    sizes = odd_sizes(image_size)
    shifted, most, ours, theirs = [], 0.0, [], []
    for number, (width, height) in enumerate(sizes):
        picture = _picture(width, height, number)
        found, pixels = process(picture), np.asarray(picture)
        expected = torch.from_numpy(eval_pixels(pixels, image_size))
        floored = _floored_crop(pixels, image_size)
        levels = (found - expected).abs().max().item()
        if levels > _MAX_LEVELS:
            shifted.append((width, height))
            ours.append(expected)
            theirs.append(floored)
            levels = (found - floored).abs().max().item()
        if levels > _MAX_LEVELS:
            raise ExportError(
                f"{reader} makes other pixels of a picture of {width} x {height} than this "
                f"project, {levels:.0f} of 255 levels apart: nothing was exported"
            )
        most = max(most, levels)
    lowest = 1.0
    if shifted:
        pairs = probe.image_features(torch.stack(ours)) * probe.image_features(torch.stack(theirs))
        lowest = pairs.sum(1).min().item()
    return SizeComparison(reader, shifted, len(sizes), most, lowest)


def _floored_crop(pixels: np.ndarray, image_size: int) -> Tensor:
    """uint8 (3, S, S): the crop as transformers places it. CLIP rounds (long side - S) / 2 to the
    even number, transformers always down: with a remainder of 3 by 4 one pixel lies between."""
    resized = np.asarray(with_short_side(pixels, image_size))
    top, left = ((side - image_size) // 2 for side in resized.shape[:2])
    crop = resized[top : top + image_size, left : left + image_size]
    return torch.from_numpy(np.ascontiguousarray(crop.transpose(2, 0, 1)))


def _picture(width: int, height: int, seed: int) -> Image.Image:
    """Smooth, and with every pixel unlike its neighbours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def opened_kinds() -> dict[str, int]:
    """By kind of file: how many levels, 0 to 255, the pixels of `open_picture` differ from those
    that this project decodes."""
    return {
        kind: int(np.abs(_opened(data) - decode_rgb(data).astype(int)).max())
        for kind, data in _files()
    }


def _opened(data: bytes) -> np.ndarray:
    return np.asarray(open_picture(io.BytesIO(data))).astype(int)


def _files() -> Iterator[tuple[str, bytes]]:
    picture = _picture(40, 28, 0)
    grey = np.asarray(picture.convert("L")).astype(np.uint16)
    turned = Image.Exif()
    turned[0x0112] = 6
    yield "JPEG", _saved(picture, "JPEG", quality=90)
    yield "PNG", _saved(picture, "PNG")
    yield "WebP", _saved(picture, "WEBP", quality=80)
    yield "JPEG turned by EXIF", _saved(picture, "JPEG", quality=90, exif=turned)
    yield "PNG turned by EXIF", _saved(picture, "PNG", exif=turned)
    yield "16-bit grey PNG", _saved(Image.fromarray(grey * 256 + 90), "PNG")
    yield "16-bit grey TIFF", _saved(Image.fromarray(grey * 256 + 90), "TIFF")
    yield "PNG with palette", _saved(picture.convert("P"), "PNG")
    yield "PNG of 1 bit", _saved(picture.convert("1"), "PNG")
    yield "GIF", _saved(picture.convert("P"), "GIF")
    yield "PNG with a clear colour", _saved(picture.convert("P"), "PNG", transparency=3)
    picture.putalpha(Image.fromarray((grey // 2).astype(np.uint8)))
    yield "PNG with alpha", _saved(picture, "PNG")
    yield "CMYK JPEG", _saved(picture.convert("RGB").convert("CMYK"), "JPEG", quality=90)


def _saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()
