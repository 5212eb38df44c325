"""What an export claims is what it measured: texts, sizes and files, in sentence and README.md."""

from __future__ import annotations

import io
import logging
import re

import ftfy
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.data import Tokenizer
from pipeline.data.samples.decode import decode_rgb
from pipeline.data.samples.tokenizer import clean_caption
from pipeline.data.samples.transforms import eval_pixels
from pipeline.export import ExportError, export_weights
from pipeline.export.folder import Probe
from pipeline.export.odd_pictures import compare_sizes
from pipeline.export.odd_texts import ODD_TEXTS, compare_texts, up_to_end
from tests.pipeline.data.images import synthetic_photo
from tests.pipeline.data.picture_kinds import KINDS
from tests.pipeline.model.model_configs import small_clip, small_config

transformers = pytest.importorskip("transformers")
CONFIG = small_config()
PROBE = Probe.of(small_clip(), CONFIG)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(folder, the sentence of the export)."""
    folder = tmp_path_factory.mktemp("exported") / "hf"
    weights = dict(small_clip().state_dict())
    report = export_weights(weights, CONFIG, folder, "huggingface", max_logit_scale=4.6)
    return folder, report


@pytest.fixture(scope="module")
def tokenizer(exported):
    return transformers.AutoTokenizer.from_pretrained(exported[0])


@pytest.fixture(scope="module")
def processor(exported):
    return transformers.AutoProcessor.from_pretrained(exported[0])


@pytest.fixture(scope="module")
def open_picture(exported):
    """The function that README.md prints, run as a user would."""
    blocks = code_of(exported[0])
    (block,) = [block for block in blocks if "def open_picture" in block]
    names: dict = {}
    exec(block, names)
    return names["open_picture"]


def code_of(folder) -> list[str]:
    card = (folder / "README.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.+?)```", card, re.DOTALL)


OURS = Tokenizer(CONFIG.text.context_length)


def ours(texts: list[str]) -> list[list[int]]:
    return [up_to_end(row) for row in OURS(texts).tolist()]


def test_the_sentence_and_the_card_have_the_same_figures(exported):
    folder, report = exported
    card = (folder / "README.md").read_text(encoding="utf-8")
    claimed = report.removesuffix("; README.md there has the tables")
    assert f"When this folder was written: {claimed}." in card
    found = re.search(r"AutoTokenizer reads (\d+) of (\d+) odd texts.+?others: ([^;]+);", report)
    assert found is not None and found[3] == (
        "rare HTML entities, mojibake, open_clip's special tokens"
    )
    texts = [text for kind in ODD_TEXTS.values() for text in kind]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    same = sum(
        theirs == mine
        for theirs, mine in zip(tokenizer(texts, truncation=True)["input_ids"], ours(texts))
    )
    assert (int(found[1]), int(found[2])) == (same, len(texts))
    assert "| typographic quotes | 3 of 3 | 0 of 3 |" in card
    found = re.search(
        r"(\d+) of (\d+) odd sizes have the same pixels, the crop of the others", report
    )
    assert found is not None and 0 < int(found[1]) < int(found[2])


PIECES = st.sampled_from(
    [
        *(f"“{word}”" for word in ("old", "Ñandú", "'s")),
        *("children’s", "‚low‘", "„tief“", "ʼn", "don't", "WE'LL", "'"),
        *("&amp;", "&AMP;", "&amp;amp;", "&#38;", "&amp;quot;", "&#39;", "&#x27;", "&apos;"),
        *(
            "&quot;x&quot;",
            "&nbsp;",
            "&eacute;",
            "&Eacute;",
            "&copy;",
            "&copy",
            "&hellip;",
            "&#8217;",
        ),
        *("&rsquo;", "&#x2019;", "&ndash;", "&deg;C", "&#8217;", "&", "&;", "&#;", "&x;", "amp;"),
        *("ﬁ", "oﬃce", "ﬅ", "ǅ", "ĳ", "Ａ", "ｚ９", "％", "　", "ﾃｽﾄ", "ￃ"),
        *(
            "\x00",
            "\x07b",
            "\x1b[1;31m",
            "\x1b[",
            "\x7f",
            "\ufeff",
            "\u2028",
            "\x0b",
            "\x0c",
            "\x1c",
        ),
        *(
            "ΟΔΟΣ",
            "ΑΣ",
            "Σ",
            "ΣΑ",
            "Σ.",
            "ΑΣ'Α",
            "Α'Σ",
            "ς",
            "e\u0301",
            "A\u030a",
            "İ",
            "ẞ",
            "ſ",
            "K",
            "½",
            "①",
            "²",
        ),
        *(
            "\u00a0",
            "\u200b",
            "\u200d",
            "\u2003",
            "\t\r\n",
            "  ",
            " ",
            "日本",
            "ไทย",
            "한",
            "🇫🇷",
            "👩‍🚀",
        ),
        *("<|endoftext|>", "<|startoftext|>", "<b>", "word", "WORD", "3.5", "--"),
    ]
)


def joined(pieces: list[str]) -> str:
    """Without spaces, but around entities: ftfy goes round until "&amp;" + NUL + "lt;" is "<"."""
    return (" " if any("&" in piece for piece in pieces) else "").join(pieces)


@given(st.lists(PIECES, max_size=9).map(joined))
@settings(max_examples=200, deadline=None)
def test_odd_texts_have_the_ids_of_the_training(tokenizer, text):
    """Whatever is odd but mojibake, and but entities beside a "<", which ftfy then leaves."""
    assume(not ("<" in text and "&" in text))
    assume(ftfy.fix_text(text) == ftfy.fix_text(text, fix_encoding=False))
    assert tokenizer(text, truncation=True)["input_ids"] == ours([text])[0]


@given(st.text(st.characters(exclude_categories=("Cs", "Cn", "Co")), max_size=30))
@settings(max_examples=200, deadline=None)
def test_any_text_has_the_ids_of_the_training(tokenizer, text):
    # open_clip's special tokens, and any character as an entity: the card counts them
    assume("_of_text>" not in text.lower() and "&" not in text)
    assume(ftfy.fix_text(text) == ftfy.fix_text(text, fix_encoding=False))
    assert tokenizer(text, truncation=True)["input_ids"] == ours([text])[0]


def test_processor_and_pipeline_use_that_tokenizer(exported, processor):
    texts = ["children’s ﬁre &amp; “smoke”", "ＡＢＣ"]
    found = processor(text=texts, padding=True, truncation=True, return_tensors="pt")
    assert set(found) == {"input_ids", "attention_mask"}
    assert [up_to_end(row) for row in found["input_ids"].tolist()] == ours(texts)
    guess = transformers.pipeline("zero-shot-image-classification", model=str(exported[0]))
    picture = Image.fromarray(synthetic_photo(3, 60, 40))
    (first, second) = guess(picture, candidate_labels=["“cat”", "dog"])
    assert first["score"] + second["score"] == pytest.approx(1, abs=1e-5)


def test_its_tokenizer_decodes(tokenizer):
    ids = tokenizer("two cats, 3 dogs")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "two cats , 3 dogs"


def shown(processor, picture: Image.Image) -> np.ndarray:
    """The uint8 levels (3, S, S) that the exported processor gives its model."""
    mean, std = (np.array(v)[:, None, None] for v in (CONFIG.image_mean, CONFIG.image_std))
    pixels = np.asarray(processor.image_processor(picture)["pixel_values"])[0]
    return np.rint((pixels * std + mean) * 255).astype(np.uint8)


@given(st.integers(1, 150), st.integers(1, 150))
@settings(max_examples=60, deadline=None)
def test_the_crop_is_off_exactly_where_the_card_says(processor, width, height):
    picture = Image.fromarray(np.resize(synthetic_photo(11, 150, 150), (height, width, 3)))
    size = CONFIG.image_size
    longer = size * max(width, height) // min(width, height)
    same = np.array_equal(shown(processor, picture), eval_pixels(np.asarray(picture), size))
    assert same == ((longer - size) % 4 != 3)


@pytest.mark.parametrize("name", KINDS)
def test_pictures_opened_as_the_card_says_have_the_pixels_of_the_training(
    name, open_picture, processor
):
    data, _ = KINDS[name](synthetic_photo(12, CONFIG.image_size, CONFIG.image_size))
    found = shown(processor, open_picture(io.BytesIO(data)))
    expected = decode_rgb(data).transpose(2, 0, 1)
    apart = np.abs(found.astype(int) - expected.astype(int)).max()
    # the card names CMYK; TIFFs with alpha or of 16-bit colour are no pictures of the web
    assert apart <= (1 if "cmyk" in name or "ycck" in name or name == "tiff colour 16" else 0) or (
        name == "tiff alpha"
    )


def test_the_card_says_so_of_the_kinds_it_names(exported):
    card = (exported[0] / "README.md").read_text(encoding="utf-8")
    table = card.split("| file, opened so |")[1].split("\n\n")[0]
    levels = dict(re.findall(r"^\| (.+?) \| (.+?) \|$", table, re.MULTILINE))
    assert levels.pop("CMYK JPEG") == "at most 1"
    assert len(levels) == 12 and set(levels.values()) == {"none"}


def test_the_lines_for_loading_run(exported, tmp_path, monkeypatch, open_picture):
    folder, _ = exported
    Image.fromarray(synthetic_photo(2, 70, 50)).save(tmp_path / "cat.jpg")
    monkeypatch.chdir(tmp_path)
    names = {"FOLDER": str(folder), "open_picture": open_picture}
    exec(code_of(folder)[0], names)
    assert names["similarity"].shape == (1, 1)


def test_the_native_lines_for_loading_run(tmp_path, monkeypatch):
    Image.fromarray(synthetic_photo(2, 70, 50)).save(tmp_path / "cat.jpg")
    monkeypatch.chdir(tmp_path)
    weights = dict(small_clip().state_dict())
    export_weights(weights, CONFIG, tmp_path / "out", "native", max_logit_scale=4.6)
    names = {"FOLDER": "out"}
    exec(code_of(tmp_path / "out")[0], names)
    assert names["cosines"].shape == (1,)


def test_a_reader_that_makes_other_pixels_is_refused():
    with pytest.raises(ExportError, match="makes other pixels of a picture of 32 x 32"):
        compare_sizes("a reader", lambda picture: torch.zeros(3, 32, 32), PROBE)


def test_a_reader_is_measured_by_the_kind():
    def read(texts):
        return ours([text.replace("“", "X") for text in texts])

    with torch.no_grad():
        found = compare_texts("a reader", read, PROBE)
    assert found.other_kinds == ["typographic quotes"]
    assert found.alike["typographic quotes"] == 1 and found.lowest_cosine < 1
    assert "others: typographic quotes; cosine" in found.sentence()
    with torch.no_grad():
        same = compare_texts("a reader", ours, PROBE)
    assert same.sentence().endswith("odd texts with the same token ids")
    assert same.lowest_cosine == pytest.approx(1, abs=1e-5)


def test_the_odd_texts_are_odd():
    """Most are changed by the cleaning, which is what the readers are measured by."""
    for kind in (
        "typographic quotes",
        "HTML entities",
        "mojibake",
        "ligatures",
        "full-width letters",
    ):
        assert all(clean_caption(text) != text for text in ODD_TEXTS[kind]), kind


@pytest.fixture(autouse=True, scope="module")
def quiet_transformers():
    logging.getLogger("transformers").setLevel(logging.ERROR)
