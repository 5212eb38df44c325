from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

from data_tools.config import CrawlConfig, load_job
from data_tools.config.crawl import (
    IMG2DATASET_OPTIONS,
    IMG2DATASET_OWNED,
    INTERPOLATIONS,
    problems,
)
from data_tools.crawl.part import img2dataset_arguments


def img2dataset_parameters() -> set[str]:
    """Of img2dataset.download, read from its source: importing it takes seconds."""
    spec = importlib.util.find_spec("img2dataset")
    assert spec is not None and spec.submodule_search_locations
    source = (Path(spec.submodule_search_locations[0]) / "main.py").read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name == "download":
            return {argument.arg for argument in node.args.args}
    raise AssertionError("img2dataset.main has no download")


def test_every_option_of_img2dataset_passes_or_has_its_owner():
    assert IMG2DATASET_OPTIONS.keys() | IMG2DATASET_OWNED.keys() == img2dataset_parameters()
    assert not IMG2DATASET_OPTIONS.keys() & IMG2DATASET_OWNED.keys()


def test_img2dataset_is_given_what_it_knows():
    arguments = img2dataset_arguments(CrawlConfig(), Path("urls"), Path("out"), 5000)
    assert arguments.keys() <= img2dataset_parameters()
    assert (arguments["processes_count"], arguments["thread_count"]) == (2, 64)


def test_the_interpolations_are_img2datasets():
    spec = importlib.util.find_spec("img2dataset")
    assert spec is not None and spec.submodule_search_locations
    source = (Path(spec.submodule_search_locations[0]) / "resizer.py").read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_INTER_STR_TO_CV2":
            assert isinstance(node.value, ast.Dict)
            assert [ast.literal_eval(key) for key in node.value.keys if key] == [*INTERPOLATIONS]
            return
    raise AssertionError("img2dataset.resizer has no _INTER_STR_TO_CV2")


@pytest.mark.parametrize("name", sorted(IMG2DATASET_OWNED))
def test_what_the_stage_owns_is_refused_with_the_owner(name):
    (told,) = problems(CrawlConfig(img2dataset={name: 1}))
    assert told == f"crawl.img2dataset.{name}: {IMG2DATASET_OWNED[name]}"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"img2dataset": {"sharpen": True}}, "crawl.img2dataset.sharpen: img2dataset has no such"),
        ({"img2dataset": {"extract_exif": "yes"}}, "extract_exif = yes: give a bool"),
        ({"retry_rounds": -1}, "crawl.retry_rounds = -1"),
        ({"requests_per_host_per_s": -0.5}, "crawl.requests_per_host_per_s = -0.5"),
        ({"connect_timeout_s": 0.0}, "crawl.connect_timeout_s = 0.0"),
        ({"min_image_side": 30, "max_image_side": 20}, "crawl.max_image_side = 20: must be >= 30"),
        ({"max_image_aspect": 0.5}, "crawl.max_image_aspect = 0.5"),
        ({"encode_quality": 101}, "crawl.encode_quality = 101"),
        ({"allow_private": ["localhost"]}, "'localhost' is not host:port"),
        ({"allow_private": [":80"]}, "':80' is not host:port"),
        ({"allow_private": ["localhost:65536"]}, "'localhost:65536' is not host:port"),
        ({"allow_private": ["localhost:\u00b2"]}, "is not host:port"),
        ({"timeout_s": float("nan")}, "crawl.timeout_s = nan: must be >= 0.1, and finite"),
        (
            {"stall_timeout_s": float("inf")},
            "crawl.stall_timeout_s = inf: must be >= 1, and finite",
        ),
        (
            {"img2dataset": {"upscale_interpolation": "bogus"}},
            "upscale_interpolation = bogus: give one of nearest, linear, bilinear, cubic",
        ),
    ],
)
def test_problems_name_the_field_and_the_value(settings, told):
    (problem,) = problems(CrawlConfig(**settings))
    assert told in problem


def test_blurred_faces_and_bytes_as_they_came_exclude_each_other():
    config = CrawlConfig(img2dataset={"skip_reencode": True})
    assert not problems(config)
    config.face_boxes.paths = ["boxes.parquet"]
    assert "with their faces" in problems(config)[0]


def test_the_command_line_reaches_them(tmp_path):
    job = load_job(
        [
            f"out_dir={tmp_path}",
            f"queries.path={__file__}",
            "source=commons",
            "sources.contact=a@example.org",
            "+crawl.img2dataset.skip_reencode=true",
            "crawl.retry_rounds=2",
        ]
    )
    assert job.crawl.img2dataset == {"skip_reencode": True} and job.crawl.retry_rounds == 2
