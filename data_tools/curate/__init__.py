"""From fetched images to clean pairs: rules on captions and images, then exact duplicates.

Reads fetched.parquet and kept.parquet; writes curated.parquet and, as the fates of the stage, what
was rejected and by which rule.
"""

from __future__ import annotations

from data_tools.curate.stage import run

__all__ = ["run"]
