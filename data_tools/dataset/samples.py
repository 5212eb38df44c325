"""Members of a tar as samples: their kinds, and what is wrong with the content of one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

import cv2
import ftfy
import numpy as np

from data_tools.dataset.pictures import DecodeError, read_whole_header, what_it_is
from data_tools.ground.entities import unescaped
from data_tools.ground.printable import printable

KINDS = {"image": ("jpg", "jpeg", "png", "webp"), "text": ("txt",), "json": ("json",)}
KIND_OF = {extension: kind for kind, extensions in KINDS.items() for extension in extensions}


class Fault(NamedTuple):
    """What is wrong with a sample, a member or a tar."""

    what: str
    """Its name, as it is in the tar or folder."""
    reason: str
    """What is wrong; what differs from one to the next follows a colon."""

    def __str__(self) -> str:
        return f"{printable(self.what)} {printable(self.reason)}".strip()

    @property
    def kind(self) -> str:
        """The reason without what differs, to count by."""
        return self.reason.split(": ")[0]


def content_fault(parts: Mapping[str, bytes], decode: bool) -> str:
    """Return what of a sample cannot be used, or "": training would not take it either.

    Args:
        parts: its members by the names of KINDS.
        decode: whether the image is decoded; else its header and, of a JPEG, its end are checked.
    """
    return (
        _image_fault(parts.get("image", b""), decode)
        or _text_fault(parts.get("text", b""))
        or ("json" in parts and _json_fault(parts["json"]) or "")
    )


def _image_fault(image: bytes, decode: bool) -> str:
    fault = "the image does not decode"
    try:
        header = read_whole_header(image)
        if decode and not _decodes(image, 8 if header else 1):
            what = what_it_is(image)
            return f"{fault}: it is {what}" if what else fault
    except DecodeError as error:
        return f"{fault}: {error}"
    what = "" if header else what_it_is(image)
    return f"{fault}: it is {what}" if what else ""


def _decodes(image: bytes, reduction: int) -> bool:
    """A JPEG is decoded at an eighth of its size, which reads all of its bytes."""
    flags = cv2.IMREAD_REDUCED_COLOR_8 if reduction == 8 else cv2.IMREAD_COLOR
    try:
        return cv2.imdecode(np.frombuffer(image, np.uint8), flags) is not None
    except cv2.error:
        return False


def _text_fault(content: bytes) -> str:
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        return f"the text does not decode: byte {error.start} is not UTF-8"
    # as training cleans a caption: "&nbsp;" is blank
    if not text.strip() or not unescaped(unescaped(ftfy.fix_text(text[:100_000]))).strip():
        return "the caption is empty"
    return ""


def _json_fault(content: bytes) -> str:
    try:
        if not isinstance(json.loads(content), dict):
            return "the json is no object"
    except RecursionError:
        return "the json is nested too deeply"
    except ValueError as error:
        return f"the json does not decode: {error}"
    return ""
