import pytest

from data_tools.config import ConfigError
from data_tools.demo.config import RECIPES, TRAINING_STYLES, DemoConfig, parse_demo
from data_tools.demo.corpus import build_corpus
from data_tools.demo.descriptions import MARKUP, MOST_TAGS, WORDINGS, describe
from data_tools.tables.schema import DataError
from data_tools.text.html_text import html_to_text
from tests.data_tools.demo.packages_of_two_styles import write_packages
from tests.data_tools.local_web import pixels


@pytest.fixture
def config(tmp_path):
    write_packages(tmp_path / "npm")
    return DemoConfig(styles=["noto", "fxemoji"], cache=str(tmp_path / "npm"))


def color(png):
    image = pixels(png)
    assert image.shape == (64, 64, 3)
    return tuple(image[32, 32].tolist())


def test_icons_are_matched_to_labels_and_rendered(config):
    corpus = build_corpus(config)
    drawn = {(picture.site, picture.name.split(" ", 2)[2]): picture for picture in corpus.pictures}
    assert {key: color(picture.content) for key, picture in drawn.items()} == {
        ("noto", "1f3d2 ice hockey.png"): (255, 0, 0),
        ("noto", "1f44b waving hand.png"): (0, 255, 0),
        ("noto", "1f44b-1f3ff waving hand dark skin tone.png"): (0, 51, 0),
        ("noto", "203c double exclamation mark.png"): (0, 0, 255),
        ("fxemoji", "1f3d2 ice hockey.png"): (170, 0, 0),
        ("fxemoji", "1f1e8-1f1ee flag Côte d’Ivoire.png"): (255, 170, 0),
    }
    picture = drawn["noto", "1f3d2 ice hockey.png"]
    assert picture.license == "CC BY 4.0"
    assert html_to_text(picture.artist) == "A & B"
    assert "<b>ice hockey</b>" in picture.description


def test_queries_are_the_base_labels(config):
    assert build_corpus(config).labels == [
        "ice hockey",
        "waving hand",
        "double exclamation mark",
        "flag: Côte d’Ivoire",
    ]


def test_the_held_out_style_is_never_served_and_has_no_skin_tones(config):
    corpus = build_corpus(config)
    assert {picture.site for picture in corpus.pictures} == {"noto", "fxemoji"}
    labels = [drawing.emoji.label for drawing in corpus.held_out]
    assert labels == ["ice hockey", "waving hand", "double exclamation mark"]
    assert {drawing.style for drawing in corpus.held_out} == {"twemoji"}


def test_narrow_icons_are_not_stretched(config):
    (picture,) = (
        p for p in build_corpus(config).pictures if p.site == "fxemoji" and "hockey" in p.name
    )
    # the icon is 16 wide and 32 high: a quarter of the square is left white beside it
    assert pixels(picture.content)[32, 4].tolist() == [255, 255, 255]


def test_fewer_labels_are_spread_over_the_list(config):
    config.num_labels = 2
    corpus = build_corpus(config)
    assert corpus.labels == ["ice hockey", "double exclamation mark"]
    assert len(corpus.held_out) == 2


def test_two_builds_are_equal(config):
    assert build_corpus(config) == build_corpus(config)


def test_a_damaged_package_is_named_with_the_fix(tmp_path):
    write_packages(tmp_path / "npm", broken_style=True)
    config = DemoConfig(styles=["noto", "fxemoji"], cache=str(tmp_path / "npm"))
    with pytest.raises(DataError, match="fxemoji-1.2.2.tgz is not readable.*delete it"):
        build_corpus(config)


def test_without_npm_the_fix_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="npm is not on the PATH.*install Node.js"):
        build_corpus(DemoConfig(cache=str(tmp_path / "npm")))


def test_a_failing_npm_is_quoted_and_leaves_nothing(tmp_path, monkeypatch):
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho half > $4/half.tgz\necho E404 no such package >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(DataError, match="E404 no such package(.|\n)*npm config get registry"):
        build_corpus(DemoConfig(cache=str(tmp_path / "cache")))
    assert list((tmp_path / "cache").iterdir()) == []


def test_every_style_has_its_markup():
    assert set(MARKUP) == set(TRAINING_STYLES)


def test_captions_hold_the_label_and_some_a_few_tags():
    tags = ("a", "b&c", "d", "e", "f", "g")
    kinds: dict[str, list[set[str]]] = {wording: [] for wording in WORDINGS}
    for number in range(300):
        text = html_to_text(describe("R&B <x>", tags, "noto", f"{number}.png"))
        fitting = [
            (wording, text[len(start) : len(text) - len(end)])
            for wording in WORDINGS
            for start, _, end in [wording.replace("{label}", "R&B <x>").partition("{tags}")]
            if text.startswith(start) and text.endswith(end)
        ]
        wording, rest = max(fitting, key=lambda fit: len(fit[0]))
        kinds[wording].append(set(rest.split(", ")) if "{tags}" in wording else set())
    assert all(len(told) > 20 for told in kinds.values())
    chosen = [told for wording in WORDINGS[3:] for told in kinds[wording]]
    assert all(told < set(tags) and len(told) == MOST_TAGS for told in chosen)
    assert set().union(*chosen) == set(tags)  # not always the first ones


def test_a_wording_without_tags_is_the_bare_label():
    for number in range(50):
        text = html_to_text(describe("up", (), "noto", f"{number}.png"))
        assert text in {"up", "an emoji of up", "up emoji"}


def test_the_wording_tells_nothing_of_the_style():
    texts = [
        {html_to_text(describe("cat", ("pet",), style, f"{n}.png")) for n in range(200)}
        for style in TRAINING_STYLES
    ]
    assert all(text == texts[0] for text in texts)


def test_demo_overrides_are_taken_apart():
    config, rest = parse_demo(["out_dir=x", "demo.num_labels=7", "crawl.threads=2"])
    assert config.num_labels == 7 and config.styles == list(TRAINING_STYLES)
    assert rest == ["recipe=demo", "out_dir=x", "crawl.threads=2"]
    config, rest = parse_demo(["recipe=demo_smoke", "demo.styles=[noto]"])
    assert config.num_labels == RECIPES["demo_smoke"].num_labels
    assert config.styles == ["noto"]
    assert RECIPES["demo_smoke"].styles != ["noto"]
    assert rest == ["recipe=demo_smoke"]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("demo.num_labls=7", "num_labls.*demo.num_labels"),
        ("demo.num_labels=few", "few"),
        ("demo.num_labels=-1", "num_labels = -1"),
        ("demo.styles=[twemoji]", "'twemoji' is no training style"),
        ("demo.styles=[]", "demo.styles is empty"),
        ("demo.first_port=80", "first_port = 80"),
        ("recipe=imagenet", "the demo has demo, demo_smoke"),
    ],
)
def test_bad_demo_overrides_are_refused(override, told):
    with pytest.raises(ConfigError, match=f"(?s){told}"):
        parse_demo([override])
