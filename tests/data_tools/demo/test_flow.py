import json
import os
import shlex
import socket
import subprocess
import sys

import pytest

from data_tools import build
from data_tools.config import load_job
from data_tools.config.job import CONF_DIR
from data_tools.dataset.manifest import load_manifest
from data_tools.demo.config import RECIPES, DemoConfig
from data_tools.demo.corpus import Corpus, build_corpus
from data_tools.demo.flow import main, next_commands, served
from data_tools.demo.server import Picture
from data_tools.tables.schema import LEDGER, DataError, DatasetPaths, read_table
from tests.data_tools.demo.packages_of_two_styles import write_packages
from tests.data_tools.local_web import png


@pytest.fixture
def free_port():
    """The first of two free neighbouring ports, below those that the kernel gives to others."""
    for port in range(20_000 + os.getpid() % 10_000, 32_000, 2):
        try:
            with socket.create_server(("127.0.0.1", port)):
                with socket.create_server(("127.0.0.1", port + 1)):
                    return port
        except OSError:
            continue
    pytest.fail("no free port between 20,000 and 32,000")


CORPUS = Corpus(["cat"], [Picture("cat.png", png(), site="noto")], [])


def ports(commons):
    return [int(commons.endpoint.split(":")[2].split("/")[0]), int(commons.hosts[0].split(":")[1])]


def test_addresses_are_the_same_in_every_run(tmp_path, free_port):
    config = DemoConfig(styles=["noto"], first_port=free_port)
    for folder in ("a", "a", "b"):
        (tmp_path / folder).mkdir(exist_ok=True)
        with served(CORPUS, config, tmp_path / folder) as commons:
            assert ports(commons) == [free_port, free_port + 1]


def test_taken_ports_are_replaced_and_the_replacements_kept(tmp_path, free_port, capsys):
    config = DemoConfig(styles=["noto"], first_port=free_port)
    with socket.create_server(("127.0.0.1", free_port)):
        with served(CORPUS, config, tmp_path) as commons:
            first = ports(commons)
        assert free_port not in first
        assert "using free ones" in capsys.readouterr().err
    with served(CORPUS, config, tmp_path) as commons:
        assert ports(commons) == first
    with socket.create_server(("127.0.0.1", first[1])):
        with pytest.raises(DataError, match="ports.json: a port of the earlier run is taken"):
            with served(CORPUS, config, tmp_path):
                pass


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "out_dir is not given"),
        (["out_dir="], "out_dir is not given"),
        (["out_dir={file}"], "name a folder"),
        (["out_dir={folder}", "demo.styles=[clipart]"], "'clipart' is no training style"),
        (["out_dir={folder}", "recipe=huge"], "the demo has demo, demo_smoke"),
    ],
)
def test_bad_arguments_exit_with_2(tmp_path, capsys, arguments, told):
    (tmp_path / "file").touch()
    places = {"file": tmp_path / "file", "folder": tmp_path / "folder"}
    assert main([argument.format(**places) for argument in arguments]) == 2
    assert told in capsys.readouterr().err


def test_no_npm_exits_with_1(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert main([f"out_dir={tmp_path}/out", f"demo.cache={tmp_path}/cache"]) == 1
    assert "install Node.js" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_the_demo_ends_with_what_to_do_next(recipe, tmp_path):
    train, own = next_commands(recipe, tmp_path)
    words = shlex.split(train.partition(": ")[2])
    assert words[:4] == ["python", "-m", "pipeline.train", f"experiment={recipe}"]
    assert (CONF_DIR / "experiment" / f"{recipe}.yaml").exists()
    assert words[4:] == [
        f"data.manifest={tmp_path}/manifest.json",
        f"eval.datasets=[{tmp_path}/eval/twemoji,{tmp_path}/eval/twemoji_retrieval]",
    ]
    overrides = shlex.split(own.partition("data_tools.build ")[2])
    (tmp_path / "my_queries.txt").write_text("cat\n")
    load_job([text.replace("=my_q", f"={tmp_path}/my_q") for text in overrides])


@pytest.mark.slow
def test_the_whole_flow_on_a_handful_of_pictures(tmp_path, free_port):
    write_packages(tmp_path / "npm")
    command = [
        *(sys.executable, "-m", "data_tools.demo", f"out_dir={tmp_path}/out", "recipe=demo_smoke"),
        *("demo.styles=[noto,fxemoji]", f"demo.cache={tmp_path}/npm"),
        f"demo.first_port={free_port}",
        "curate.min_grey_std=null",  # plain squares
        "curate.drop_exact_duplicates=false",  # of few colours
    ]
    first = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert first.returncode == 0, first.stderr
    corpus = build_corpus(DemoConfig(styles=["noto", "fxemoji"], cache=f"{tmp_path}/npm"))
    paths = DatasetPaths(tmp_path / "out")
    assert (paths.root / "queries.txt").read_text().splitlines() == corpus.labels
    ledger = read_table(paths.ledger, LEDGER)
    assert ledger.num_rows == len(corpus.pictures) == 6
    recorded = json.loads((paths.root / "ports.json").read_text())
    sites = {url.split("/")[2] for url in ledger["url"].to_pylist()}
    assert sites == {f"127.0.0.1:{recorded[style]}" for style in ("noto", "fxemoji")}
    num_served = sum(picture.served != "missing" for picture in corpus.pictures)
    assert load_manifest(paths.manifest).num_samples == num_served
    assert (paths.root / "eval" / "twemoji" / "test" / "0.tar").exists()
    assert first.stdout.splitlines()[-2:] == next_commands("demo_smoke", paths.root)

    again = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("(unchanged)") == len(build.STAGES)
