import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools.tables.schema import DatasetPaths
from tests.data_tools.match.example_pool import (
    matched_rows,
    paths_with_queries,
    pool_table,
    states,
)

# each starts processes that are killed, 3 to 6 s
pytestmark = pytest.mark.slow

ENDS_WITHIN_S = 120

PROGRAM = """
import sys
from pathlib import Path
from data_tools import match
from data_tools.config import DatasetJob, PoolConfig
from data_tools.tables.schema import DataError, DatasetPaths

if __name__ == "__main__":
    job = DatasetJob(out_dir=sys.argv[1])
    job.sources.pool = PoolConfig(enabled=True, paths=[sys.argv[2]])
    job.match.processes, job.match.unit_bytes = int(sys.argv[3]), int(sys.argv[4])
    try:
        print(match.run(job, DatasetPaths(Path(sys.argv[1])))["matched"])
    except DataError as error:
        sys.exit(f"DataError: {error}")
"""


@pytest.fixture
def large_pool(tmp_path):
    """50 units of 2,000 captions, and the program that matches them."""
    table = pool_table()
    rows = pa.concat_tables([table] * 8334)
    urls = pa.array([f"http://example.org/{number}" for number in range(len(rows))])
    rows = rows.set_column(0, "url", urls).slice(0, 100_000)
    pq.write_table(rows, tmp_path / "large.parquet", row_group_size=500)
    (tmp_path / "program.py").write_text(PROGRAM)
    paths_with_queries(tmp_path / "out")
    return tmp_path


def start(folder, out="out", processes=1):
    pool = folder / "large.parquet"
    arguments = [folder / "program.py", folder / out, pool, processes, pool.stat().st_size // 50]
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(condition, process=None):
    """Waits for it; a process that has ended by then will not bring it about."""
    deadline = time.monotonic() + ENDS_WITHIN_S
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.005)


def workers_of(process):
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def test_killed_in_the_middle_it_goes_on(large_pool):
    paths = DatasetPaths(large_pool / "out")
    process = start(large_pool)
    until(lambda: len(list(paths.matched.glob("*.parquet"))) >= 3, process)
    process.kill()
    process.communicate(timeout=ENDS_WITHIN_S)
    done = {name: state for name, state in states(paths).items() if name.endswith(".parquet")}
    again = start(large_pool)
    out, error = again.communicate(timeout=ENDS_WITHIN_S)
    assert again.returncode == 0, error
    now = states(paths)
    assert all(name.endswith(".parquet") for name in now)
    assert len(done) < len(now), "it was killed too late for this test"
    assert {name: now[name] for name in done} == done
    paths_with_queries(large_pool / "undisturbed")
    other = start(large_pool, "undisturbed")
    assert other.communicate(timeout=ENDS_WITHIN_S)[0] == out
    assert matched_rows(paths) == matched_rows(DatasetPaths(large_pool / "undisturbed"))


def test_a_killed_worker_is_an_error(large_pool):
    process = start(large_pool, processes=2)
    until(lambda: len(workers_of(process)) == 2, process)
    workers_of(process)[0].kill()
    _, error = process.communicate(timeout=ENDS_WITHIN_S)
    assert process.returncode == 1
    assert "DataError: a worker process was killed" in error


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_the_stage(large_pool, number):
    process = start(large_pool, processes=2)
    until(lambda: len(workers_of(process)) == 2, process)
    workers = workers_of(process)
    process.send_signal(number)
    process.communicate(timeout=ENDS_WITHIN_S)
    assert process.returncode != 0
    until(lambda: not any(worker.is_running() for worker in workers))
