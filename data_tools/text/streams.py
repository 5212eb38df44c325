"""Text as it lies in files, compressed or not, in any Unicode encoding, as a stream of UTF-8 bytes.

What a file is compressed with, and its encoding, are told by its first bytes, not by its name:
files are renamed, and servers unpack what is still called .gz.
"""

from __future__ import annotations

import codecs
import io
import lzma
from abc import abstractmethod
from typing import IO, Any

import pyarrow as pa

READ_BYTES = 1 << 20
# Compressors, as pyarrow calls them, by the first bytes of what they write. bz2's are letters: the
# magic number of its first block tells them from a text that begins with "BZh".
MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
BZ2_BLOCKS = (b"1AY&SY", b"\x17rE8P\x90")
XZ = b"\xfd7zXZ\x00"
BOMS = {  # utf-32-le begins as utf-16-le does
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
# Where the bytes of two ASCII characters are 0; for utf-32 those of one.
ZEROS = {"0001": "utf-32-be", "1000": "utf-32-le", "1010": "utf-16-le", "0101": "utf-16-be"}
OTHER_KINDS = {
    b"PAR1": "a parquet file: name it .parquet",
    b"PK\x03\x04": "a zip archive (as xlsx is): unpack it, or save the sheet as csv",
    b"Obj\x01": "an Avro file: convert it to parquet or csv",
    b"ARROW1": "an Arrow file: write it as parquet",
    b"ORC": "an ORC file: convert it to parquet or csv",
    b"SQLite f": "an SQLite database: export the table as csv",
    b"%PDF": "a PDF: it holds no table",
}


class RecodingError(ValueError):
    """A text in utf-16 or utf-32 that is broken."""


def other_kind(head: bytes) -> str:
    """What a file with these first bytes is, and what to do; "" if it may be text."""
    return next((words for magic, words in OTHER_KINDS.items() if head.startswith(magic)), "")


def decompressed(stream: IO[bytes]) -> io.BufferedReader:
    """The stream's bytes without gzip, zstd, bz2 or xz. Reading from it raises OSError (pyarrow's
    words) or EOFError where the compressed bytes end early or are broken."""
    buffered = _buffered(stream)
    head = buffered.peek(16)[:16]
    if head.startswith(XZ):
        return io.BufferedReader(lzma.open(buffered), READ_BYTES)
    kind = next((name for magic, name in MAGIC.items() if head.startswith(magic)), None)
    if head.startswith(b"BZh") and head[4:10] in BZ2_BLOCKS:
        kind = "bz2"
    if kind is None:
        return buffered
    return _buffered(pa.input_stream(buffered, compression=kind))


def utf8(stream: io.BufferedReader) -> io.BufferedReader:
    """A text's bytes as UTF-8, without a byte order mark; utf-16 and utf-32 are recoded. Where
    lines end with CR alone, as on old Macs, they end with LF. Reading raises RecodingError where a
    recoded text is broken. Bytes that are not UTF-8 are left as they are."""
    head = stream.peek(READ_BYTES)
    bom = next((mark for mark in BOMS if head.startswith(mark)), b"")
    encoding = BOMS.get(bom, "") or _encoding_without_bom(head)
    stream.read(len(bom))
    if encoding not in ("", "utf-8"):
        stream = _buffered(_Recoded(stream, encoding))
        head = stream.peek(READ_BYTES)
    if b"\r" in head and b"\n" not in head:
        stream = _buffered(_LineFeeds(stream))
    return stream


def _encoding_without_bom(head: bytes) -> str:
    return ZEROS.get("".join("01"[byte != 0] for byte in head[:4]), "")


def _buffered(stream: Any) -> io.BufferedReader:
    if isinstance(stream, io.BufferedReader):
        return stream
    return io.BufferedReader(stream, READ_BYTES)


class _Changed(io.RawIOBase):
    """A stream whose bytes are changed piece by piece."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            piece = self._stream.read(READ_BYTES)
            self._ready = self._change(piece)
            if not piece:
                break
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    @abstractmethod
    def _change(self, piece: bytes) -> bytes:
        """The changed bytes; `piece` is empty at the end of the stream."""


class _Recoded(_Changed):
    def __init__(self, stream: IO[bytes], encoding: str) -> None:
        super().__init__(stream)
        self._encoding = encoding
        # half surrogate pairs become bytes that are not UTF-8: they cost only their row
        self._decoder = codecs.getincrementaldecoder(encoding)("surrogatepass")

    def _change(self, piece: bytes) -> bytes:
        try:
            text = self._decoder.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            raise RecodingError(f"it is no whole {self._encoding} text ({error.reason})") from None
        return text.encode(errors="surrogatepass")


class _LineFeeds(_Changed):
    def _change(self, piece: bytes) -> bytes:
        return piece.replace(b"\r", b"\n")
