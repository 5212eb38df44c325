"""Whether the bytes of a picture can be whole: what the audit and the loader both refuse before, or
without, decoding."""

from __future__ import annotations

from dataclasses import dataclass

# A decoded image of this size is 300 MB. Larger headers are refused before anything is allocated: a
# small file can claim gigapixels.
MAX_IMAGE_PIXELS = 100_000_000
# How files begin that are found under the name of a picture, or of a tar.
_BEGINNINGS = {
    b"<": "an HTML or XML page",
    b"version https://git-lfs": "a pointer of Git LFS: run git lfs pull",
    b"%PDF": "a PDF",
    b"\x1f\x8b": "compressed by gzip",
    b"BZh": "compressed by bzip2",
    b"\xfd7zXZ": "compressed by xz",
    b"\x28\xb5\x2f\xfd": "compressed by zstd",
    b"PK\x03\x04": "a zip file",
    b"{": "JSON",
}
_HEIF = (b"ftyphei", b"ftyphev", b"ftypmif", b"ftypmsf", b"ftyphe")


class DecodeError(ValueError):
    """The bytes are not an image that can be used; the message says why."""


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """Size in pixels as stored (before any EXIF rotation), and where the first scan starts in the
    file.
    """

    width: int
    height: int
    scan_offset: int


def read_jpeg_header(data: bytes) -> JpegHeader | None:
    """Size from the frame header, without decoding; None if the bytes are no JPEG. DecodeError if
    it is cut or malformed.
    """
    if data[:2] != b"\xff\xd8":
        return None
    offset, size = 2, None
    while offset + 4 <= len(data):
        if data[offset] != 0xFF:
            raise DecodeError(f"JPEG with no marker at byte {offset}")
        marker = data[offset + 1]
        if marker == 0xFF:  # fill byte
            offset += 1
            continue
        length = int.from_bytes(data[offset + 2 : offset + 4], "big")
        # SOF0..SOF15 hold the size; C4, C8 and CC in their midst are tables.
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            size = data[offset + 5 : offset + 9]
        if marker == 0xDA and size is not None and len(size) == 4:
            width, height = int.from_bytes(size[2:], "big"), int.from_bytes(size[:2], "big")
            return JpegHeader(width, height, offset)
        offset += 2 + length
    raise DecodeError("JPEG ends within its header")


def read_whole_header(data: bytes) -> JpegHeader | None:
    """As read_jpeg_header; DecodeError too for no bytes, for a JPEG that is cut short and for one
    of more than MAX_IMAGE_PIXELS."""
    if not data:
        raise DecodeError("zero bytes")
    header = read_jpeg_header(data)
    if header is not None:
        if header.width * header.height > MAX_IMAGE_PIXELS:
            raise DecodeError(
                f"{header.width} x {header.height} pixels, over the limit of {MAX_IMAGE_PIXELS}"
            )
        # libjpeg fills a file cut short with grey and only warns. An end marker cannot occur inside
        # a scan, so its absence after the scan's start shows the cut; it is looked for from the
        # end, where it normally is.
        if data.rfind(b"\xff\xd9", header.scan_offset) < 0:
            raise DecodeError("JPEG is cut short: no end marker")
    return header


def what_it_is(data: bytes) -> str:
    """Say what the first bytes of something else show: "an HTML or XML page"; "" if nothing is
    known."""
    begin = data[:64].removeprefix(b"\xef\xbb\xbf").lstrip()
    if begin[4:11] in _HEIF or begin[4:10] in _HEIF:
        return "HEIC"
    known = (kind for start, kind in _BEGINNINGS.items() if begin.startswith(start))
    return next(known, "zeros only" if data and not data[:64].strip(b"\0") else "")
