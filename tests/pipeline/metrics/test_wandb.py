"""The record that `wandb sync` uploads is read back; outages and keys are real processes'."""

from __future__ import annotations

import base64
import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist
from PIL import Image

from pipeline.config import ConfigError, DataConfig, SourceConfig, WandbMode
from pipeline.metrics import MetricsProcessor
from pipeline.metrics.examples import retrieval_strips
from pipeline.metrics.wandb_sink import chosen_mode, data_cards, run_id_of
from pipeline.state import TrainState
from tests.pipeline.metrics.steps import job, lines, step_metrics, take, world
from tests.pipeline.metrics.wandb_records import Recorded, records_of
from tests.pipeline.metrics.wandb_server import serving

ROOT = Path(__file__).parents[3]
KEY = "0123456789abcdef" * 2 + "deadbeef"


def forget_account(patched: pytest.MonkeyPatch, home: Path) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        patched.delenv(name)
    patched.setenv("HOME", str(home))  # no .netrc


@pytest.fixture(autouse=True)
def no_account(tmp_path, monkeypatch):
    forget_account(monkeypatch, tmp_path)


def picture(colour: str) -> str:
    stream = io.BytesIO()
    Image.new("RGB", (32, 16), colour).save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def retrieval() -> dict:
    def top() -> list[dict]:
        return [
            {"image": number, "score": 0.5 - number / 10, "picture": picture(colour)}
            for number, colour in enumerate(["red", "green", "blue", "white", "black"])
        ]

    return {
        "kind": "retrieval",
        "text_to_image_r1": 0.25,
        "examples": [
            {"caption": "a fox", "image": 1, "top": top()},
            {"caption": "a cow", "image": 9, "top": top()},
        ],
    }


def run_steps(run_dir: Path, start: TrainState, until: int, evaluate: bool = False) -> None:
    config = job(run_dir, wandb_mode=WandbMode.auto, wandb_project="foxes")
    config.data.manifest = str(run_dir.parent / "data" / "manifest.json")
    metrics, state = MetricsProcessor(config, world()), start
    metrics.start(state)
    while state.step < until:
        take(metrics, state, step_metrics(10.0 - state.step))
        if state.step % 2 == 0:
            metrics.log(state)
    if evaluate:
        metrics.log_eval(state, {"toys": retrieval(), "digits": {"kind": "x", "top1": 0.75}})
    metrics.close()


@pytest.fixture(scope="module")
def resumed(tmp_path_factory) -> tuple[Path, list[Recorded]]:
    """A run that was killed after step 8 and went on from its checkpoint of step 4 to step 10."""
    folder = tmp_path_factory.mktemp("wandb")
    (folder / "data").mkdir()
    (folder / "data" / "report.html").write_text("card")
    run_dir = folder / "fox run"
    with pytest.MonkeyPatch.context() as patched:
        forget_account(patched, folder)
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        run_steps(run_dir, TrainState(), 8)
        run_steps(run_dir, TrainState(4, 32), 10, evaluate=True)
        dist.destroy_process_group()
    return run_dir, records_of(run_dir)


def test_the_offline_record_of_a_resumed_run(resumed):
    run_dir, records = resumed
    assert len(records) == 2 and all(record.ended for record in records)

    run_id = (run_dir / "wandb_id").read_text()
    for record in records:
        (run,) = record.runs
        assert (run.run_id, run.project, run.display_name) == (run_id, "foxes", "fox run")
        assert run.resume  # else `wandb sync` of the second would replace the first
        axes = {metric.glob_name: metric.step_metric for metric in record.metrics}
        for group in ("train/*", "perf/*", "data/*", "eval/*"):
            assert axes[group] == "train/step"

    # W&B keeps every point: its own counter never goes back, the run's step does
    assert [line["train/step"] for line in records[0].history] == [2, 4, 6, 8]
    assert [line["train/step"] for line in records[1].history] == [6, 8, 10, 10, 10]
    assert [line["_step"] for line in records[1].history] == [0, 1, 2, 3, 4]
    assert [line["train/loss"] for line in records[0].history] == [9.0, 7.0, 5.0, 3.0]
    assert [line.get("train/loss") for line in records[1].history] == [5.0, 3.0, 1.0, None, None]
    # every name of metrics.jsonl, and both possible x axes with the scores too
    written = lines(run_dir / "metrics.jsonl")
    assert set(written[-2]) - {"step"} <= set(records[1].history[2])
    assert records[1].history[3]["eval/toys/text_to_image_r1"] == 0.25
    assert records[1].history[3]["train/samples_seen"] == 80

    summary = records[1].summary
    assert (summary["train/loss"], summary["train/step"]) == (1.0, 10)
    assert summary["eval/digits/top1"] == 0.75


def test_the_record_tells_what_was_run(resumed):
    run_dir, records = resumed
    config = records[1].config
    assert config["train"]["global_batch_size"] == 8 and config["train"]["precision"] == "bf16"
    assert config["model"]["vision"]["width"] == 768
    assert config["logging"]["wandb_mode"] == "auto"
    assert config["environment"]["packages"]["torch"].startswith("2.")
    assert config["environment"]["git"]
    assert config["data_card"] == [str(run_dir.parent / "data" / "report.html")]


def test_the_record_holds_retrieval_examples(resumed):
    run_dir, records = resumed
    told = records[1].history[4]
    name = "eval/toys/text_to_image_examples"
    assert told[f"{name}._type"] == "images/separated"
    assert told[f"{name}.captions"] == [
        "a fox: 1 wrong 0.50, 2 right 0.40, 3 wrong 0.30, 4 wrong 0.20, 5 wrong 0.10",
        "a cow: 1 wrong 0.50, 2 wrong 0.40, 3 wrong 0.30, 4 wrong 0.20, 5 wrong 0.10",
    ]
    files = [records[1].path.parent / "files" / path for path in told[f"{name}.filenames"]]
    with Image.open(files[0]) as strip:
        assert strip.size == (5 * 136, 136)
        frames = [strip.getpixel((136 * place + 1, 70)) for place in range(5)]
        assert [frame == (0x1A, 0x7F, 0x37) for frame in frames] == [False, True] + [False] * 3
        assert strip.getpixel((68, 70)) == (255, 0, 0)  # the best match first: red


@pytest.mark.slow
def test_wandb_sync_puts_both_records_into_one_run(resumed):
    """W&B's own uploader, against a server that keeps what it is sent."""
    run_dir, records = resumed
    with serving() as server:
        ended = subprocess.run(
            [sys.executable, "-m", "wandb", "sync", "--yes", str(run_dir / "wandb")],
            env=os.environ | {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": server.address},
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert set(server.run_ids) == {(run_dir / "wandb_id").read_text()}
    history = server.history
    assert [line["train/step"] for line in history] == [2, 4, 6, 8, 6, 8, 10, 10, 10]
    assert [line["_step"] for line in history] == list(range(9))  # what goes back is thrown away
    assert [line["train/loss"] for line in history if "train/loss" in line] == [9, 7, 5, 3, 5, 3, 1]
    assert server.config["train"]["global_batch_size"] == 8
    images = history[-1]["eval/toys/text_to_image_examples"]["filenames"]
    assert len(images) == 2 and set(images) <= set(server.uploads)


def test_only_retrieval_sets_with_pictures_have_strips():
    assert retrieval_strips({"kind": "classification", "examples": [{"label": 1}]}) == []
    result = retrieval()
    result["examples"][0]["top"][2]["picture"] = ""  # a set too large to keep them
    assert [strip.caption[:5] for strip in retrieval_strips(result)] == ["a cow"]


def test_data_cards_are_looked_for_beside_each_local_manifest(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "report.html").write_text("")
    sources = [
        SourceConfig(manifest=str(tmp_path / "a" / "manifest.json")),
        SourceConfig(manifest=str(tmp_path / "b" / "manifest.json")),
        SourceConfig(manifest="s3://bucket/c/manifest.json"),
    ]
    assert data_cards(DataConfig(mixture=sources)) == [str(tmp_path / "a" / "report.html")]


def test_errors_of_wandb_are_told_once_and_end_nothing(tmp_path, alone, monkeypatch, capsys):
    config = job(tmp_path, wandb_mode=WandbMode.offline)
    metrics, state = MetricsProcessor(config, world()), TrainState()
    metrics.start(state)
    run = metrics._outputs._wandb._run

    def fails(*args, **kwargs):
        raise BrokenPipeError(f"with {KEY} in it")

    with monkeypatch.context() as patched:
        patched.setattr(run, "log", fails)
        for _ in range(3):
            take(metrics, state)
            metrics.log(state)
        metrics.log_eval(state, {"toys": retrieval()})
    take(metrics, state)
    metrics.log(state)
    metrics.close()
    error = capsys.readouterr().err
    assert error.count("W&B fails (BrokenPipeError); metrics.jsonl goes on without it\n") == 1
    assert error.count("W&B") == 1 and KEY not in error
    assert len(lines(tmp_path / "metrics.jsonl")) == 5
    # W&B's own process writes the record, and on a busy machine it does so after `finish` gave up
    until(lambda: records_of(tmp_path)[0].history)
    assert [line["train/step"] for line in records_of(tmp_path)[0].history] == [4]


def until(condition):
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.2)


def test_online_without_a_key_is_refused():
    with pytest.raises(ConfigError, match="logging.wandb_mode = online: no W&B key"):
        chosen_mode(WandbMode.online)
    assert chosen_mode(WandbMode.auto) is WandbMode.offline
    assert chosen_mode(WandbMode.disabled) is WandbMode.disabled


OUTAGE = """
import sys
from pathlib import Path
import torch.distributed as dist
from pipeline.config import WandbMode
from pipeline.metrics import MetricsProcessor, wandb_sink
from pipeline.state import TrainState
from tests.pipeline.metrics.steps import job, take, world

wandb_sink.INIT_TIMEOUT_S = 3.0
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
config = job(Path(sys.argv[1]), wandb_mode=WandbMode[sys.argv[2]])
metrics, state = MetricsProcessor(config, world()), TrainState()
metrics.start(state)
take(metrics, state)
metrics.log(state)
metrics.close()
"""


def run_with(
    run_dir: Path, mode: str, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", OUTAGE, str(run_dir), mode],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def run_with_key(run_dir: Path, mode: str, key: str) -> subprocess.CompletedProcess[str]:
    """A run whose W&B server does not answer (port 9 of this machine)."""
    where = {"WANDB_API_KEY": key, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    return run_with(run_dir, mode, where)


def mentions(folder: Path, text: str) -> list[Path]:
    return [
        path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()
    ]


@pytest.mark.slow
def test_a_server_that_does_not_answer_makes_the_run_an_offline_one(tmp_path):
    run_dir = tmp_path / "run"
    ended = run_with_key(run_dir, "auto", KEY)
    assert ended.returncode == 0, ended.stderr
    assert "W&B cannot be reached" in ended.stderr and "recorded offline" in ended.stderr
    assert len(lines(run_dir / "metrics.jsonl")) == 1
    (record,) = records_of(run_dir)
    assert [line["train/step"] for line in record.history] == [1]
    assert KEY not in ended.stdout + ended.stderr and mentions(run_dir, KEY) == []


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["auto", "online"])
def test_a_key_of_a_wrong_form_is_not_printed(tmp_path, mode):
    ended = run_with_key(tmp_path / "run", mode, "short-secret")
    assert (ended.returncode == 0) == (mode == "auto"), ended.stderr
    assert "short-secret" not in ended.stdout + ended.stderr
    assert mode == "auto" or "no W&B key of the right form" in ended.stderr


@pytest.mark.slow
def test_the_service_of_a_parent_process_is_not_used(tmp_path):
    gone = f"3-{os.getpid()}-tcp-localhost-9"  # as W&B writes it; nobody listens at port 9
    ended = run_with(tmp_path / "run", "offline", {"WANDB_SERVICE": gone})
    assert ended.returncode == 0, ended.stderr
    assert len(records_of(tmp_path / "run")) == 1


def test_an_id_that_was_cut_off_becomes_another_and_stays(tmp_path: Path) -> None:
    first = run_id_of(tmp_path)
    assert run_id_of(tmp_path) == first
    (tmp_path / "wandb_id").write_text("")
    second = run_id_of(tmp_path)
    assert len(second) == 8 and second != first
    assert run_id_of(tmp_path) == second
