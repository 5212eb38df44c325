"""Which text a sample is trained with: its .txt, or one of the captions in its json."""

from __future__ import annotations

import json

from pipeline.config import CaptionChoice
from pipeline.data.samples.tokenizer import clean_caption
from pipeline.data.samples.transforms import SampleRandom


def choose_caption(
    text: bytes, info: bytes, choice: CaptionChoice, dropout: float, random: SampleRandom
) -> str:
    """The cleaned caption; empty if it is dropped.

    `info` is the sample's json; `captions` in it, a list of strings, are the texts to choose from
    besides `text`. Without such a list the choice is `text`. Raises ValueError for a caption that
    is not UTF-8 or empty, and for json that is not an object or whose captions are no strings.
    """
    caption = clean_caption(text.decode())
    if not caption:
        raise ValueError("empty caption")
    if choice is not CaptionChoice.own and info:
        caption = _choose([caption, *_others(info, caption)], choice, random)
    if dropout and random.uniform(0, 1) < dropout:
        return ""
    return caption


def _others(info: bytes, own: str) -> list[str]:
    """The captions of the json, without empty ones and repetitions, in their order."""
    try:
        content = json.loads(info)
    except RecursionError as error:  # thousands of nested brackets
        raise ValueError("json is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("json is no object")
    captions = content.get("captions") or []
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        raise ValueError("captions in the json are no list of strings")
    cleaned = dict.fromkeys(clean_caption(text) for text in captions)
    return [text for text in cleaned if text and text != own]


def _choose(captions: list[str], choice: CaptionChoice, random: SampleRandom) -> str:
    if choice is CaptionChoice.random:
        return captions[random.integer(len(captions))]
    if choice is CaptionChoice.longest:
        return max(captions, key=len)
    return min(captions, key=len)
