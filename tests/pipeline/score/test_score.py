"""Scores against the features computed by hand; resuming, refusing, the way back to the ledger."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional as F

from data_tools.dataset.manifest import load_manifest
from pipeline.config import TrainJob
from pipeline.config.frozen import to_yaml
from pipeline.data import Tokenizer
from pipeline.data.samples.transforms import eval_transform
from pipeline.export import export_weights
from pipeline.score.__main__ import main
from pipeline.score.scorer import ScoreError, load_scorer
from tests.pipeline.data.made_shards import Sample, make_samples, write_shards
from tests.pipeline.engine.checkpoint.sharded import write_checkpoint
from tests.pipeline.model.model_configs import small_clip, small_config

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "small"
    weights = dict(small_clip().state_dict())
    export_weights(weights, small_config(), folder, "native", max_logit_scale=4.6)
    return folder


@pytest.fixture
def samples():
    good = make_samples(11)
    return [*good, Sample("s-bad", b"\xff\xd8 no image", "a broken one")]


@pytest.fixture
def manifest(tmp_path, samples):
    return write_shards(tmp_path / "data", samples, per_shard=5)


def scores(manifest):
    files = sorted((manifest.parent / "scores").glob("*.parquet"))
    return {row["key"]: row["score"] for file in files for row in pq.read_table(file).to_pylist()}


def by_hand(sample):
    model, config = small_clip(), small_config()
    pixels = torch.from_numpy(eval_transform(sample.image, config.image_size))[None]
    tokens = Tokenizer(config.text.context_length)([sample.caption])
    with torch.no_grad():
        image, text = model.encode_image(pixels), model.encode_text(tokens)
    return F.cosine_similarity(image.double(), text.double()).item()


def test_scores_are_cosines_of_the_features(native, manifest, samples, capsys):
    assert main([f"model={native}", f"manifest={manifest}", "batch_size=4", "device=cpu"]) == 0
    found = scores(manifest)
    assert found.pop("s-bad") is None
    assert found == pytest.approx({s.key: by_hand(s) for s in samples[:-1]}, abs=1e-5)
    assert "12 samples, 1 bad" in capsys.readouterr().out


def test_what_is_scored_is_not_scored_again(native, manifest, capsys):
    words = [f"model={native}", f"manifest={manifest}", "device=cpu"]
    assert main([*words, "task=0/2"]) == 0
    assert "the ledger waits for the other tasks" in capsys.readouterr().err
    assert main([*words, "task=1/2"]) == 0
    before = scores(manifest)
    assert len(before) == 12
    first = manifest.parent / "scores" / "000000.parquet"
    first.unlink()
    assert main(words) == 0
    assert "5 samples, 0 bad, 7 already scored" in capsys.readouterr().out
    assert scores(manifest) == before


def test_scores_go_into_the_ledger(native, manifest, samples, capsys):
    ledger = manifest.parent / "ledger.parquet"
    uids = sorted(["dropped-long-ago", *(sample.key for sample in samples)])
    pq.write_table(pa.table({"uid": uids, "status": ["packed"] * len(uids)}), ledger)
    for _ in range(2):
        assert main([f"model={native}", f"manifest={manifest}", "device=cpu"]) == 0
        assert "scores in the ledger: 11" in capsys.readouterr().out
    table = pq.read_table(ledger)
    assert table.column_names == ["uid", "status", "score"] and table["uid"].to_pylist() == uids
    expected = {"dropped-long-ago": None} | scores(manifest)
    assert dict(zip(uids, table["score"].to_pylist())) == expected


def test_a_run_directory_is_a_model_too(native, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(to_yaml(TrainJob(model=small_config())))
    write_checkpoint(run_dir, 10, dict(small_clip().state_dict()))
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    captions = ["a cat", "two dogs", ""]
    of_run = load_scorer(run_dir, CPU)(images, captions)
    assert torch.equal(of_run, load_scorer(native, CPU)(images, captions))


def test_a_hugging_face_folder_scores_alike(native, tmp_path):
    pytest.importorskip("transformers")
    folder = tmp_path / "hf"
    config = small_config()
    weights = dict(small_clip().state_dict())
    export_weights(weights, config, folder, "huggingface", max_logit_scale=4.6)
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    captions = ["a cat", "two dogs in the snow", "!"]
    theirs, ours = (load_scorer(where, CPU)(images, captions) for where in (folder, native))
    assert torch.allclose(theirs, ours, atol=1e-5)


@pytest.mark.parametrize(
    "words, told",
    [
        ([], ["model is not given", "manifest is not given"]),
        (["model=a", "manifest=b", "batch_size=0", "task=2/2"], ["batch_size=0", "task=2/2"]),
        (
            ["model=a", "manifest=b", "speed=9"],
            ["speed=9: there is no setting speed", "model, manifest"],
        ),
    ],
)
def test_refusals_name_every_word(words, told, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert all(part in error for part in told), error


def test_no_model_and_no_data_set(manifest, tmp_path, capsys):
    assert main([f"model={tmp_path}", f"manifest={manifest}", "device=cpu"]) == 1
    assert "neither a run" in capsys.readouterr().err
    assert main([f"model={tmp_path}", f"manifest={tmp_path}/m.json"]) == 1
    assert "no manifest at" in capsys.readouterr().err
    with pytest.raises(ScoreError, match="no config.json"):
        load_scorer(tmp_path, CPU)


def test_a_data_set_without_one_good_image_is_told(native, tmp_path, capsys):
    bad = [Sample(f"s{n}", b"no image", "text") for n in range(3)]
    manifest = write_shards(tmp_path / "bad", bad, per_shard=3)
    assert main([f"model={native}", f"manifest={manifest}", "device=cpu"]) == 1
    assert "none of 3 samples of" in capsys.readouterr().err
    assert not (tmp_path / "bad" / "scores").exists()


def test_scores_of_two_models_do_not_mix(native, manifest, tmp_path, capsys):
    assert main([f"model={native}", f"manifest={manifest}", "device=cpu", "task=0/2"]) == 0
    other = tmp_path / "other"
    weights = dict(small_clip(seed=1).state_dict())
    export_weights(weights, small_config(), other, "native", max_logit_scale=4.6)
    assert main([f"model={other}", f"manifest={manifest}", "device=cpu", "task=1/2"]) == 0
    assert "scores of several models" in capsys.readouterr().err
    assert main([f"model={other}", f"manifest={manifest}", "device=cpu"]) == 0
    assert len(load_manifest(manifest).shards) == 3
