"""Copies of checkpoints in another storage: any URL that fsspec knows.

<checkpoint.remote>/latest                        written last: what it names is whole
                   /step_00000200/state.json      written after the folder's other files
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import fsspec
import stamina

from pipeline.engine.checkpoint.errors import CheckpointError
from pipeline.engine.checkpoint.folder import LATEST, name_of
from pipeline.engine.checkpoint.record import STATE, Record

# Beside the retries of the store's own client: 1, 2, 4 ... 30 s apart, a store may be away for
# some minutes.
_ATTEMPTS, _FIRST_WAIT_S, _LONGEST_WAIT_S = 8, 1.0, 30.0
_NUM_AT_ONCE = 4

T = TypeVar("T")


class RemoteCheckpoints:
    """A folder of an object store or another file system. Credentials and endpoints are fsspec's
    own configuration."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        try:
            self._files, root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise CheckpointError(
                f"checkpoint.remote = {url}: {error}. Give a URL of a kind that fsspec knows, and "
                f"install its package (pip install s3fs for s3://, gcsfs for gs://)"
            ) from error
        self._root = root.rstrip("/")

    def refuse_silence(self) -> None:
        """CheckpointError when the store does not answer within some seconds: before a run begins,
        that is a wrong address rather than a busy store."""
        self.latest(attempts=3)

    def latest(self, attempts: int = _ATTEMPTS) -> int | None:
        """The newest whole step; None when there is none. CheckpointError when the store does not
        answer."""
        try:
            text = self._retry(lambda: self._files.cat_file(f"{self._root}/{LATEST}"), attempts)
        except FileNotFoundError:
            return None
        named = text.decode(errors="replace").strip().removeprefix("step_")
        if not named.isdecimal():
            raise CheckpointError(f"{self.url}/{LATEST} names no checkpoint: {named[:40]!r}")
        return int(named)

    def whole_steps(self) -> list[int]:
        """Newest first: `latest` and those before. Later ones have not arrived."""
        latest = self.latest()
        return [] if latest is None else [step for step in self._steps() if step <= latest]

    def state_text(self, step: int) -> str:
        """FileNotFoundError when the checkpoint is not whole."""
        text: bytes = self._retry(lambda: self._files.cat_file(self._path(step, STATE)))
        return text.decode(errors="replace")

    def upload(self, folder: Path, step: int, kept: int) -> None:
        """A local checkpoint: its files, state.json, `latest`; then older ones are deleted."""
        record = Record.of_text((folder / STATE).read_text())
        self._files.invalidate_cache()
        if self._retry(lambda: self._files.exists(self._path(step, STATE))):
            self._retry(lambda: self._files.rm_file(self._path(step, STATE)))
        # object stores (bucket/key, no slash in front) have no folders, and s3fs would make a
        # bucket of a mistyped name
        if self._root.startswith("/"):
            self._files.makedirs(f"{self._root}/{name_of(step)}", exist_ok=True)
        names = [file.name for file in record.files]
        self._each(names, lambda name: self._put(folder / name, self._path(step, name)))
        self._put(folder / STATE, self._path(step, STATE))
        content = (name_of(step) + "\n").encode()
        self._retry(lambda: self._files.pipe_file(f"{self._root}/{LATEST}", content))
        found = self._steps()
        older = [other for other in found if other <= step]
        for other in found:
            if other not in older[:kept]:
                self._remove(other)

    def download(self, step: int, names: Iterable[str], folder: Path) -> None:
        """Files of a checkpoint into a local folder."""
        folder.mkdir(parents=True, exist_ok=True)

        def get(name: str) -> None:
            self._retry(lambda: self._files.get_file(self._path(step, name), str(folder / name)))

        self._each(names, get)

    def _steps(self) -> list[int]:
        self._files.invalidate_cache()
        found = self._retry(lambda: self._files.ls(self._root, detail=False))
        names = (str(path).rstrip("/").rpartition("/")[2] for path in found)
        steps = (name.removeprefix("step_") for name in names if name.startswith("step_"))
        return sorted((int(step) for step in steps if step.isdecimal()), reverse=True)

    def _put(self, local: Path, path: str) -> None:
        def put() -> None:
            self._files.put_file(str(local), path)
            self._files.invalidate_cache()
            found, expected = self._files.info(path)["size"], local.stat().st_size
            if found != expected:
                raise OSError(f"{path} arrived with {found} of {expected} bytes")

        self._retry(put)

    def _remove(self, step: int) -> None:
        """state.json first: half of a folder is no checkpoint."""
        state = self._path(step, STATE)
        if self._retry(lambda: self._files.exists(state)):
            self._retry(lambda: self._files.rm_file(state))
        self._retry(lambda: self._files.rm(f"{self._root}/{name_of(step)}", recursive=True))

    def _each(self, names: Iterable[str], work: Callable[[str], None]) -> None:
        with ThreadPoolExecutor(_NUM_AT_ONCE) as pool:
            list(pool.map(work, names))

    def _retry(self, work: Callable[[], T], attempts: int = _ATTEMPTS) -> T:
        """FileNotFoundError and PermissionError are answers, everything else may be a store that is
        busy: its clients raise many kinds."""
        try:
            for attempt in stamina.retry_context(
                on=lambda error: not isinstance(error, (FileNotFoundError, PermissionError)),
                attempts=attempts,
                timeout=None,
                wait_initial=_FIRST_WAIT_S,
                wait_max=_LONGEST_WAIT_S,
            ):
                with attempt:
                    return work()
        except FileNotFoundError:
            raise
        except Exception as error:  # see above
            raise CheckpointError(
                f"checkpoint.remote = {self.url} failed: {error!r}; check address, credentials "
                f"and room there"
            ) from error
        raise AssertionError("stamina neither returned nor raised")

    def _path(self, step: int, name: str) -> str:
        return f"{self._root}/{name_of(step)}/{name}"


class Uploader:
    """A thread that copies checkpoints as they get whole; when they come faster than it can copy,
    only the newest is copied.

    A store that fails does not end the run, for the local checkpoint is whole: `say` tells it, and
    the next checkpoint is tried again.
    """

    def __init__(
        self,
        remote: RemoteCheckpoints,
        folder_of: Callable[[int], Path],
        kept: int,
        say: Callable[[str], None],
    ) -> None:
        self._remote, self._folder_of, self._kept, self._say = remote, folder_of, kept, say
        self._changed = threading.Condition()
        self._waiting: int | None = None
        self._current: int | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="upload", daemon=True)
        self._thread.start()

    def add(self, step: int) -> None:
        with self._changed:
            self._waiting = step
            self._changed.notify_all()

    def in_use(self) -> set[int]:
        """Steps whose folders must stay."""
        with self._changed:
            return {step for step in (self._current, self._waiting) if step is not None}

    def finish(self, timeout_s: float) -> bool:
        """Nothing more will be added; whether everything is copied by then."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def give_up(self) -> None:
        """On what is not copied yet: its thread ends with the process."""
        left = self.in_use()
        if left:
            self._say(
                f"checkpoint {name_of(max(left))} is not copied to {self._remote.url}; the next "
                f"start of this run makes up for it"
            )

    def _run(self) -> None:
        while (step := self._next()) is not None:
            try:
                self._remote.upload(self._folder_of(step), step, self._kept)
            except Exception as error:  # a thread has no one to raise to
                self._say(f"warning: checkpoint {name_of(step)} was not copied: {error}")

    def _next(self) -> int | None:
        with self._changed:
            self._current = None
            while self._waiting is None and not self._closing:
                self._changed.wait()
            self._current, self._waiting = self._waiting, None
            return self._current
