"""Without a GPU, every kernel compiles for those it is meant for: no spills, tensor cores used."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")

from pipeline.loss.tile_shapes import CANDIDATES, SINGLE, TileShape
from tests.pipeline.loss.ahead_of_time import (
    ARCHITECTURES,
    CASES,
    Case,
    Usage,
    compile_case,
    table,
)


def _check(case: Case, architecture: int) -> Usage:
    usage = compile_case(case, architecture)
    assert usage.stack_bytes == 0
    multiplies = "BK" in case.kernel.arg_names
    assert (usage.wgmma > 0) == (multiplies and architecture == 90)
    assert (usage.tcgen05 > 0) == (multiplies and architecture == 100)
    assert usage.shared_bytes <= 99 * 1024  # of sm_86, sm_89 and sm_120 too
    return usage


@pytest.mark.parametrize("name", ["sums", "gradient"])
def test_two_programs_share_a_hopper_multiprocessor(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    assert _check(case, 90).registers <= 128  # 2 x 256 threads x 128 registers are all it has


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_compiles_without_spills(case: Case, architecture: int) -> None:
    _check(case, architecture)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_float16_and_float32_compile_too(case: Case) -> None:
    assert compile_case(case, 90, dtype="fp16").stack_bytes == 0
    single = compile_case(case, 90, SINGLE, dtype="fp32")
    assert single.stack_bytes == 0 and single.wgmma == 0  # float32 products stay float32


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [case for case in CASES if "EVEN" in case.kernel.arg_names], ids=lambda case: case.name
)
def test_dimensions_that_are_no_multiple_of_a_tile_compile_too(case: Case) -> None:
    """Such as 100 or 1,000; one binary serves 512, 768 and 1,024, another all of these."""
    usage = compile_case(case, 90, even=False)
    assert usage.stack_bytes == 0 and usage.wgmma > 0


@pytest.mark.slow
@pytest.mark.parametrize("shape", CANDIDATES, ids=str)
def test_candidate_shapes_compile(shape: TileShape) -> None:
    for case in CASES:
        if case.name in ("sums", "gradient"):
            assert compile_case(case, 90, shape).stack_bytes == 0


@pytest.mark.slow
def test_the_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    lines = table()
    with capsys.disabled():
        print("\n" + lines)
    assert lines.count("\n") == 3 + len(CASES) * len(ARCHITECTURES)
