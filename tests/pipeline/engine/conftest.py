"""Processes of these tests are forked from one that has imported the engine already: 9 s of CPU
for each otherwise (torch._dynamo and _inductor, which the first step imports, are 5 of them)."""

import multiprocessing
from multiprocessing import forkserver

MODULES = ["torch", "torch.distributed", "torch._dynamo", "pipeline.engine.engine"]


def pytest_collection_finish() -> None:
    start_forkserver()


def start_forkserver() -> None:
    """Before the first test: whoever starts it decides what it has imported."""
    multiprocessing.set_forkserver_preload(MODULES)
    forkserver.ensure_running()
