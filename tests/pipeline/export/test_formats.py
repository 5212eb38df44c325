"""Exported folders, read by others: transformers, an independent open_clip reader, and bit by
bit."""

from __future__ import annotations

import json
import logging
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn import functional as F

from pipeline.config import ModelConfig, Stem, TextConfig, VisionConfig
from pipeline.export import ExportError, export_weights, huggingface, open_clip
from pipeline.export.folder import Probe
from pipeline.model import build_clip
from tests.pipeline.model.model_configs import (
    model_config,
    random_images,
    random_tokens,
    small_clip,
    small_config,
)

LN_100 = 4.6051701860


def b_32_like(*, quick_gelu: bool) -> ModelConfig:
    """ViT-B/32's shape (twelve heads, 49 patches, 77 tokens), narrower and two layers deep."""
    return ModelConfig(
        name="b_32_like",
        embed_dim=40,
        quick_gelu=quick_gelu,
        vision=VisionConfig(patch_size=32, width=96, num_layers=2, num_heads=12),
        text=TextConfig(width=64, num_layers=2, num_heads=8),
    )


def export(config, out, format, **changed):
    weights = small_clip(config).state_dict() | changed
    return export_weights(weights, config, out, format, max_logit_scale=LN_100)


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_transformers_gives_the_same_features(tmp_path, quick_gelu):
    transformers = pytest.importorskip("transformers")
    config = b_32_like(quick_gelu=quick_gelu)
    report = export(config, tmp_path / "out", "huggingface")
    assert f"transformers {transformers.__version__}" in report
    ours = small_clip(config)
    images, tokens = random_images(3, 224, seed=4), random_tokens([77, 5, 30], columns=77, seed=4)
    processor = transformers.CLIPImageProcessor.from_pretrained(tmp_path / "out")
    pixels = processor(list(images), return_tensors="pt")["pixel_values"]
    padded = tokens.masked_fill(tokens == 0, 49407)  # as its tokenizer pads
    for attention in ("eager", "sdpa"):
        theirs = transformers.CLIPModel.from_pretrained(
            tmp_path / "out", attn_implementation=attention
        )
        with torch.no_grad():
            found = theirs(input_ids=padded, pixel_values=pixels)
            expected = ours(images, tokens)
        for mine, other in (
            (expected.image_features, found.image_embeds),
            (expected.text_features, found.text_embeds),
        ):
            torch.testing.assert_close(F.normalize(mine, dim=1), other, rtol=0, atol=2e-6)
        logits = expected.logit_scale.exp() * found.text_embeds @ found.image_embeds.T
        torch.testing.assert_close(found.logits_per_text, logits, rtol=1e-5, atol=1e-5)
    assert theirs.config.text_config.hidden_act == ("quick_gelu" if quick_gelu else "gelu")


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
@pytest.mark.parametrize("format", ["huggingface", "open_clip", "native"])
def test_exported_files_have_the_modes_of_the_umask(tmp_path, format, umask):
    """Others may read, or change, an export where the umask lets them."""
    if format == "huggingface":
        pytest.importorskip("transformers")
    before = os.umask(umask)
    try:
        export(small_config(), tmp_path / "out", format)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert len(modes) > 2 and set(modes.values()) == {0o666 & ~umask}, modes
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~umask


def test_what_a_killed_export_left_goes_with_the_next_one(tmp_path):
    left = tmp_path / ".out.0123abcd.tmp"
    left.mkdir()
    (left / "model.safetensors").touch()
    export(small_config(), tmp_path / "out", "native")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_hugging_face_folder_is_complete(tmp_path):
    transformers = pytest.importorskip("transformers")
    export(small_config(), tmp_path / "out", "huggingface")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "README.md",
        "config.json",
        "merges.txt",
        "model.safetensors",
        "preprocessor_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    }
    with safe_open(str(tmp_path / "out" / "model.safetensors"), "pt") as file:
        assert file.metadata() == {"format": "pt"}
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.model_max_length == 20
    assert len(tokenizer("word " * 50, truncation=True)["input_ids"]) == 20
    # Every field of the two sub-configurations is written, not left to a default.
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    for part, kind in (
        ("text_config", transformers.CLIPTextConfig),
        ("vision_config", transformers.CLIPVisionConfig),
    ):
        own = kind().to_diff_dict().keys() | {"hidden_act", "layer_norm_eps", "projection_dim"}
        assert own - written[part].keys() <= {"transformers_version", "architectures"}


def test_a_wrong_activation_is_noticed(tmp_path, monkeypatch):
    """The mismatch that reached published papers: weights trained with GELU, read with
    QuickGELU."""
    pytest.importorskip("transformers")
    right = huggingface.clip_config

    def wrong(config):
        written = right(config)
        written["text_config"]["hidden_act"] = "quick_gelu"
        return written

    monkeypatch.setattr(huggingface, "clip_config", wrong)
    with pytest.raises(ExportError, match="text features differ by"):
        export(small_config(), tmp_path / "out", "huggingface")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("quick_gelu", [False, True])
def test_open_clip_folder(tmp_path, quick_gelu):
    report = export(b_32_like(quick_gelu=quick_gelu), tmp_path / "out", "open_clip")
    assert "open_clip itself was not run" in report
    state = load_file(str(tmp_path / "out" / "open_clip_model.safetensors"))
    assert state["visual.proj"].shape == (96, 40) and state["text_projection"].shape == (64, 40)
    assert state["visual.conv1.weight"].shape == (96, 3, 32, 32)
    assert state["logit_scale"].shape == ()
    written = json.loads((tmp_path / "out" / "open_clip_config.json").read_text())
    assert written["model_cfg"]["quick_gelu"] is quick_gelu
    assert written["model_cfg"]["vision_cfg"]["head_width"] == 8


def test_open_clip_names_of_vit_b_32():
    """The 302 tensors of OpenAI's ViT-B/32, as listed by hand for one block of each tower."""
    config = model_config("vit_b_32")
    with torch.device("meta"):
        model = build_clip(config, init_logit_scale=2.0, max_logit_scale=4.0)
    converted = open_clip.convert(model.state_dict(), config)
    shapes = {name: tuple(tensor.shape) for name, tensor in converted.items()}
    assert len(shapes) == 302
    for name, shape in {
        "visual.class_embedding": (768,),
        "visual.positional_embedding": (50, 768),
        "visual.proj": (768, 512),
        "visual.conv1.weight": (768, 3, 32, 32),
        "visual.ln_pre.weight": (768,),
        "visual.transformer.resblocks.11.attn.in_proj_weight": (2304, 768),
        "visual.transformer.resblocks.11.attn.in_proj_bias": (2304,),
        "visual.transformer.resblocks.11.attn.out_proj.weight": (768, 768),
        "visual.transformer.resblocks.11.ln_1.bias": (768,),
        "visual.transformer.resblocks.11.mlp.c_fc.weight": (3072, 768),
        "visual.transformer.resblocks.11.mlp.c_proj.bias": (768,),
        "visual.transformer.resblocks.11.ln_2.weight": (768,),
        "visual.ln_post.bias": (768,),
        "positional_embedding": (77, 512),
        "text_projection": (512, 512),
        "logit_scale": (),
        "token_embedding.weight": (49408, 512),
        "transformer.resblocks.0.attn.in_proj_weight": (1536, 512),
        "transformer.resblocks.0.mlp.c_fc.bias": (2048,),
        "ln_final.weight": (512,),
    }.items():
        assert shapes[name] == shape, name


@pytest.mark.parametrize("stem", list(Stem))
def test_native_folder_is_bitwise(tmp_path, stem):
    config = small_config(stem=stem)
    export(config, tmp_path / "out", "native")
    found = load_file(str(tmp_path / "out" / "model.safetensors"))
    expected = small_clip(config).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    written = json.loads((tmp_path / "out" / "model_config.json").read_text())
    assert written["vision"]["stem"] == stem.value and written["image_size"] == 32


@pytest.mark.parametrize("format", ["huggingface", "open_clip"])
def test_the_conv_stem_is_refused_by_name(tmp_path, format):
    with pytest.raises(ExportError, match="model.vision.stem=conv.*format=native"):
        export(small_config(stem=Stem.conv), tmp_path / "out", format)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["huggingface", "open_clip", "native"])
def test_the_clamped_scale_is_exported(tmp_path, format):
    export(small_config(), tmp_path / "out", format, logit_scale=torch.tensor([4.7]))
    (file,) = (tmp_path / "out").glob("*.safetensors")
    assert load_file(str(file))["logit_scale"].item() == pytest.approx(LN_100)


def test_a_logit_bias_goes_where_it_is_known(tmp_path):
    config = b_32_like(quick_gelu=False)
    weights = small_clip(config).state_dict() | {"logit_bias": torch.tensor([-7.5])}
    for format in ("native", "open_clip"):
        export_weights(weights, config, tmp_path / format, format, max_logit_scale=4.0)
    state = load_file(str(tmp_path / "open_clip" / "open_clip_model.safetensors"))
    content = json.loads((tmp_path / "open_clip" / "open_clip_config.json").read_text())
    assert state["logit_bias"].item() == content["model_cfg"]["init_logit_bias"] == -7.5
    with pytest.raises(ExportError, match="loss.kind=sigmoid: .*format=open_clip"):
        export_weights(weights, config, tmp_path / "hf", "huggingface", max_logit_scale=4.0)
    assert not (tmp_path / "hf").exists()


def test_an_existing_folder_and_foreign_weights_are_refused(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(ExportError, match="out exists: name a new folder"):
        export(small_config(), tmp_path / "out", "native")
    weights = small_clip(small_config()).state_dict()
    del weights["text.ln_final.bias"]
    with pytest.raises(ExportError, match="model small(?s:.*)text.ln_final.bias"):
        export_weights(weights, small_config(), tmp_path / "new", "native", max_logit_scale=LN_100)
    assert not (tmp_path / "new").exists()


def odd_config(context_length=20, **changed):
    config = small_config()
    config.text.context_length = context_length
    for name, value in changed.items():
        setattr(config, name, value)
    return config


@pytest.mark.parametrize("context_length", [3, 4, 5])
@pytest.mark.parametrize("format", ["huggingface", "open_clip", "native"])
def test_short_contexts_are_written(tmp_path, format, context_length):
    if format == "huggingface":
        pytest.importorskip("transformers")
    config = odd_config(context_length)
    tokens = Probe.of(small_clip(config), config).tokens
    lengths = ((tokens == 49407).int().argmax(1) + 1).tolist()
    assert lengths == list(range(3, context_length + 1))
    export(config, tmp_path / "out", format)
    assert (tmp_path / "out" / "README.md").is_file()


@pytest.mark.parametrize("format", ["huggingface", "open_clip", "native"])
@pytest.mark.parametrize(
    "changed, told",
    [
        ({"image_mean": [0.4]}, r"image_mean=\[0.4\]: .*write \[0.4, 0.4, 0.4\], which .* trained"),
        ({"image_std": [0.2, 0.2]}, r"image_std=\[0.2, 0.2\]: readers want three numbers"),
        ({"image_mean": [0.4, float("nan"), 0.4]}, "image_mean=.*three numbers"),
        ({"image_std": [0.2, 0.0, 0.2]}, "image_std=.*must be above 0"),
        ({"image_mean": [], "image_std": [0.5]}, r"(?s)image_mean=\[\].*image_std=\[0.5\]"),
    ],
)
def test_what_only_this_project_reads_is_refused_with_all_of_it(tmp_path, format, changed, told):
    """Before a file is written, and before weights are looked at: of an old run."""
    with pytest.raises(ExportError, match=told):
        export_weights({}, odd_config(**changed), tmp_path / "out", format, max_logit_scale=4.6)
    assert not list(tmp_path.iterdir())


def test_the_probe_has_odd_and_even_lengths_up_to_the_longest():
    config = small_config()
    tokens = Probe.of(small_clip(config), config).tokens
    lengths = ((tokens == 49407).int().argmax(1) + 1).tolist()
    assert lengths == [3, 4, 9, 19, 20]


@pytest.fixture(autouse=True)
def quiet_transformers():
    logging.getLogger("transformers").setLevel(logging.ERROR)
