from __future__ import annotations

import pytest

from data_tools import curate
from data_tools.config import ClassifierConfig, load_job
from data_tools.tables.schema import DataError
from tests.data_tools.curate.crawled import (
    Pair,
    crawl,
    curated_of,
    fates_of,
    job_of,
    jpeg,
    photo,
)

HERE = __name__
CALLS: list[int] = []


class LengthOfCaption:
    def score(self, images, captions):
        CALLS.append(len(images))
        assert all(image.startswith(b"\xff\xd8") for image in images)
        return [float(len(caption)) for caption in captions]


class OneTooFew:
    def score(self, images, captions):
        return [1.0] * (len(images) - 1)


class NotANumber:
    def score(self, images, captions):
        return [float("nan")] * len(images)


class Failing:
    def score(self, images, captions):
        raise RuntimeError("no GPU")


class NeedsMore:
    def __init__(self, weights):
        self.weights = weights


class NoScore:
    pass


@pytest.fixture
def crawled(tmp_path):
    CALLS.clear()
    return crawl(tmp_path, [Pair(jpeg(photo(n)), "bird " * (n + 1)) for n in range(6)])


def with_classifier(paths, name, min_score=15.0):
    target = ClassifierConfig(target=f"{HERE}:{name}", min_score=min_score)
    return job_of(paths, classifiers=[target])


def test_pairs_below_the_score_are_rejected(crawled):
    paths, uids = crawled
    counts = curate.run(with_classifier(paths, "LengthOfCaption"), paths)
    assert counts == {"fetched": 6, "classifier": 3, "curated": 3}
    assert curated_of(paths).keys() == set(uids[3:])
    assert fates_of(paths)[uids[0]] == (
        "rejected:classifier",
        f"{HERE}:LengthOfCaption: 4.0 < 15.0",
    )


def test_another_threshold_asks_for_nothing_again(crawled):
    paths, _ = crawled
    curate.run(with_classifier(paths, "LengthOfCaption"), paths)
    assert CALLS == [6]
    counts = curate.run(with_classifier(paths, "LengthOfCaption", 25.0), paths)
    assert counts["classifier"] == 5 and CALLS == [6]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("OneTooFew", "OneTooFew answered 6 pairs with 5 scores"),
        ("NotANumber", "NotANumber answered 6 pairs with 6 scores, 6 of them not finite"),
        ("Failing", r"Failing failed: RuntimeError\('no GPU'\)"),
        ("NeedsMore", "NeedsMore can't be made: TypeError"),
        ("NoScore", r"NoScore has no method score\(images, captions\)"),
        ("Absent", "Absent can't be made: AttributeError"),
    ],
)
def test_a_plug_in_that_fails_is_named(crawled, name, told):
    paths, _ = crawled
    with pytest.raises(DataError, match=f"the classifier {HERE}:{told}"):
        curate.run(with_classifier(paths, name), paths)
    assert not paths.table("curated").exists()


def test_a_module_that_is_not_there_is_named(crawled):
    paths, _ = crawled
    job = job_of(paths, classifiers=[ClassifierConfig(target="no.such:Thing")])
    with pytest.raises(DataError, match="the classifier no.such:Thing can't be made: ModuleNotF"):
        curate.run(job, paths)


def test_given_on_the_command_line(tmp_path):
    (tmp_path / "q.txt").write_text("a bird\n")
    job = load_job(
        [f"out_dir={tmp_path}", f"queries.path={tmp_path}/q.txt", "source=commons",
         "sources.contact=crawler@example.org",
         "curate.classifiers=[{target: 'json.decoder:Aesthetic', min_score: 4.5}]"]
    )  # fmt: skip
    (classifier,) = job.curate.classifiers
    assert (classifier.target, classifier.min_score) == ("json.decoder:Aesthetic", 4.5)
