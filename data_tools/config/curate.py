"""Settings of the curate stage: what a pair must be to be trained on.

A rule is off when its value is null (a number), false (a switch) or empty (a list, a path). What a
rule took out is in the ledger with the value that it broke, so that a rule can be judged by what it
costs, and undone by switching it off: images are not decoded again.
"""

import importlib.util
import math
import os
from dataclasses import dataclass, field
from enum import Enum
from typing import List, Optional

from data_tools.ground.fields import at_least, between, not_empty, null_hashed_as, out_of_bounds

BITS = "give 0 to 8 of 64; with more, other pictures count as the same"


class CaptionChoice(Enum):
    """Which of the rows with the same picture stays, with its caption. Ties: the larger original,
    then the smallest uid."""

    longest = "longest"
    shortest = "shortest"
    most_queries = "most_queries"
    first = "first"
    """By uid, which is as good as random, and the same on every machine."""


@dataclass(kw_only=True, slots=True)
class ClassifierConfig:
    """Another rule of the user's own: data_tools/curate/classifiers.py says what it must look
    like."""

    target: str = ""
    """package.module:Name, importable where the stage runs."""
    min_score: float = 0.0
    """Pairs with a lower score are rejected."""


@dataclass(kw_only=True, slots=True)
class CurateConfig:
    repair_text: bool = True
    """Mojibake, HTML entities and tags. The ledger keeps the caption as it was found."""
    min_caption_chars: Optional[int] = at_least(0, default=2)
    """Fewest characters of a caption; null turns the rule off."""
    max_caption_chars: Optional[int] = at_least(1, default=1000)
    """Most characters of a caption; null turns the rule off."""
    min_caption_words: Optional[int] = at_least(0, default=None)
    """Fewest words of a caption; null turns the rule off."""
    max_caption_words: Optional[int] = at_least(1, default=None)
    """Most words of a caption; null turns the rule off."""
    languages: List[str] = field(default_factory=list)
    """ISO codes such as [en,de]; captions of up to four words pass, no model can tell them."""
    drop_file_names: bool = True
    """Captions such as IMG_1234.jpg and DSC00012."""
    drop_boilerplate: bool = True
    """Captions that say nothing of the picture: data_tools/curate/boilerplate.txt."""
    boilerplate_path: Optional[str] = null_hashed_as("", not_empty(default=None))
    """File with another list of boilerplate; null uses the list above."""
    unsafe_terms_path: Optional[str] = null_hashed_as("", not_empty(default=None))
    """File with one term per line; a caption with one of them as whole words is rejected. Null: no
    list. None is brought along: what is unsafe depends on the use."""
    drop_mature: bool = True
    """Pairs that their source flags as mature."""
    min_side: Optional[int] = at_least(1, default=32)
    """Shortest side of the original in pixels; null turns the rule off."""
    max_aspect_ratio: Optional[float] = at_least(1, default=3.0)
    """Largest ratio of the longer side to the shorter; null turns the rule off."""
    min_grey_std: Optional[float] = at_least(0, default=2.0)
    """Standard deviation of the grey levels 0 to 255; a picture below it shows nothing."""
    evaluation_sets: List[str] = field(default_factory=list)
    """Folders of images or of WebDataset tars, single tars, or manifest.json files: training images
    that are near one of their images are dropped, and listed in tables/contamination.parquet."""
    max_contamination_bits: int = between(0, 8, default=4, advice=BITS)
    """An image counts as a copy of an evaluation image if at most this many of the 64 bits of their
    perceptual hashes differ."""
    drop_exact_duplicates: bool = True
    """Images whose downloaded bytes are identical become one pair, which keeps all captions."""
    near_duplicate_bits: Optional[int] = between(0, 8, default=3, advice=BITS)
    """Images count as one picture if at most this many of the 64 bits of their hashes differ, and
    their mean colours by at most near_duplicate_colour; so do images that a chain of such pairs
    connects. Null turns the rule off."""
    near_duplicate_colour: int = at_least(0, default=10)
    """Largest difference of mean colours, from 0 to 255, in each of red, green and blue."""
    caption_choice: CaptionChoice = CaptionChoice.longest
    """Which of the pairs with the same picture stays, with its caption."""
    max_captions: int = at_least(1, default=20)
    """Largest number of captions that a sample keeps where many pairs show the same picture."""
    classifiers: List[ClassifierConfig] = field(default_factory=list)
    """Further rules of your own; empty: none."""
    processes: int = at_least(1, default=2)
    """Processes that check captions and decode images."""


def problems(config: CurateConfig) -> list[str]:
    found = out_of_bounds(config, "curate")
    return found + _contradictions(config) + _missing_files(config) + _plug_ins(config)


def _contradictions(config: CurateConfig) -> list[str]:
    found = []
    for unit in ("chars", "words"):
        low, high = getattr(config, f"min_caption_{unit}"), getattr(config, f"max_caption_{unit}")
        if low is not None and high is not None and low > high:
            found.append(
                f"curate.min_caption_{unit} = {low}: is above curate.max_caption_{unit} = {high}, "
                "which leaves nothing"
            )
    for code in config.languages:
        if not (code.isalpha() and code.islower() and len(code) in (2, 3)):
            found.append(f"curate.languages has {code!r}: give ISO 639 codes such as en")
    return found


def _missing_files(config: CurateConfig) -> list[str]:
    found = []
    for name in ("boilerplate_path", "unsafe_terms_path"):
        path = getattr(config, name)
        if path and not os.path.isfile(path):
            found.append(f"curate.{name} = {path}: no such file")
    for path in config.evaluation_sets:
        if not os.path.exists(path):
            found.append(f"curate.evaluation_sets has {path}, which does not exist")
    return found


def _plug_ins(config: CurateConfig) -> list[str]:
    found = []
    for plug_in in config.classifiers:
        if not all(plug_in.target.partition(":")):
            found.append(
                f"curate.classifiers has target = {plug_in.target!r}: give package.module:Name"
            )
        elif not _is_there(plug_in.target.partition(":")[0]):
            found.append(
                f"curate.classifiers has target = {plug_in.target!r}: no such module; install it, "
                "or start from its folder"
            )
        if not math.isfinite(plug_in.min_score):
            found.append(
                f"curate.classifiers has min_score = {plug_in.min_score} for {plug_in.target}: "
                "give a number"
            )
    return found


def _is_there(module: str) -> bool:
    """Found, not run: a classifier may load a model when it is imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
