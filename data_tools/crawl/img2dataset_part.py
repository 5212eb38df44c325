"""One run of img2dataset, in a process group that ends with its parent and never hangs on a killed
worker.

    python -m data_tools.crawl.img2dataset_part ARGUMENTS.json

Started by itself, img2dataset waits for ever when one of its workers is killed (out of memory), and
its children live on when it is killed. Three rules prevent this: when stdin ends (the driver is
gone), the whole process group is killed; when a worker is killed by a signal, the run ends with
exit code WORKER_KILLED; when this process dies, its workers notice and end. The workers import this
module before anything else, which is how the third rule reaches them.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType

WORKER_KILLED = 70
# Exit codes of workers that end on purpose: Pool.terminate() at the end of a run sends SIGTERM.
_ON_PURPOSE = {None, 0, -signal.SIGTERM}


class _WithoutTorch(MetaPathFinder):
    """Makes `import torch` fail. img2dataset needs webdataset's TarWriter, and webdataset imports
    torch if it is installed: 2 s of CPU and 200 MB per process, for nothing."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> None:
        if name == "torch":
            raise ModuleNotFoundError("torch is left out of the crawl", name=name)


def leave_out_unused_imports() -> None:
    """Skip imports that the crawl does not use. A process then starts in 1.8 s of CPU instead of
    4.5 s, and each part starts four."""
    sys.meta_path.insert(0, _WithoutTorch())
    # imported by img2dataset at its top, used only with enable_wandb (0.5 s)
    sys.modules["wandb"] = ModuleType("wandb")


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _die_with_driver() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _die_of_killed_worker() -> None:
    seen: set[multiprocessing.process.BaseProcess] = set()
    while True:
        seen.update(multiprocessing.active_children())
        for worker in list(seen):
            if worker.exitcode not in _ON_PURPOSE:
                print(f"worker {worker.name} died with code {worker.exitcode}", flush=True)
                os._exit(WORKER_KILLED)
            if worker.exitcode is not None:
                seen.discard(worker)
        time.sleep(0.2)


def main() -> None:
    if os.getpgrp() != os.getpid():
        sys.exit("run this in a process group of its own: it is killed as a whole")
    arguments = json.loads(Path(sys.argv[1]).read_text())
    threading.Thread(target=_die_with_driver, daemon=True).start()
    threading.Thread(target=_die_of_killed_worker, daemon=True).start()
    from img2dataset import download

    download(**arguments)


if __name__ in ("__main__", "__mp_main__"):
    leave_out_unused_imports()
if __name__ == "__mp_main__":
    threading.Thread(target=_die_with_parent, daemon=True).start()
if __name__ == "__main__":
    main()
