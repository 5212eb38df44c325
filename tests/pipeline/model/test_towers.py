"""The two towers: exactness of what they leave out, precision, and what they refuse."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from pipeline.config import Stem, TextConfig, VisionConfig
from pipeline.model import build_clip, text
from pipeline.model.layers import QuickGELU, Transformer
from tests.pipeline.model.model_configs import (
    random_images,
    random_tokens,
    small_clip,
    small_config,
)


def test_padding_is_never_seen():
    model = small_clip().double()
    tokens = random_tokens([20, 3, 9, 12], columns=20)
    full = model.encode_text(tokens)
    for row, length in enumerate([20, 3, 9, 12]):
        trimmed = model.encode_text(tokens[row : row + 1, :length])
        torch.testing.assert_close(trimmed[0], full[row], rtol=0, atol=1e-12)
    assert (full[0] - full[1]).abs().max() > 1e-3


def test_tokens_after_the_first_end_change_nothing():
    model = small_clip().double()
    tokens = random_tokens([7, 9], columns=20)
    other = tokens.clone()
    other[0, 7:] = 49407
    other[1, 9:] = 123
    torch.testing.assert_close(
        model.encode_text(other), model.encode_text(tokens), rtol=0, atol=1e-12
    )


def test_rows_grouped_by_length_keep_their_order_and_gradients(monkeypatch):
    lengths = [3 + (7 * row) % 18 for row in range(50)]
    tokens = random_tokens(lengths, columns=20)
    weight = torch.linspace(-1, 1, 50 * 24, dtype=torch.float64).view(50, 24)
    seen = []
    for rows in (50, 8, 1):
        monkeypatch.setattr(text, "_ROWS_PER_GROUP", rows)
        model = small_clip().double()
        features = model.encode_text(tokens)
        (features * weight).sum().backward()
        gradients = [p.grad for p in model.text.parameters() if p.grad is not None]
        seen.append([features.detach(), *gradients])
    assert len(seen[0]) == 1 + len(list(model.text.parameters()))
    for other in seen[1:]:
        for one, two in zip(seen[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-11)


def test_every_caption_token_counts():
    model = small_clip().double()
    tokens = random_tokens([9], columns=9)
    base = model.encode_text(tokens)
    for position in range(1, 8):
        changed = tokens.clone()
        changed[0, position] = 77
        assert (model.encode_text(changed) - base).abs().max() > 1e-6, position


@pytest.mark.parametrize("causal", [False, True])
def test_pooled_last_block_equals_the_whole_stack(causal):
    torch.manual_seed(0)
    tower = Transformer(24, 3, 4, causal=causal, quick_gelu=False, dropout=0.0).double()
    x = torch.randn(5, 7, 24, dtype=torch.float64)
    position = torch.tensor([0, 6, 3, 3, 1])
    whole = x
    for block in tower.blocks:
        whole = block(whole)
    torch.testing.assert_close(tower(x, position), whole[torch.arange(5), position])
    torch.testing.assert_close(tower(x, 4), whole[:, 4])


def test_patch_stem_is_the_convolution_on_normalised_pixels():
    config = small_config()
    tower = small_clip(config).visual.double()
    images = random_images(2, 32)
    mean = torch.tensor(config.image_mean, dtype=torch.float64)[:, None, None]
    std = torch.tensor(config.image_std, dtype=torch.float64)[:, None, None]
    weight = dict(tower.named_parameters())["stem.projection.weight"].view(48, 3, 8, 8)
    expected = F.conv2d((images / 255.0 - mean) / std, weight, stride=8).flatten(2).transpose(1, 2)
    got = tower.stem(images, tower.pixel_mean, tower.pixel_std)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)  # the buffers were float32


@pytest.mark.parametrize("stem", list(Stem))
def test_every_pixel_row_is_seen_where_it_is(stem):
    model = small_clip(small_config(stem=stem)).double()
    images = random_images(1, 32)
    features = {tuple(model.encode_image(images)[0].tolist())}
    for shifted in (images.flip(2), images.flip(3), images.transpose(2, 3)):
        features.add(tuple(model.encode_image(shifted)[0].tolist()))
    assert len(features) == 4


@pytest.mark.parametrize("stem", list(Stem))
@pytest.mark.parametrize("quick_gelu", [False, True])
def test_bfloat16_autocast_is_close_and_trains_every_parameter(stem, quick_gelu):
    model = small_clip(small_config(stem=stem, quick_gelu=quick_gelu))
    images, tokens = random_images(4, 32), random_tokens([5, 8, 3, 6], columns=8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(images, tokens)
        loss = (output.image_features.float() * output.text_features.float()).sum()
        loss = loss * output.logit_scale.exp().sum()
    loss.backward()
    exact = small_clip(small_config(stem=stem, quick_gelu=quick_gelu)).double()(images, tokens)
    assert output.logit_scale.dtype == torch.float32
    for rough, fine in zip(output[:2], exact[:2], strict=True):
        assert F.cosine_similarity(rough.double(), fine).min() > 0.999
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_quick_gelu_is_its_formula_and_another_model():
    plain, quick = small_clip(small_config()), small_clip(small_config(quick_gelu=True))
    x = torch.linspace(-4, 4, 9)
    torch.testing.assert_close(QuickGELU()(x), x / (1 + torch.exp(-1.702 * x)))
    images = random_images(2, 32)
    assert (plain.encode_image(images) - quick.encode_image(images)).abs().max() > 1e-4


def test_initial_spread_is_openais():
    torch.manual_seed(0)
    config = replace(small_config(), text=TextConfig(width=256, num_layers=3, num_heads=4))
    tower = build_clip(config, init_logit_scale=2.0, max_logit_scale=4.0).text
    parameters = dict(tower.named_parameters())
    expected = {
        "transformer.blocks.1.attention.qkv.weight": 256**-0.5,
        "transformer.blocks.1.attention.out.weight": (2 * 3 * 256) ** -0.5,
        "transformer.blocks.1.mlp.up.weight": (2 * 256) ** -0.5,
        "transformer.blocks.1.mlp.down.weight": (2 * 3 * 256) ** -0.5,
        "token_embedding.weight": 0.02,
        "positional_embedding": 0.01,
        "projection.weight": 256**-0.5,
    }
    for name, std in expected.items():
        assert parameters[name].std().item() == pytest.approx(std, rel=0.03), name
    biases = [value for name, value in parameters.items() if name.endswith("bias")]
    assert len(biases) == 3 * 6 + 1 and all(value.abs().max() == 0 for value in biases)


@pytest.mark.parametrize(
    "change, named",
    [
        ({"image_size": 36}, "model.image_size=36"),
        ({"vision": VisionConfig(patch_size=8, width=50, num_heads=4)}, "width 50 with 4 heads"),
        ({"vision": VisionConfig(patch_size=16, stem=Stem.conv)}, "model.vision.patch_size is 16"),
        ({"text": TextConfig(vocab_size=1000)}, "model.text.vocab_size=1000"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_by_name(change, named):
    with pytest.raises(ValueError, match=named), torch.device("meta"):
        build_clip(replace(small_config(), **change), init_logit_scale=2.0, max_logit_scale=4.0)


def test_wrong_input_is_refused():
    model = small_clip()
    with pytest.raises(ValueError, match="torch.float32 of shape"):
        model.encode_image(torch.rand(2, 3, 32, 32))
    with pytest.raises(ValueError, match=r"\(2, 3, 64, 64\)"):
        model.encode_image(random_images(2, 64))
    with pytest.raises(ValueError, match="captions of 21 tokens"):
        model.encode_text(torch.zeros(1, 21, dtype=torch.int64))
