"""The whole evaluation with real towers, the real tokenizer and sets read from disk, on two
ranks."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.data import Tokenizer, load_eval_set
from pipeline.eval import evaluate_model, format_table, protocols, write_report, write_results
from tests.gloo import run_gloo
from tests.pipeline.model.model_configs import random_images, small_clip

CLASSES = ["red {fox}", "owl", "small airplane", "ice hockey", "moon cake", "deaf woman"]


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def write_set(folder: Path, kind: str, num_samples: int) -> Path:
    (folder / "test").mkdir(parents=True)
    (folder / "dataset_type.txt").write_text(kind)
    (folder / "classnames.txt").write_text("\n".join(CLASSES))
    (folder / "zeroshot_classification_templates.txt").write_text("{c}\nan emoji of {c}.")
    (folder / "test" / "nshards.txt").write_text("1")
    images = random_images(num_samples, 32).permute(0, 2, 3, 1).numpy()
    with tarfile.open(folder / "test" / "0.tar", "w") as tar:
        for number, image in enumerate(images):
            png = cv2.imencode(".png", np.ascontiguousarray(image))[1].tobytes()
            add(tar, f"s{number:07d}.png", png)
            if kind == "retrieval":
                captions = [f"{CLASSES[number % 6]} number {number}", f"picture {number}"]
                add(tar, f"s{number:07d}.txt", "\n".join(captions).encode())
            else:
                add(tar, f"s{number:07d}.cls", str(number % 6).encode())
    return folder


def evaluate(rank: int, world_size: int, folders: list[Path]) -> dict:
    model = small_clip()
    # The annotation has mypy check that the data stage gives what the protocol asks.
    sets: list[protocols.EvalSet] = [load_eval_set(f, 32, rank, world_size) for f in folders]
    return evaluate_model(
        model.encode_image,
        model.encode_text,
        Tokenizer(20),
        sets,
        device="cpu",
        batch_size=4,
        num_examples=3,
    )


@pytest.fixture
def folders(tmp_path) -> list[Path]:
    return [
        write_set(tmp_path / "classes", "classification", 13),
        write_set(tmp_path / "captions", "retrieval", 11),
    ]


def test_two_ranks_agree_and_the_report_shows_it(folders, tmp_path):
    both = run_gloo(evaluate, 2, folders)
    assert both[0] == both[1]
    alone = evaluate(0, 1, folders)
    for name, result in alone.items():
        shared = both[0][name]
        assert {k: v for k, v in result.items() if k != "examples"} == {
            k: v for k, v in shared.items() if k != "examples"
        }
        pictures = [example.get("picture") for example in result["examples"]]
        assert pictures == [example.get("picture") for example in shared["examples"]]
    assert alone["classes"]["num_samples"] == 13 and alone["captions"]["num_captions"] == 22
    run_dir = tmp_path / "run"
    write_results(run_dir, 5, both[0])
    page = write_report(run_dir).read_text(encoding="utf-8")
    assert "red {fox}" in page and page.count("data:image/png") >= 3 + 3 * 5
    assert "captions" in format_table(alone)
