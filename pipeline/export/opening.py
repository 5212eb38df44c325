"""How a user of an export opens a picture, so that it has the pixels of the training. The function
is printed in README.md of the exported folder, and run at every export."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageOps


def open_picture(file: Any) -> Image.Image:
    """A path or an open file -> the picture upright, 8-bit RGB."""
    picture = ImageOps.exif_transpose(Image.open(file))
    if picture.mode.startswith("I"):  # 16-bit grey: convert() would make nearly all of it white
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    picture = picture.convert("RGB")
    picture.info.pop("transparency", None)  # transformers would paint that colour white
    return picture
