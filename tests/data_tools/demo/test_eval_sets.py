import tarfile

from data_tools.demo.config import DemoConfig
from data_tools.demo.corpus import build_corpus
from data_tools.demo.eval_sets import write_eval_sets
from tests.data_tools.demo.packages_of_two_styles import write_packages


def members(path):
    with tarfile.open(path) as tar:
        files = ((entry.name, tar.extractfile(entry)) for entry in tar)
        return {name: file.read() for name, file in files if file is not None}


def test_both_sets_in_clip_benchmarks_layout(tmp_path):
    write_packages(tmp_path / "npm")
    corpus = build_corpus(DemoConfig(styles=["noto"], cache=str(tmp_path / "npm")))
    for folder in ("a", "b"):
        counts = write_eval_sets(corpus, tmp_path / folder)
    assert counts == {"classes": 4, "eval_images": 3}

    zero_shot = tmp_path / "a" / "twemoji"
    names = (zero_shot / "classnames.txt").read_text().splitlines()
    assert names == corpus.labels
    templates = (zero_shot / "zeroshot_classification_templates.txt").read_text().splitlines()
    assert "{c}" in templates and all("{c}" in template for template in templates)
    assert (zero_shot / "test" / "nshards.txt").read_text() == "1\n"
    samples = members(zero_shot / "test" / "0.tar")
    assert sorted(samples) == [f"s{n:07d}.{kind}" for n in range(3) for kind in ("cls", "png")]
    labels = [names[int(samples[f"s{n:07d}.cls"])] for n in range(3)]
    assert labels == ["ice hockey", "waving hand", "double exclamation mark"]
    assert samples["s0000001.png"] == corpus.held_out[1].png

    retrieval = tmp_path / "a" / "twemoji_retrieval"
    assert (retrieval / "dataset_type.txt").read_text().strip() == "retrieval"
    texts = members(retrieval / "test" / "0.tar")
    assert texts["s0000000.txt"].decode() == "ice hockey: game, puck, R&B"
    assert texts["s0000002.txt"].decode() == "double exclamation mark"

    for name in ("twemoji/test/0.tar", "twemoji_retrieval/test/0.tar"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
