"""The dataset job: typed dataclasses behind Hydra groups (conf/dataset.yaml), composed once,
validated, frozen.

The dataclasses hold the defaults; YAML files hold differences only.
"""

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

CONF_DIR = Path(__file__).resolve().parents[1] / "conf"


class ConfigError(ValueError):
    """Every problem of a configuration at once; each line names the field, the value and the
    fix."""


class ResizeMode(Enum):
    """img2dataset's words for what happens to an image on its way into a shard."""

    no = "no"
    border = "border"
    keep_ratio = "keep_ratio"
    keep_ratio_largest = "keep_ratio_largest"
    center_crop = "center_crop"


@dataclass(kw_only=True, slots=True)
class QueriesConfig:
    path: str = ""
    """Text file of the user's queries: one a line, UTF-8; blank lines and lines that start with #
    are skipped."""


@dataclass(kw_only=True, slots=True)
class CommonsConfig:
    """Wikimedia Commons search (or any server that speaks its API)."""

    enabled: bool = False
    endpoint: str = "https://commons.wikimedia.org/w/api.php"
    requests_per_second: float = 2.0
    """Over all connections. Commons asks for modest use; the demo's local server is asked
    faster."""
    concurrency: int = 3
    """Connections at a time; Commons' etiquette allows 3 at most."""
    page_size: int = 50
    """Results a request asks for; Commons renders at most 50 thumbnails a request."""
    thumbnail_width: int = 512
    """Pixels; thumbnails spare upload.wikimedia.org. 0 asks for the original files."""


@dataclass(kw_only=True, slots=True)
class PoolConfig:
    """Tables of (url, caption) at hand: parquet, csv, tsv or jsonl, also .gz."""

    enabled: bool = False
    paths: list[str] = field(default_factory=list)
    """Files or glob patterns."""
    url_column: str = "url"
    caption_column: str = "caption"
    license: str = ""
    """Written into every candidate of the pool, as the pool's publisher states it; empty =
    unknown."""


@dataclass(kw_only=True, slots=True)
class SourcesConfig:
    contact: str = ""
    """E-mail address or URL of the person responsible, sent in the User-Agent of every request to
    the outside."""
    limit_per_query: int = 200
    """Candidates asked of a search source for one query."""
    timeout_s: float = 30.0
    """For one request, connect and read."""
    max_attempts: int = 6
    """Of one request; a server's Retry-After is obeyed in between."""
    give_up_after: int = 5
    """Consecutive requests that failed for good before the search stops: the server is down."""
    commons: CommonsConfig = field(default_factory=CommonsConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)


@dataclass(kw_only=True, slots=True)
class BalanceConfig:
    max_per_query: int = 20000
    """t of CLIP and MetaCLIP: a query with more candidates has them thinned to about this
    number."""
    seed: int = 0


@dataclass(kw_only=True, slots=True)
class CrawlConfig:
    image_size: int = 256
    """Pixels; what resize_mode makes of it. 256 leaves a margin for a 224 px random crop."""
    resize_mode: ResizeMode = ResizeMode.keep_ratio
    """keep_ratio: the short side becomes image_size. Smaller images are not enlarged."""
    encode_quality: int = 95
    """JPEG quality, 1..100."""
    processes: int = 2
    """img2dataset worker processes; each decodes on one core (about 80 images/s/core of 110 kB
    JPEGs)."""
    threads: int = 32
    """Downloads at a time, over all processes."""
    samples_per_part: int = 10000
    """URLs that one run of img2dataset takes; the unit of resuming a crawl."""
    timeout_s: float = 20.0
    """For one URL in all: connect, redirects, body, further attempts."""
    connections_per_host: int = 8
    """Downloads at a time from one host."""
    max_image_bytes: int = 25_000_000
    max_image_pixels: int = 50_000_000
    """Checked in the file's header, before anything is decoded."""
    stall_timeout_s: float = 300.0
    """img2dataset is stopped, and the part reported, when nothing was finished for this long."""
    allow_private: list[str] = field(default_factory=list)
    """host:port pairs that may be fetched although their address is private or loopback. Everything
    else private is refused."""
    respect_robots_txt: bool = True


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


@dataclass(kw_only=True, slots=True)
class PackConfig:
    samples_per_shard: int = 10000
    seed: int = 0
    """Of the global shuffle: samples lie in the order of hash(seed, uid)."""


@dataclass(kw_only=True, slots=True)
class DatasetJob:
    out_dir: str = ""
    queries: QueriesConfig = field(default_factory=QueriesConfig)
    sources: SourcesConfig = field(default_factory=SourcesConfig)
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    crawl: CrawlConfig = field(default_factory=CrawlConfig)
    curate: CurateConfig = field(default_factory=CurateConfig)
    pack: PackConfig = field(default_factory=PackConfig)


ConfigStore.instance().store(name="dataset_schema", node=DatasetJob)


def load_job(overrides: list[str]) -> DatasetJob:
    """Compose conf/dataset.yaml with Hydra overrides (`queries.path=q.txt source=commons`) and
    validate the result."""
    try:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            composed = compose("dataset", overrides)
        job: DatasetJob = OmegaConf.to_object(composed)  # type: ignore[assignment]
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"the configuration does not compose: {_whole_story(error)}") from error
    problems = validate(job)
    if problems:
        raise ConfigError("the dataset job is not valid:\n  " + "\n  ".join(problems))
    return job


def _whole_story(error: BaseException) -> str:
    """Hydra names the override, the exception behind it says what is wrong with it: both, without
    tracebacks."""
    told = [str(error).split("\nConfig search path")[0].strip()]
    while error.__cause__ is not None:
        error = error.__cause__
        told.append(str(error).strip().split("\n")[0])
    return "\n  ".join(dict.fromkeys(told))


def validate(job: DatasetJob) -> list[str]:
    """Every problem as `field = value: what is wrong, what to do`; empty when the job can start."""
    problems = []
    if not job.out_dir:
        problems.append("out_dir is not given: add out_dir=DIR")
    elif os.path.exists(job.out_dir) and not os.path.isdir(job.out_dir):
        problems.append(f"out_dir = {job.out_dir}: is a file; name a folder")
    if not job.queries.path:
        problems.append("queries.path is not given: add queries.path=FILE (one query a line)")
    elif not os.path.isfile(job.queries.path):
        problems.append(f"queries.path = {job.queries.path}: no such file; one query a line, UTF-8")
    problems += _validate_sources(job.sources) + _validate_ranges(job)
    return problems


def _validate_sources(sources: SourcesConfig) -> list[str]:
    problems = []
    if not (sources.commons.enabled or sources.pool.enabled):
        problems.append(
            "sources: none is enabled; add source=commons, source=pool or source=[commons,pool]"
        )
    if sources.commons.enabled:
        if not sources.commons.endpoint.startswith(("http://", "https://")):
            problems.append(
                f"sources.commons.endpoint = {sources.commons.endpoint}: give an http(s) URL"
            )
        if not 1 <= sources.commons.concurrency <= 3:
            problems.append(
                f"sources.commons.concurrency = {sources.commons.concurrency}: Commons allows 1 "
                f"to 3 connections"
            )
        if not 1 <= sources.commons.page_size <= 50:
            problems.append(
                f"sources.commons.page_size = {sources.commons.page_size}: give 1 to 50"
            )
    if not sources.contact:
        problems.append(
            "sources.contact is empty: search servers and image sites may ask who is calling; add "
            "sources.contact=you@example.org"
        )
    if sources.pool.enabled and not sources.pool.paths:
        problems.append("sources.pool.paths is empty: add 'sources.pool.paths=[pool/*.parquet]'")
    return problems


def _validate_ranges(job: DatasetJob) -> list[str]:
    lowest = [
        ("sources.limit_per_query", job.sources.limit_per_query, 1),
        ("sources.timeout_s", job.sources.timeout_s, 0.1),
        ("sources.max_attempts", job.sources.max_attempts, 1),
        ("sources.commons.requests_per_second", job.sources.commons.requests_per_second, 0.01),
        ("balance.max_per_query", job.balance.max_per_query, 1),
        ("crawl.image_size", job.crawl.image_size, 16),
        ("crawl.processes", job.crawl.processes, 1),
        ("crawl.threads", job.crawl.threads, 1),
        ("crawl.samples_per_part", job.crawl.samples_per_part, 1),
        ("crawl.timeout_s", job.crawl.timeout_s, 0.1),
        ("crawl.connections_per_host", job.crawl.connections_per_host, 1),
        ("crawl.stall_timeout_s", job.crawl.stall_timeout_s, 1),
        ("curate.max_aspect_ratio", job.curate.max_aspect_ratio, 1),
        ("pack.samples_per_shard", job.pack.samples_per_shard, 1),
    ]
    problems = [f"{name} = {value}: must be >= {low}" for name, value, low in lowest if value < low]
    if not 1 <= job.crawl.encode_quality <= 100:
        problems.append(f"crawl.encode_quality = {job.crawl.encode_quality}: give 1 to 100")
    problems += [
        f"crawl.allow_private: '{entry}' is not host:port"
        for entry in job.crawl.allow_private
        if not entry.rpartition(":")[2].isdigit()
    ]
    return problems


def to_yaml(job: DatasetJob) -> str:
    return OmegaConf.to_yaml(OmegaConf.structured(job))


def fingerprint(*parts: object) -> str:
    """16 hex digits over dataclasses and plain values: equal for equal settings."""
    plain = [
        (
            dataclasses.asdict(part)
            if dataclasses.is_dataclass(part) and not isinstance(part, type)
            else part
        )
        for part in parts
    ]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:16]
