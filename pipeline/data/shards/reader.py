"""Reads the bytes of a sample from its shard: with one positioned read if its members lie close
together, else with one per member.
"""

from __future__ import annotations

import time

from pipeline.data.faults import SampleError
from pipeline.data.shards.files import FilePool
from pipeline.data.shards.index import SampleLocation
from pipeline.data.shards.storage import ByteReader
from pipeline.data.shards.wrong_answer import WrongAnswer

# Between a sample's image and its text lie tar headers and its json, 2 to 3 KiB; a second read
# costs more than 32 KiB more.
_MAX_GAP_BYTES = 32 * 1024
# Network file systems fail for a moment (ESTALE, EIO at a failover); a file that stays broken fails
# after 0.6 s.
_RETRY_AFTER_S = (0.1, 0.5)
_LASTING = (FileNotFoundError, PermissionError, WrongAnswer)


class ShardReader:
    """Reads samples by their location. Safe to call from threads."""

    def __init__(self, files: ByteReader | None = None) -> None:
        """`files` defaults to local ones."""
        self._files = files or FilePool()

    def read(self, location: SampleLocation) -> tuple[bytes, bytes]:
        """(image bytes, text bytes). Raises SampleError for a missing member, a short read or a
        lasting OSError.
        """
        image, text = self._read_with_retries(location, _pair(location))
        return image, text

    def read_with_json(self, location: SampleLocation) -> tuple[bytes, bytes, bytes]:
        """As `read`, and the json member: empty where there is none."""
        pair = _pair(location)
        if location.json_size <= 0:
            image, text = self._read_with_retries(location, pair)
            return image, text, b""
        info = (location.json_offset, location.json_size)
        image, text, json = self._read_with_retries(location, [*pair, info])
        return image, text, json

    def close(self) -> None:
        self._files.close()

    def _read_with_retries(
        self, location: SampleLocation, wanted: list[tuple[int, int]]
    ) -> list[bytes]:
        for name, size in (("image", location.image_size), ("caption", location.text_size)):
            if size <= 0:
                raise _error(location, f"no {name}" if size < 0 else f"{name} of zero bytes")
        for wait_s in (*_RETRY_AFTER_S, None):
            try:
                return self._read_members(location, wanted)
            except OSError as error:
                # The descriptor may be stale (ESTALE): the next try opens the file again.
                self._files.forget(location.path)
                if wait_s is None or isinstance(error, _LASTING):
                    raise _error(location, f"cannot be read: {error}") from error
                time.sleep(wait_s)
        raise AssertionError("unreachable: the last try returns or raises")

    def _read_members(self, location: SampleLocation, wanted: list[tuple[int, int]]) -> list[bytes]:
        # One read that spans all members, bytes between them included, unless these are too many.
        start = min(offset for offset, _ in wanted)
        stop = max(offset + size for offset, size in wanted)
        if stop - start > sum(size for _, size in wanted) + _MAX_GAP_BYTES:
            return [self._read_exactly(location, offset, size) for offset, size in wanted]
        region = self._read_exactly(location, start, stop - start)
        return [region[offset - start : offset - start + size] for offset, size in wanted]

    def _read_exactly(self, location: SampleLocation, offset: int, size: int) -> bytes:
        data = self._files.read(location.path, offset, size)
        if len(data) < size:
            raise _error(location, f"shard ends {size - len(data)} bytes early (truncated?)")
        return data


def _pair(location: SampleLocation) -> list[tuple[int, int]]:
    return [
        (location.image_offset, location.image_size),
        (location.text_offset, location.text_size),
    ]


def _error(location: SampleLocation, reason: str) -> SampleError:
    return SampleError(reason, location.key, location.shard, location.image_offset)
