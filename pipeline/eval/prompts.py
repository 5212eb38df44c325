"""Prompt templates: turn a class name into texts like the captions that the model was trained
on."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.eval.protocols import EvalError

GENERAL = (
    "{c}",
    "a photo of a {c}.",
    # The seven that OpenAI's notebook chose for ImageNet by forward selection out of eighty. They
    # were tuned on ImageNet's training images: on ImageNet itself they are not quite zero-shot.
    "itap of a {c}.",
    "a bad photo of the {c}.",
    "a origami {c}.",
    "a photo of the large {c}.",
    "a {c} in a video game.",
    "art of the {c}.",
    "a photo of the small {c}.",
)
"""The templates of a set that has none of its own."""


def fill(templates: Sequence[str], name: str) -> list[str]:
    """The texts of one class. str.replace, because class names may hold braces themselves."""
    for template in templates:
        if "{c}" not in template:
            raise EvalError(f"template {template!r} has no {{c}} where the class name goes: add it")
    return [template.replace("{c}", name) for template in templates]
