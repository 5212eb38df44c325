"""What one rank saves, finds, refuses and deletes."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from pipeline.engine.checkpoint import (
    CheckpointError,
    load_model_weights,
    newest_step,
    read_weights,
    writer,
)
from pipeline.engine.checkpoint import weights as weights_module
from pipeline.state import TrainState
from tests.pipeline.engine.checkpoint.sharded import SHAPES, Engine, expected, manager

pytestmark = pytest.mark.usefixtures("alone")


def save(run_dir: Path, *steps: int) -> None:
    with manager(run_dir) as checkpoints:
        checkpoints.load_latest(Engine())
        for step in steps:
            checkpoints.save(Engine().fill(step), TrainState(step, 8 * step, 1))


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def test_what_was_saved_comes_back(tmp_path):
    save(tmp_path, 10)
    engine, state = Engine(), manager(tmp_path)
    assert state.load_latest(engine) == TrainState(step=10, samples_seen=80, rollbacks=1)
    assert engine.holds(10) and engine.shards.num_published == 1


def test_a_fresh_run_begins_at_nothing(tmp_path):
    engine = Engine().fill(3)
    assert manager(tmp_path).load_latest(engine) == TrainState()
    assert engine.holds(3)


def test_nothing_to_go_back_to(tmp_path):
    checkpoints = manager(tmp_path)
    checkpoints.load_latest(Engine())
    with pytest.raises(CheckpointError, match="no checkpoint to go back to yet"):
        checkpoints.load_latest(Engine())


def test_a_checkpoint_has_the_configuration_and_leaves_a_mark_outside(tmp_path):
    (tmp_path / "config.yaml").write_text("of the run\n")
    save(tmp_path, 10)
    assert (tmp_path / "checkpoints/step_00000010/config.yaml").read_text() == "of the run\n"
    assert (tmp_path / "last_checkpoint").read_text() == "step_00000010\n"
    assert manager(tmp_path).load_latest(Engine()).step == 10


@pytest.mark.parametrize("kind", ["file", "link to nothing"])
def test_a_folder_of_checkpoints_that_is_none_is_named(tmp_path, kind):
    path = tmp_path / "checkpoints"
    if kind == "file":
        path.write_text("")
    else:
        path.symlink_to(tmp_path / "purged")
    with pytest.raises(OSError, match="put a folder there, .* that can be written: .*checkpoints"):
        manager(tmp_path)


def test_checkpoints_may_lie_elsewhere_behind_a_link(tmp_path):
    elsewhere = tmp_path / "scratch"
    elsewhere.mkdir()
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "checkpoints").symlink_to(elsewhere)
    save(run_dir, 10)
    assert (elsewhere / "step_00000010").is_dir()
    assert (run_dir / "last_checkpoint").read_text() == "step_00000010\n"


def test_the_files_are_plain_safetensors(tmp_path):
    save(tmp_path, 10)
    path = tmp_path / "checkpoints" / "step_00000010" / "rank_00000.safetensors"
    with safe_open(str(path), "pt") as content:
        assert set(content.keys()) == {
            f"{kind}/{name}:0" for kind in ("weight", "exp_avg", "exp_avg_sq") for name in SHAPES
        }
        found = content.get_tensor("exp_avg/visual.proj:0")
    assert torch.equal(found, expected("visual.proj", "exp_avg", 10, (7, 5)))


@pytest.fixture
def slow_disk(monkeypatch) -> threading.Event:
    """Nothing is written before the event is set."""
    real, may_write = writer.write_blocks, threading.Event()

    def write(path, blocks):
        assert may_write.wait(20)
        return real(path, blocks)

    monkeypatch.setattr(writer, "write_blocks", write)
    return may_write


def test_training_goes_on_while_it_is_written(tmp_path, slow_disk):
    engine, state = Engine().fill(10), TrainState(10, 80)
    checkpoints = manager(tmp_path)
    checkpoints.save(engine, state)
    engine.fill(11)  # the next step changes weights and state in place
    state.advance(8)
    assert not (tmp_path / "checkpoints" / "step_00000010").exists()
    slow_disk.set()
    checkpoints.close()
    other = Engine()
    assert manager(tmp_path).load_latest(other) == TrainState(10, 80)
    assert other.holds(10)


def test_the_next_save_waits_for_the_one_under_way(tmp_path, slow_disk):
    checkpoints, engine = manager(tmp_path), Engine()
    checkpoints.save(engine.fill(10), TrainState(10))
    second = threading.Thread(target=lambda: checkpoints.save(engine.fill(20), TrainState(20)))
    second.start()
    second.join(0.3)
    assert second.is_alive()
    slow_disk.set()
    second.join(20)
    checkpoints.close()
    for step in (20, 10):
        assert manager(tmp_path).load_latest(engine).step == step and engine.holds(step)
        shutil.rmtree(tmp_path / "checkpoints" / f"step_000000{step}")


def test_random_generators_go_on_where_they_were(tmp_path):
    def draws() -> list[float]:
        return [torch.rand(()).item(), float(np.random.rand()), random.random(), random.gauss(0, 1)]

    draws()
    save(tmp_path, 10)
    expected_draws = draws()
    draws()
    manager(tmp_path).load_latest(Engine())
    assert draws() == expected_draws


def test_kept_and_latest(tmp_path):
    save(tmp_path, 10, 20, 30)
    assert names(tmp_path) == ["latest", "step_00000020", "step_00000030"]
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step_00000030\n"
    assert newest_step(tmp_path) == 30


def test_left_asides_of_killed_runs_are_removed(tmp_path):
    (tmp_path / "checkpoints" / ".step_00000040.tmp").mkdir(parents=True)
    (tmp_path / "checkpoints" / ".step_00000040.tmp" / "rank_00000.safetensors").write_text("half")
    manager(tmp_path)
    assert names(tmp_path) == []


def test_due_by_steps(tmp_path):
    checkpoints = manager(tmp_path)
    assert [step for step in range(1, 31) if checkpoints.due(TrainState(step))] == [10, 20, 30]


def test_due_by_the_clock_at_the_next_log_line(tmp_path):
    checkpoints = manager(tmp_path, every_steps=1000, every_minutes=60.0)
    assert not checkpoints.due(TrainState(5))
    checkpoints._began -= 3600
    assert [checkpoints.due(TrainState(step)) for step in (6, 9, 10)] == [False, False, True]
    checkpoints.save(Engine().fill(10), TrainState(10))
    assert not checkpoints.due(TrainState(15))
    checkpoints.close()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "flipped": ("rank_00000.safetensors", flip, "does not have its checksum"),
    "truncated": ("rank_00000.safetensors", truncate, "has .* of .* bytes"),
    "missing": ("rank_00000.safetensors", Path.unlink, "is missing"),
    "generators": ("rng_00000.json", flip, "does not have its checksum"),
    "no state": ("state.json", Path.unlink, "cannot be read"),
    "half a state": ("state.json", truncate, "JSON|checksum"),
    "state of binary": ("state.json", lambda path: path.write_bytes(b"\xff\xfe"), "cannot be read"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_newest_falls_back_and_says_so(tmp_path, capsys, what):
    save(tmp_path, 10, 20)
    name, damage, told = DAMAGE[what]
    damage(tmp_path / "checkpoints" / "step_00000020" / name)
    engine = Engine()
    with manager(tmp_path) as checkpoints:
        capsys.readouterr()
        assert checkpoints.load_latest(engine).step == 10
        line = capsys.readouterr().err
        assert engine.holds(10)
        assert line.count("\n") == 1 and line.endswith("going on from step_00000010\n")
        assert "step_00000020 is damaged" in line
        assert (tmp_path / "checkpoints" / "latest").read_text() == "step_00000010\n"
        # the run goes its way again, and what was damaged goes when there is something newer
        checkpoints.save(engine.fill(15), TrainState(15))
    assert names(tmp_path) == ["latest", "step_00000010", "step_00000015"]
    for path in (
        tmp_path / "checkpoints" / "step_00000010",
        tmp_path / "checkpoints/step_00000015",
    ):
        damage(path / name)
    with pytest.raises(
        CheckpointError, match=f"no checkpoint is whole: .*15 .*{told}.*10 .*{told}"
    ):
        manager(tmp_path).load_latest(Engine())


def test_a_number_changed_in_the_state_is_damage(tmp_path):
    save(tmp_path, 10, 20)
    path = tmp_path / "checkpoints" / "step_00000020" / "state.json"
    path.write_text(path.read_text().replace('"samples_seen": 160', '"samples_seen": 168'))
    assert manager(tmp_path).load_latest(Engine()).step == 10


def test_a_damaged_step_is_replaced_when_the_run_comes_there_again(tmp_path):
    save(tmp_path, 10, 20)
    flip(tmp_path / "checkpoints" / "step_00000020" / "rank_00000.safetensors")
    save(tmp_path, 20)
    assert names(tmp_path) == ["latest", "step_00000010", "step_00000020"]
    engine = Engine()
    assert manager(tmp_path).load_latest(engine).step == 20 and engine.holds(20)


def test_a_step_is_saved_again_after_a_roll_back(tmp_path):
    save(tmp_path, 10)
    with manager(tmp_path) as checkpoints:
        engine = Engine()
        checkpoints.load_latest(engine)
        checkpoints.save(engine, TrainState(10, 800, 2))
    assert manager(tmp_path).load_latest(Engine()) == TrainState(10, 800, 2)
    assert names(tmp_path) == ["latest", "step_00000010"]


def test_killed_between_the_two_renames_of_a_replacement(tmp_path):
    save(tmp_path, 10)
    path = tmp_path / "checkpoints"
    shutil.copytree(path / "step_00000010", path / ".step_00000010.tmp")
    (path / "step_00000010").rename(path / ".step_00000010.replaced.tmp")
    engine = Engine()
    assert manager(tmp_path).load_latest(engine).step == 10 and engine.holds(10)
    assert names(tmp_path) == ["latest", "step_00000010"]


def test_other_data_is_refused(tmp_path):
    save(tmp_path, 10)
    with pytest.raises(CheckpointError, match="data_fingerprint was these shards, is now others"):
        manager(tmp_path, data="others").load_latest(Engine())


def test_another_model_is_refused(tmp_path, monkeypatch):
    save(tmp_path, 10)
    engine = Engine()
    changed = {"visual.ln": "visual.norm"}
    fragments = [
        type(old)(changed.get(old.name, old.name), old.shape, old.start, old.values)
        for old in engine.shards.fragments()
    ]
    fragments[2] = type(fragments[2])("visual.proj", (5, 7), 0, fragments[2].values)
    monkeypatch.setattr(engine.shards, "fragments", lambda: fragments)
    told = (
        r"visual.ln is not in the model, visual.norm is not in the checkpoint, "
        r"visual.proj is \(7, 5\), in the model \(5, 7\). Resume with"
    )
    with pytest.raises(CheckpointError, match=told):
        manager(tmp_path).load_latest(engine)


def test_checkpoints_of_an_earlier_format_are_named(tmp_path):
    folder = tmp_path / "checkpoints" / "step_00000010"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"step": 10, "samples_seen": 80}))
    with pytest.raises(CheckpointError, match="has format None, this version reads 1"):
        manager(tmp_path).load_latest(Engine())


def test_an_average_begins_with_the_weights_when_there_is_none(tmp_path):
    save(tmp_path, 10)
    engine = Engine(kinds=("weight", "exp_avg", "exp_avg_sq", "ema"))
    manager(tmp_path).load_latest(engine)
    for fragment in engine.shards.fragments():
        assert torch.equal(fragment.values["ema"], fragment.values["weight"])


def test_weights_and_their_average(tmp_path):
    kinds = ("weight", "exp_avg", "exp_avg_sq", "ema")
    with manager(tmp_path) as checkpoints:
        checkpoints.save(Engine(kinds=kinds).fill(10), TrainState(10))
    for ema, kind in ((None, "ema"), (True, "ema"), (False, "weight")):
        weights = load_model_weights(tmp_path, ema=ema)
        assert {name: tuple(value.shape) for name, value in weights.items()} == SHAPES
        for name, value in weights.items():
            assert torch.equal(value.flatten(), expected(name, kind, 10, SHAPES[name]))


def test_weights_of_a_step(tmp_path):
    save(tmp_path, 10, 20)
    found = load_model_weights(tmp_path, 10)["text.embedding"]
    assert torch.equal(found.flatten(), expected("text.embedding", "weight", 10, (11, 6)))
    with pytest.raises(
        CheckpointError, match="no checkpoint of step 15; there is: step_00000010, "
    ):
        load_model_weights(tmp_path, 15)
    with pytest.raises(CheckpointError, match="has no average of the weights"):
        load_model_weights(tmp_path, ema=True)
    flip(tmp_path / "checkpoints" / "step_00000020" / "rank_00000.safetensors")
    with pytest.raises(CheckpointError, match="step_00000020 is damaged: .*; take another step"):
        load_model_weights(tmp_path)


def test_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint yet; train first"):
        load_model_weights(tmp_path)


def test_an_unwritable_run_dir_is_refused_at_once(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(OSError, match="run"):
        manager(tmp_path / "run")


def test_weights_are_read_without_the_engine():
    """Exporting and scoring shall not need DeepSpeed, nor take its seconds to import."""
    code = "import sys, pipeline.engine.checkpoint; sys.exit('deepspeed' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


@pytest.fixture
def training_goes_on(tmp_path, monkeypatch) -> list[int]:
    """A training beside the reader, which deletes a checkpoint when its files are looked at; the
    steps that it is still to delete."""
    steps: list[int] = []
    real = weights_module.problem_of

    def problem_of(folder, file):
        if steps:
            shutil.rmtree(tmp_path / "checkpoints" / f"step_{steps.pop(0):08d}")
        return real(folder, file)

    monkeypatch.setattr(weights_module, "problem_of", problem_of)
    return steps


def test_a_checkpoint_that_goes_while_it_is_read_is_chosen_again(tmp_path, training_goes_on):
    save(tmp_path, 10, 20)
    training_goes_on.append(20)
    read = read_weights(tmp_path)
    assert read.step == 10 and not read.has_average
    weight = read.values["visual.proj"].flatten()
    assert torch.equal(weight, expected("visual.proj", "weight", 10, SHAPES["visual.proj"]))


def test_one_that_was_asked_for_and_goes_is_told(tmp_path, training_goes_on):
    save(tmp_path, 10, 20)
    training_goes_on.append(10)
    with pytest.raises(CheckpointError, match="no checkpoint of step 10; there is: step_00000020"):
        read_weights(tmp_path, 10)


def test_when_no_checkpoint_is_whole_they_are_named(tmp_path):
    save(tmp_path, 10, 20)
    for step in (10, 20):
        (tmp_path / "checkpoints" / f"step_{step:08d}" / "rank_00000.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no checkpoint is whole, of the steps 20, 10"):
        newest_step(tmp_path)
