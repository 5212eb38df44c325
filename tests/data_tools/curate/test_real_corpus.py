"""Real pictures with natural near duplicates: two editions of an emoji set, of which the newer kept
part of the drawings as they were."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_tools import curate
from data_tools.curate.perceptual_hash import decode
from data_tools.demo import packages
from data_tools.demo.render import render
from tests.data_tools.curate.crawled import (
    Pair,
    crawl,
    curated_of,
    fates_of,
    job_of,
    jpeg,
    resized,
)

SIDE, WANTED = 128, 300


def drawings(style: str, cache: Path) -> dict[str, tuple[str, np.ndarray]]:
    """Name -> (SVG, pixels) of a style's icons."""
    icons = packages.read_json(style, "icons.json", cache)
    box = f"0 0 {icons.get('width', 16)} {icons.get('height', 16)}"
    found = {}
    names = sorted(icons["icons"])
    for name in names[:: max(len(names) // WANTED, 1)]:
        body = icons["icons"][name]["body"]
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}">{body}</svg>'
        png = render(svg, SIDE)
        image = decode(png)
        if image is not None:
            found[name] = (svg, image)
    return found


@pytest.mark.slow
def test_editions_of_emoji(tmp_path):
    cache = tmp_path / "npm"
    styles = ["noto", "noto-v1", "emojione"]
    packages.fetch(styles, cache)
    pairs, pictures = [], []
    for style in styles:
        for name, (_, image) in drawings(style, cache).items():
            words = name.replace("-", " ")
            pairs.append(Pair(jpeg(image), f"{words}, emoji of {style}"))
            pictures.append(image)
    num_originals = len(pairs)
    for number in range(0, num_originals, 3):  # copies as the web makes them
        copy = jpeg(resized(pictures[number], 100), 75)
        pairs.append(Pair(copy, f"copy of {pairs[number].caption}"))
    paths, uids = crawl(tmp_path / "data", pairs)
    counts = curate.run(job_of(paths, max_captions=1000), paths)
    curated, fates = curated_of(paths), fates_of(paths)
    assert counts["fetched"] == len(pairs) > 800
    main = {text: uid for uid, row in curated.items() for text in row["captions"]}
    constant = {uid for uid, fate in fates.items() if fate[0] == "rejected:image_constant"}
    assert len(constant) < 0.01 * len(pairs)
    found = [
        main[pairs[number].caption] == main[pairs[num_originals + place].caption]
        for place, number in enumerate(range(0, num_originals, 3))
        if not {uids[number], uids[num_originals + place]} & constant
    ]
    assert np.mean(found) >= 0.97, "copies, re-sized to 3/4 and compressed, that were found"
    merged = num_originals - len({main[pair.caption] for pair in pairs[:num_originals]
                                  if pair.caption in main})  # fmt: skip
    assert merged < 0.3 * num_originals, f"{merged} of {num_originals} originals count as copies"
    gathered = {text for row in curated.values() for text in row["captions"]}
    lost = {pair.caption for pair, uid in zip(pairs, uids) if uid not in constant} - gathered
    assert not lost, "no caption of a duplicate is lost"
    print(f"{counts}; {merged} of {num_originals} originals merged; copies found {np.mean(found)}")
