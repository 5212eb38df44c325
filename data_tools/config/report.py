"""Settings of the report stage: what the data set's card is compared with."""

from dataclasses import dataclass, field


@dataclass(kw_only=True, slots=True)
class ReportConfig:
    evaluation_sets: list[str] = field(default_factory=list)
    """Where class names are that the query list should cover: text files of one a line, or folders
    with classnames.txt in them or in their subfolders, as CLIP_benchmark lays sets out. The sets in
    out_dir/eval are looked at besides."""
    language_sample: int = 100_000
    """Captions whose language is identified, about 0.1 ms each; a draw by hash of the uid."""


def problems(config: ReportConfig) -> list[str]:
    found = []
    if config.language_sample < 1:
        found.append(f"report.language_sample = {config.language_sample}: must be >= 1")
    return found + [
        f"report.evaluation_sets: {path!r} is empty; name a file or a folder"
        for path in config.evaluation_sets
        if not path.strip()
    ]
