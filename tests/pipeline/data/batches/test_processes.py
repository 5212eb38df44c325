"""Worker processes give the batches of a thread, and leave nothing behind, whatever ends them."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from data_tools.dataset.manifest import ManifestError, load_manifest
from pipeline.config import CaptionChoice, ColourConfig, DataConfig, SourceConfig
from pipeline.data import LoaderError
from pipeline.data.batches.buffers import BufferPool, page_lock
from pipeline.data.batches.device import DeviceMover
from pipeline.data.batches.processes import ProcessWorkerPool
from pipeline.data.batches.shared_memory import BatchLayout
from pipeline.data.order.keep_probability import write_keep_probabilities
from tests.pipeline.data.loading import equal, loader_of, read_batches, small_loader, take
from tests.pipeline.data.made_shards import jpeg, make_samples, write_shards


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Ten bad samples of 75, and several captions each."""
    samples = make_samples(75)
    for number in range(0, 75, 8):
        samples[number].image = jpeg(number)[:-400]
    for number, sample in enumerate(samples):
        sample.info = {
            "captions": [f"another {number}", f"a third text {number}"],
            "keep_probability": (number % 4 + 1) / 4,
        }
    path = write_shards(tmp_path_factory.mktemp("shards"), samples, per_shard=20)
    write_keep_probabilities(load_manifest(path))
    return path


@pytest.fixture(scope="module")
def expected(manifest):
    """By one thread."""
    return read_batches(manifest, 40, max_bad_fraction=1.0)


@pytest.fixture(scope="module")
def loader(manifest):
    with loader_of(manifest, num_workers=2, max_bad_fraction=1.0) as loader:
        assert isinstance(loader._pool, ProcessWorkerPool) and len(loader._pool.process_ids) == 2
        yield loader


def first(loader, count, samples_seen=0):
    iterator = loader.batches(samples_seen)
    return [next(iterator) for _ in range(count)]


def test_batches_are_those_of_a_thread(loader, expected):
    assert all(equal(a, b) for a, b in zip(first(loader, 40), expected))
    assert sum(batch.num_bad for batch in expected) > 40


@pytest.mark.parametrize("step", [1, 9, 10, 23])
def test_a_run_goes_on_at_any_step(loader, expected, step):
    assert all(equal(a, b) for a, b in zip(first(loader, 4, 8 * step), expected[step:]))


def test_faults_are_told_alike(manifest):
    found = []
    for num_workers in (1, 3):
        loader = loader_of(manifest, num_workers=num_workers, max_bad_fraction=1.0)
        take(loader, 10)
        found.append((loader.faults.examples, loader.faults.worst_shards(), loader.fingerprint))
    assert found[0] == found[1] and "cut short" in found[0][0][0]


@pytest.mark.parametrize(
    "options",
    [
        {
            "caption_choice": CaptionChoice.random,
            "caption_dropout": 0.2,
            "colour": ColourConfig(jitter_probability=0.8, grayscale_probability=0.2),
        },
        {"resample": True},
        {"mixture": 2},
    ],
    ids=lambda options: next(iter(options)),
)
def test_every_option_gives_what_a_thread_gives(manifest, tmp_path, options):
    if "mixture" in options:
        other = write_shards(tmp_path, make_samples(30), per_shard=20)
        sources = [SourceConfig(manifest=str(path)) for path in (manifest, other)]
        options = {"mixture": sources}

    def batches(num_workers):
        config = DataConfig(
            **{"manifest": str(manifest), **options},
            num_workers=num_workers,
            prefetch_batches=1,
            max_bad_fraction=1.0,
        )
        return take(small_loader(config), 20)

    assert all(equal(a, b) for a, b in zip(batches(2), batches(1)))


def test_ranks_and_more_workers_than_slots_change_nothing(manifest, expected):
    share = loader_of(manifest, rank=3, world_size=4, num_workers=5, max_bad_fraction=1.0)
    assert len(share._pool.process_ids) == 2
    for part, whole in zip(take(share, 6), expected):
        assert part.keys == whole.keys[6:]
        assert torch.equal(part.images, whole.images[6:])


def test_what_is_kept_stays_as_it_was(loader, expected):
    """A whole batch, and of another one a single image."""
    iterator = loader.batches(0)
    kept, image = next(iterator), next(iterator).images[3]
    for _ in range(20):
        next(iterator)
    assert equal(kept, expected[0]) and torch.equal(image, expected[1].images[3])


@pytest.mark.parametrize("num_workers", [1, 2])
def test_buffers_come_back(manifest, num_workers):
    """At once, also those with bad samples: no cycle of references waits for the collector."""
    loader = loader_of(manifest, num_workers=num_workers, max_bad_fraction=1.0, prefetch_batches=2)
    gc.disable()
    try:
        for _, batch in zip(range(40), loader.batches(0)):
            assert batch.num_bad >= 0
    finally:
        gc.enable()
    with loader:
        # One more: a thread may be leaving a batch that the consumer has taken already.
        assert loader._pool._buffers.num_buffers <= 2 + 3


def test_iterators_do_not_disturb_each_other(loader, expected):
    one, two = loader.batches(0), loader.batches(80)
    pairs = [(next(one), next(two)) for _ in range(3)]
    del one
    pairs.append((expected[3], next(two)))
    for step, (a, b) in enumerate(pairs):
        assert equal(a, expected[step]) and equal(b, expected[10 + step])


def test_the_path_of_a_device_gives_the_same(loader, expected, monkeypatch):
    monkeypatch.setattr(DeviceMover, "moves", property(lambda self: True))
    assert all(equal(a, b) for a, b in zip(first(loader, 12), expected))


def gone(process_ids, within_s=10.0):
    """Whether all of them end in time; those that have ended but are not waited for count."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not any(is_running(process_id) for process_id in process_ids):
            return True
        time.sleep(0.02)
    return False


def has_only_nameless_memory(process_ids, known=frozenset()):
    """Nothing but what is `known` in /dev/shm, so that nothing can stay there."""
    maps = [Path(f"/proc/{process_id}/maps").read_text() for process_id in process_ids]
    return all("/memfd:loader" in text for text in maps) and named_memory(process_ids) <= known


def named_memory(process_ids):
    maps = [Path(f"/proc/{process_id}/maps").read_text() for process_id in process_ids]
    return {
        line[line.index("/dev/shm/") :]
        for line in "\n".join(maps).split("\n")
        if "/dev/shm/" in line
    }


def is_running(process_id):
    try:
        return psutil.Process(process_id).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_close_ends_them_and_later_batches_raise(manifest, expected):
    of_other_tests = named_memory([os.getpid()])
    loader = loader_of(manifest, num_workers=2, max_bad_fraction=1.0)
    iterator = loader.batches(0)
    batch = next(iterator)
    assert has_only_nameless_memory([os.getpid(), *loader._pool.process_ids], of_other_tests)
    loader.close()
    assert not any(map(psutil.pid_exists, loader._pool.process_ids))
    with pytest.raises(LoaderError, match="closed"):
        for _ in range(10):
            next(iterator)
    loader.close()  # twice is fine
    del loader, iterator
    gc.collect()
    assert equal(batch, expected[0])


@pytest.mark.parametrize(
    "number, told",
    [
        (signal.SIGKILL, "memory"),
        pytest.param(signal.SIGSEGV, "SIGSEGV", marks=pytest.mark.slow),
    ],
)
def test_a_worker_that_dies_is_named(manifest, number, told):
    loader = loader_of(manifest, num_workers=2, max_bad_fraction=1.0)
    with loader, pytest.raises(LoaderError) as caught:
        for step, _ in enumerate(loader.batches(0)):
            if step == 2:
                victim = loader._pool.process_ids[1]
                os.kill(victim, number)
                since = time.monotonic()
            if step > 2:
                time.sleep(0.01)
    assert f"loader worker 1 (process {victim})" in str(caught.value)
    assert told in str(caught.value) and time.monotonic() - since < 60


@pytest.mark.slow
def test_a_worker_that_stands_still_is_a_stall(manifest, monkeypatch):
    with loader_of(manifest, num_workers=2, max_bad_fraction=1.0) as loader:
        iterator = loader.batches(0)
        next(iterator)
        monkeypatch.setattr("pipeline.data.batches.prefetch.STALL_TIMEOUT_S", 2.0)
        os.kill(loader._pool.process_ids[0], signal.SIGSTOP)
        with pytest.raises(LoaderError, match="not one sample was read.*does the storage answer"):
            for _ in range(10):
                next(iterator)


def test_an_error_in_a_worker_reaches_the_consumer(manifest):
    """As it is, with the worker's traceback as its cause."""
    with loader_of(manifest, num_workers=2, crop_scale_min="wide") as loader:
        with pytest.raises(TypeError) as caught:
            next(loader.batches(0))
    assert "transforms.py" in str(caught.value.__cause__)


def test_lanes_without_a_good_sample_are_told(tmp_path):
    path = write_shards(tmp_path, make_samples(16, lambda number: b"none"), per_shard=16)
    with loader_of(path, num_workers=2, max_bad_fraction=1.0) as loader:
        with pytest.raises(LoaderError, match="of a lane in a row cannot be used.*not an image"):
            next(loader.batches(0))


def test_a_worker_that_cannot_start_is_told(manifest, monkeypatch, capfd):
    monkeypatch.setattr(
        "pipeline.data.batches.lanes.LanePlan.__reduce__", lambda self: (int, ("x",))
    )
    with loader_of(manifest, num_workers=2) as loader:
        with pytest.raises(LoaderError, match="loader worker . .* ended with code 1"):
            next(loader.batches(0))
    assert "invalid literal" in capfd.readouterr().err


def test_workers_end_when_the_data_set_cannot_be_opened(tmp_path):
    """They were started before it."""
    before = psutil.Process().children()
    with pytest.raises(ManifestError, match="no manifest"):
        loader_of(tmp_path / "manifest.json", num_workers=2)
    assert psutil.Process().children() == before


# No guard of __main__: workers do not run the trainer's module. The forked child holds what the
# trainer had open.
TRAINER = """
import os, signal, sys, time
from tests.pipeline.data.loading import loader_of

heard = []
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: heard.append(number))
loader = loader_of(sys.argv[1], num_workers=2, max_bad_fraction=1.0)
print(*loader._pool.process_ids, flush=True)  # signals may come from here on
iterator = loader.batches(0)
next(iterator)
child = 0
if sys.argv[2] == "fork":
    child = os.fork()
    if not child:
        time.sleep(60)
        os._exit(0)
print(child, flush=True)
if sys.argv[2] == "raise":
    raise RuntimeError("of the trainer")
if sys.argv[2] == "exit":
    os._exit(1)
sys.stdin.readline()
for _ in range(10):
    next(iterator)
print(sorted(heard), flush=True)
time.sleep(60)
"""


@pytest.fixture
def trainer(manifest):
    """Starts it; gives the process and its workers' ids."""
    started = []

    def start(what):
        process = subprocess.Popen(
            [sys.executable, "-c", TRAINER, str(manifest), what],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            cwd=Path(__file__).parents[4],
        )
        started.append(process)
        workers = [int(word) for word in process.stdout.readline().split()]
        assert len(workers) == 2
        return process, workers

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    "what", ["fork", "exit", *(pytest.param(w, marks=pytest.mark.slow) for w in ("wait", "raise"))]
)
def test_workers_end_with_the_trainer(trainer, what):
    process, workers = trainer(what)
    child = int(process.stdout.readline())
    try:
        if what in ("wait", "fork"):
            assert has_only_nameless_memory([process.pid, *workers])
            process.kill()
        assert gone(workers)
    finally:
        if child:
            os.kill(child, signal.SIGKILL)


def test_signals_to_the_whole_job_leave_the_workers_to_the_trainer(trainer):
    """From before their first instruction on: the first signals meet them as they start."""
    process, workers = trainer("wait")
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    for number in numbers:
        os.killpg(process.pid, number)
    assert process.stdout.readline() == "0\n"
    for number in numbers:
        os.killpg(process.pid, number)
    process.stdin.write("go on\n")
    process.stdin.flush()
    heard = process.stdout.readline()
    assert set(eval(heard)) == {int(number) for number in numbers}
    assert all(map(is_running, workers))


WORK = """
import sys
import numpy as np
import pipeline.data.batches.worker
from pipeline.config import DataConfig
from pipeline.data.shards.dataset import open_dataset
from pipeline.data.batches.slots import RankShare
from pipeline.data.batches.lanes import LanePlan
from pipeline.data.order.run_order import run_order

share = RankShare(image_size=8, context_length=5, global_batch_size=8, rank=0, world_size=1)
config, datasets = DataConfig(), [open_dataset(sys.argv[1])]
lanes = LanePlan(run_order(datasets, config, 8, 0), datasets, config, share, 0).open()
for sample in lanes.samples(0, range(8)):
    lanes.load(sample, 0, np.empty((3, 8, 8), np.uint8))
print({"torch", "webdataset", "pandas"} & set(sys.modules))
"""


def test_workers_do_without_torch(manifest):
    """And pandas, neither at their start nor with their first samples."""
    done = subprocess.run(
        [sys.executable, "-c", WORK, str(manifest)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parents[4],
    )
    assert done.stdout == "set()\n", done.stderr


class Cuda:
    """What page_lock asks of the CUDA runtime."""

    def __init__(self, failure=0):
        self.failure = failure
        self.locked = {}

    def cudaHostRegister(self, address, num_bytes, flags):  # CUDA's name
        assert flags == 1
        if not self.failure:
            self.locked[address] = num_bytes
        return self.failure

    def cudaHostUnregister(self, address):
        del self.locked[address]


def test_page_locked_memory_is_unlocked_when_its_last_batch_is_gone(monkeypatch):
    cuda, announced = Cuda(), []
    monkeypatch.setattr(torch.cuda, "cudart", lambda: cuda)
    layout = BatchLayout(batch_size=4, image_size=8, context_length=5)
    buffers = BufferPool(layout, lambda number, _: announced.append(number), page_locked=True)
    first, second = buffers.acquire(), buffers.acquire()
    assert sorted(cuda.locked.values()) == [4 * 3 * 8 * 8] * 2 and announced == [0, 1]
    address = second.images.data_ptr()
    assert address in cuda.locked
    del second
    again = buffers.acquire()  # the buffer that came back, not a third one
    assert again.images.data_ptr() == address and announced == [0, 1]
    view = again.images[1:, 0]
    buffers.close()
    del first, again
    assert list(cuda.locked) == [address]
    del view
    assert not cuda.locked


def test_memory_that_cuda_does_not_lock_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "cudart", lambda: Cuda(failure=2))
    pixels = torch.zeros(8, dtype=torch.uint8).numpy()
    with pytest.raises(LoaderError, match="page-lock 8 bytes.*error 2.*prefetch_batches"):
        page_lock(pixels)


@pytest.mark.gpu
def test_on_cuda_batches_are_page_locked_and_arrive(manifest, expected):
    with loader_of(manifest, num_workers=2, max_bad_fraction=1.0) as loader:
        assert next(loader.batches(0)).images.is_pinned()
        for batch, wanted in zip(loader.batches(0, torch.device("cuda")), expected):
            assert batch.images.is_cuda and batch.keys == wanted.keys
            # Work that is queued at once, on the stream that the copy must be waited for on.
            assert torch.equal((batch.images.int() + 1).cpu(), wanted.images.int() + 1)
