"""Copy the finished data set to another storage: any URL that fsspec knows. The manifest is copied
last, so a reader that finds manifest.json at the target finds everything that it names.

A killed upload resumes: .uploaded.jsonl beside the manifest lists the files that arrived, and a
listed file is sent again only if its size at the target has changed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec

from data_tools.dataset.manifest import Manifest, file_sha256
from data_tools.tables.schema import DataError
from data_tools.work.progress import StageProgress

MANIFEST = "manifest.json"


def refuse_other_target(url: str, made_from: str) -> None:
    """DataError if the target cannot be read, or holds shards of another job."""
    files, root = _open(url)
    try:
        found = _remote_fingerprint(files, root)
    except Exception as error:  # each fsspec backend has its own kinds
        raise _unreachable(url, error) from error
    if found not in (None, made_from):
        raise DataError(
            f"pack.target_url = {url} holds another data set (fingerprint {found}, this job has "
            f"{made_from}): give another URL, or delete what is there"
        )


def _remote_fingerprint(files: Any, root: str) -> str | None:
    """Return the fingerprint in the target's manifest, else in the marker that an upload writes
    before its first shard; "unknown" for shards without either, None for no shards."""
    if files.exists(f"{root}/{MANIFEST}"):
        try:
            return str(json.loads(files.cat_file(f"{root}/{MANIFEST}"))["config_fingerprint"])
        except (ValueError, KeyError, TypeError):
            return "unknown"
    if files.exists(f"{root}/shards/.fingerprint"):
        return str(files.cat_file(f"{root}/shards/.fingerprint").decode(errors="replace").strip())
    return "unknown" if files.exists(f"{root}/shards") else None


def upload(manifest: Manifest, local: Path, url: str) -> None:
    """Copy shards, indexes and sizes.json, then the manifest. The manifest of an earlier upload is
    removed before its shards are replaced. DataError when the target fails."""
    files, root = _open(url)
    sent = _Sent(local / ".uploaded.jsonl", url)
    names = ["shards/.fingerprint"]
    for entry in manifest.shards:
        names += [entry.path, entry.index_path]
    names.append("shards/sizes.json")
    digests = {entry.path: entry.sha256 for entry in manifest.shards}
    digests |= {entry.index_path: entry.index_sha256 for entry in manifest.shards}
    content = (local / MANIFEST).read_bytes()
    try:
        if files.exists(f"{root}/{MANIFEST}") and files.cat_file(f"{root}/{MANIFEST}") != content:
            files.rm_file(f"{root}/{MANIFEST}")
        # Object stores (bucket/key, without a leading slash) have no folders, and s3fs would create
        # a bucket for a mistyped name.
        if root.startswith("/"):
            files.makedirs(f"{root}/shards", exist_ok=True)
        with StageProgress("upload", total=len(names)) as progress:
            for name in names:
                digest = digests.get(name) or file_sha256(local / name)
                size = (local / name).stat().st_size
                if not (sent.has(name, digest) and _remote_size(files, f"{root}/{name}") == size):
                    files.put_file(str(local / name), f"{root}/{name}")
                    if _remote_size(files, f"{root}/{name}") != size:
                        raise OSError(f"{name} arrived with another size")
                    sent.add(name, digest)
                progress.advance()
        files.pipe_file(f"{root}/{MANIFEST}", content)
    except Exception as error:  # each fsspec backend has its own kinds
        raise _unreachable(url, error) from error


def _open(url: str) -> tuple[Any, str]:
    try:
        files, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise DataError(
            f"pack.target_url = {url}: {error}. Give a URL of a kind that fsspec knows, and "
            "install its package (pip install s3fs for s3://, gcsfs for gs://)"
        ) from error
    return files, root.rstrip("/")


def _remote_size(files: Any, path: str) -> int | None:
    try:
        files.invalidate_cache()
        return int(files.info(path)["size"])
    except FileNotFoundError:
        return None


def _unreachable(url: str, error: Exception) -> DataError:
    return DataError(
        f"pack.target_url = {url} failed: {error!r}. The shards are whole below out_dir; check "
        "address, credentials and room there, and run again"
    )


class _Sent:
    """The files that arrived at a target, name -> sha256, with a line on disk for each."""

    def __init__(self, path: Path, url: str) -> None:
        self._path, self._url = path, url
        self._digests: dict[str, str] = {}
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                sent = json.loads(line)
            except ValueError:  # the last line of a run that was killed
                continue
            if sent["url"] == url:
                self._digests[sent["name"]] = sent["sha256"]

    def has(self, name: str, digest: str) -> bool:
        return self._digests.get(name) == digest

    def add(self, name: str, digest: str) -> None:
        self._digests[name] = digest
        with self._path.open("a") as file:
            file.write(json.dumps({"url": self._url, "name": name, "sha256": digest}) + "\n")
