"""manifest.json: the only contract between the data half and the training half.

    {"format_version": 1, "config_fingerprint": "...", "num_samples": N, "num_bytes": B,
     "shards": [{"path": "shards/000000.tar", "num_samples": n, "num_bytes": b, "sha256": "...",
                 "index_path": "shards/000000.index.parquet", "index_sha256": "..."}, ...]}

Paths are relative to the manifest's folder; absolute ones are taken as they are. A shard's index
holds, for each sample, the offset and size in the tar of its image, its text and its json, so that
a sample is one pread and never a scan.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, get_type_hints

import pyarrow as pa

from data_tools.dataset.pictures import what_it_is
from data_tools.ground.aside import write_text_aside

FORMAT_VERSION = 1
# Problems that a message lists, at most.
SHOWN = 10
# Begins config_fingerprint in place of the unknown configuration of tars that data_tools.audit made
# a manifest for.
FOREIGN = "adopted "

# Offsets are of the member's data (after its 512-byte tar header), in bytes from the start of the
# tar. A member that a sample lacks (such as the json in a foreign shard) has size -1.
INDEX = pa.schema(
    [
        ("key", pa.string()),
        ("image_offset", pa.int64()),
        ("image_size", pa.int64()),
        ("text_offset", pa.int64()),
        ("text_size", pa.int64()),
        ("json_offset", pa.int64()),
        ("json_size", pa.int64()),
    ]
)


class ManifestError(ValueError):
    """A manifest, an index or a shard is missing or not as stated; the message names the file and
    the fix."""


class ShardEntry(NamedTuple):
    """One shard in the manifest. A tuple, because 40,000 of them go to each worker of a loader: 0.1
    s instead of 0.5."""

    path: str
    num_samples: int
    num_bytes: int
    sha256: str
    index_path: str
    index_sha256: str


class LeftOutTar(NamedTuple):
    """A tar beside the shards that is not one of them. `path` is as a shard's."""

    path: str
    num_bytes: int
    reason: str


class LeftOut(NamedTuple):
    """What data_tools.audit left out of the manifest that it made."""

    tars: tuple[LeftOutTar, ...] = ()
    samples: tuple[tuple[str, int], ...] = ()
    """How many samples, members and tars were left out for a reason."""


_KINDS = get_type_hints(ShardEntry)
_TEXTS = tuple(name for name, kind in _KINDS.items() if kind is str)
_COUNTS = tuple(name for name, kind in _KINDS.items() if kind is int)


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json. `root` is the folder that the shards' paths are relative to; it
    is not written."""

    root: Path
    config_fingerprint: str
    shards: tuple[ShardEntry, ...]
    left_out: LeftOut = LeftOut()

    @property
    def is_foreign(self) -> bool:
        """Whether data_tools.audit made the manifest: shards may hold members outside of
        samples."""
        return self.config_fingerprint.startswith(FOREIGN)

    @property
    def num_samples(self) -> int:
        return sum(shard.num_samples for shard in self.shards)

    @property
    def num_bytes(self) -> int:
        return sum(shard.num_bytes for shard in self.shards)

    def shard_path(self, shard: ShardEntry) -> Path:
        return self.root / shard.path

    def index_path(self, shard: ShardEntry) -> Path:
        return self.root / shard.index_path

    @property
    def fingerprint(self) -> str:
        """A hash of the shards' checksums, wherever they lie: equal for equal shards in equal
        order. Checkpoints keep it."""
        text = "\n".join(f"{shard.sha256} {shard.num_samples}" for shard in self.shards)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def save_manifest(manifest: Manifest, path: Path) -> None:
    """Write manifest.json, aside first: a manifest under its final name means that the data set is
    complete."""
    content = {
        "format_version": FORMAT_VERSION,
        "config_fingerprint": manifest.config_fingerprint,
        "num_samples": manifest.num_samples,
        "num_bytes": manifest.num_bytes,
        "shards": [shard._asdict() for shard in manifest.shards],
    }
    if any(manifest.left_out):
        content["left_out"] = {
            "tars": [tar._asdict() for tar in manifest.left_out.tars],
            "samples": dict(manifest.left_out.samples),
        }
    write_text_aside(path, json.dumps(content, indent=1) + "\n")


def load_manifest(path: Path | str) -> Manifest:
    """Read and check a manifest: version, totals, and that each shard exists with its stated size.

    Raises ManifestError with the first few things wrong, all at once. Checksums are not computed
    here (a 10 TB data set would take hours): `verify_checksums` does that.
    """
    path = Path(path)
    if not path.is_file():
        raise ManifestError(
            f"no manifest at {path}: give the manifest.json that `make shards` wrote (or run it "
            f"first)"
        )
    manifest, problems = parse_manifest(path.read_bytes(), path.parent, str(path))
    refuse_broken(str(path), problems + _missing_or_changed(manifest), remedy(manifest, str(path)))
    return manifest


def parse_manifest(text: bytes, root: Path, location: str) -> tuple[Manifest, list[str]]:
    """Return the manifest and the problems of its numbers, without looking at files.

    `location` (a path or URL) is for messages. ManifestError if the text is no manifest at all.
    """
    try:
        content = json.loads(text)
        version = content["format_version"]
        shards = tuple(map(_checked_entry, content["shards"]))
        left_out = _left_out(content.get("left_out", {}))
        manifest = Manifest(root, content["config_fingerprint"], shards, left_out)
        totals = (content["num_samples"], content["num_bytes"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        what = what_it_is(text)
        raise ManifestError(
            f"{location} is not a manifest of format {FORMAT_VERSION}: "
            + (f"it is {what}" if what not in ("", "JSON") else repr(error))
        ) from error
    problems = []
    if totals != (manifest.num_samples, manifest.num_bytes):
        problems.append("num_samples or num_bytes is not the sum over the shards: edited by hand?")
    if version != FORMAT_VERSION:
        problems.append(f"format_version is {version}, this code reads {FORMAT_VERSION}")
    paths = Counter(shard.path for shard in shards)
    problems += [
        f"shard {path} is there {count} times" for path, count in paths.items() if count > 1
    ]
    return manifest, problems


def refuse_broken(location: str, problems: list[str], fix: str) -> None:
    """ManifestError with the first few problems, if there are any, and how to fix them."""
    if problems:
        shown = "\n  ".join(problems[:SHOWN])
        more = f"\n  (+{len(problems) - SHOWN} more)" if len(problems) > SHOWN else ""
        raise ManifestError(f"{location}:\n  {shown}{more}\n{fix}")


def remedy(manifest: Manifest, location: str | None = None, bad_samples: bool = False) -> str:
    """Say what to do about shards that are not as the manifest at `location` (by default in its
    folder) has them, or that hold `bad_samples`."""
    if not manifest.is_foreign:
        return "pack the data set again, or restore the named files"
    location = location or str(manifest.root / "manifest.json")
    folder = os.path.dirname(location) or "."
    absolute = [shard.path for shard in manifest.shards if os.path.isabs(shard.path)]
    words = [folder]
    if absolute:  # the tars lie elsewhere
        common = os.path.commonpath([os.path.dirname(path) for path in absolute])
        words = [common, f"output={folder}"]
    if bad_samples or manifest.left_out.samples:
        words.append("--leave-out-bad")
    return (
        f"put the files back as they were; or, to take them as they are now, delete "
        f"{shlex.quote(location)} and make it anew: "
        f"python -m data_tools.audit {shlex.join(words)}"
    )


def _left_out(content: dict) -> LeftOut:
    tars = tuple(LeftOutTar(**tar) for tar in content.get("tars", ()))
    return LeftOut(tars, tuple(content.get("samples", {}).items()))


def _checked_entry(content: dict) -> ShardEntry:
    """Return a shard's entry. ValueError names the shard and the field that has an impossible
    value, such as after an edit by hand."""
    entry = ShardEntry(**content)
    for name in _TEXTS:  # a run of 400M samples has 40,000 entries
        value = content[name]
        if not (isinstance(value, str) and value):
            raise ValueError(f"{name} of shard {entry.path!r} is {value!r}, no text")
    for name in _COUNTS:
        value = content[name]
        if not (type(value) is int and value >= 0):
            raise ValueError(f"{name} of shard {entry.path!r} is {value!r}, no count")
    return entry


def _missing_or_changed(manifest: Manifest) -> list[str]:
    problems = []
    for shard in manifest.shards:
        file = manifest.shard_path(shard)
        if not file.is_file():
            problems.append(f"shard {shard.path} is missing")
        elif file.stat().st_size != shard.num_bytes:
            problems.append(
                f"shard {shard.path} has {file.stat().st_size} bytes, {shard.num_bytes} were packed"
            )
        if not manifest.index_path(shard).is_file():
            problems.append(f"index {shard.index_path} is missing")
    return problems


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def verify_checksums(manifest: Manifest) -> None:
    """Read every byte of the data set and compare with the manifest; ManifestError names each shard
    that differs."""
    bad = []
    for shard in manifest.shards:
        if file_sha256(manifest.shard_path(shard)) != shard.sha256:
            bad.append(shard.path)
        if file_sha256(manifest.index_path(shard)) != shard.index_sha256:
            bad.append(shard.index_path)
    if bad:
        raise ManifestError(
            f"checksums differ from the manifest: {', '.join(bad)}: {remedy(manifest)}"
        )
