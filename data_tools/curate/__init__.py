"""The curate stage, from fetched images to clean pairs: rules on captions, on images and between
images.

Reads fetched.parquet, kept.parquet and the crawl's tars; writes curated.parquet, and the fates of
the stage: which pair was rejected, by which rule and for which value. stage.py has the order of
the rules.
"""

from __future__ import annotations

from data_tools.curate.stage import inputs, run

__all__ = ["inputs", "run"]
