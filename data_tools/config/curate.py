"""Settings of the curate stage: what a pair must be to be trained on."""

from dataclasses import dataclass

from data_tools.config.problems import below


@dataclass(kw_only=True, slots=True)
class CurateConfig:
    min_side: int = 32
    """Pixels of the original's shorter side."""
    max_aspect_ratio: float = 3.0
    min_caption_chars: int = 2
    max_caption_chars: int = 1000
    drop_exact_duplicates: bool = True
    """Of (image bytes, caption). The same image under another caption stays: it is another
    sample."""


def problems(config: CurateConfig) -> list[str]:
    return below([("curate.max_aspect_ratio", config.max_aspect_ratio, 1)])
