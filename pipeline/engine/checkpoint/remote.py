"""Copies of checkpoints in other storage, at any URL that fsspec knows.

<checkpoint.remote>/latest                        written last: the checkpoint it names is whole
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

from pipeline.config.run_files import name_of
from pipeline.engine.checkpoint.errors import CheckpointError
from pipeline.engine.checkpoint.folder import LATEST
from pipeline.engine.checkpoint.record import STATE, Record

# on top of the retries of the store's own client: attempts are 1, 2, 4 ... 30 s apart, so a store
# may be down for some minutes
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

    def check_reachable(self) -> None:
        """Raise CheckpointError when the store does not answer within some seconds: before a run
        begins, the likely reason is a wrong address, not a busy store. Also when it is a folder
        that cannot be made or written to."""
        self.latest(attempts=3)
        if not self._root.startswith("/"):
            return  # an object store has no folders to make
        probe = f"{self._root}/.probe"
        try:
            self._retry(lambda: self._files.makedirs(self._root, exist_ok=True), 3)
            self._retry(lambda: self._files.pipe_file(probe, b""), 3)
            self._retry(lambda: self._files.rm_file(probe), 3)
        except FileNotFoundError as error:
            raise CheckpointError(
                f"checkpoint.remote = {self.url}: cannot be written to ({error}); name another "
                "folder"
            ) from error

    def latest(self, attempts: int = _ATTEMPTS) -> int | None:
        """Step of the newest whole checkpoint; None when there is none. CheckpointError when the
        store does not answer."""
        try:
            text = self._retry(lambda: self._files.cat_file(f"{self._root}/{LATEST}"), attempts)
        except FileNotFoundError:
            return None
        named = text.decode(errors="replace").strip().removeprefix("step_")
        if not named.isdecimal():
            raise CheckpointError(f"{self.url}/{LATEST} names no checkpoint: {named[:40]!r}")
        return int(named)

    def whole_steps(self) -> list[int]:
        """Steps up to the one that `latest` names, newest first; later ones are not complete."""
        latest = self.latest()
        return [] if latest is None else [step for step in self._steps() if step <= latest]

    def state_text(self, step: int) -> str:
        """Content of a checkpoint's state.json; FileNotFoundError when the checkpoint is not
        complete."""
        text: bytes = self._retry(lambda: self._files.cat_file(self._path(step, STATE)))
        return text.decode(errors="replace")

    def upload(self, folder: Path, step: int, kept: int) -> None:
        """Copy a local checkpoint, in this order: its files, state.json, `latest`. Then delete all
        but the `kept` newest."""
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
        """Copy files of a checkpoint into a local folder, which is made if missing."""
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
        """Delete a checkpoint, state.json first: without it, the rest is not taken for one."""
        state = self._path(step, STATE)
        if self._retry(lambda: self._files.exists(state)):
            self._retry(lambda: self._files.rm_file(state))
        self._retry(lambda: self._files.rm(f"{self._root}/{name_of(step)}", recursive=True))

    def _each(self, names: Iterable[str], work: Callable[[str], None]) -> None:
        with ThreadPoolExecutor(_NUM_AT_ONCE) as pool:
            list(pool.map(work, names))

    def _retry(self, work: Callable[[], T], attempts: int = _ATTEMPTS) -> T:
        """Call `work` until it succeeds. FileNotFoundError and PermissionError are not retried;
        every other error may mean a busy store, whose clients raise many kinds."""
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
        except Exception as error:
            raise CheckpointError(
                f"checkpoint.remote = {self.url} failed: {error!r}; check address, credentials "
                f"and room there"
            ) from error
        raise AssertionError("stamina neither returned nor raised")

    def _path(self, step: int, name: str) -> str:
        return f"{self._root}/{name_of(step)}/{name}"


class Uploader:
    """A thread that copies each checkpoint once it is written. When they come faster than it can
    copy, only the newest is copied.

    A store that fails does not end the run, because the local checkpoint is whole: the failure is
    passed to `say`, and the thread goes on with the next checkpoint.
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
        """Steps whose local folders must not be deleted yet."""
        with self._changed:
            return {step for step in (self._current, self._waiting) if step is not None}

    def finish(self, timeout_s: float) -> bool:
        """Accept no more checkpoints, wait up to `timeout_s`, and return whether all are copied."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def give_up(self) -> None:
        """Report what is not copied yet; the thread ends with the process."""
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
            except Exception as error:  # nobody catches what a thread raises
                self._say(f"warning: checkpoint {name_of(step)} was not copied: {error}")

    def _next(self) -> int | None:
        with self._changed:
            self._current = None
            while self._waiting is None and not self._closing:
                self._changed.wait()
            self._current, self._waiting = self._waiting, None
            return self._current
