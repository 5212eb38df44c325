"""Settings of the report stage: what the data set's card is compared with."""

import os
from dataclasses import dataclass, field

from data_tools.ground.fields import at_least, out_of_bounds


@dataclass(kw_only=True, slots=True)
class ReportConfig:
    class_names: list[str] = field(default_factory=list)
    """Where class names are that the query list should cover: text files of one a line, or folders
    with classnames.txt in them or in their subfolders, as CLIP_benchmark lays sets out. The sets in
    out_dir/eval are looked at besides."""
    caption_sample: int = at_least(1, default=100_000)
    """Captions that languages and n-grams are counted in, about 0.2 ms each: those of the smallest
    uids, which are hashes."""


def problems(config: ReportConfig) -> list[str]:
    return out_of_bounds(config, "report") + [
        f"report.class_names: {path!r} is not there; name a file or a folder"
        for path in config.class_names
        if not path.strip() or not os.path.exists(path)
    ]
