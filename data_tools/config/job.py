"""The whole dataset job: composed once from conf/dataset.yaml and overrides, validated, frozen."""

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass, field
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data_tools.config import (
    balance,
    crawl,
    curate,
    match,
    pack,
    plan,
    queries,
    report,
    search,
    sources,
)
from data_tools.config.balance import BalanceConfig
from data_tools.config.crawl import CrawlConfig
from data_tools.config.curate import CurateConfig
from data_tools.config.match import MatchConfig
from data_tools.config.pack import PackConfig
from data_tools.config.plan import PlanConfig
from data_tools.config.problems import ConfigError
from data_tools.config.queries import QueriesConfig
from data_tools.config.report import ReportConfig
from data_tools.config.search import SearchConfig
from data_tools.config.sources import SourcesConfig
from data_tools.ground.conf_dir import conf_dir
from data_tools.ground.errors import error_chain
from data_tools.ground.fields import hashable
from data_tools.ground.override_values import wrong_values
from data_tools.ground.overrides import Configuration

CONF_DIR = conf_dir()


@dataclass(kw_only=True, slots=True)
class DatasetJob:
    """One field per stage, in the order of the stages; `sources` is read by match and by search,
    `plan` by python -m data_tools.plan alone."""

    out_dir: str = ""
    """Folder that everything of the data set is written to."""
    queries: QueriesConfig = field(default_factory=QueriesConfig)
    """Where the query list comes from."""
    sources: SourcesConfig = field(default_factory=SourcesConfig)
    """Who is asked for (url, caption) pairs."""
    match: MatchConfig = field(default_factory=MatchConfig)
    """Captions of pools against the query list."""
    search: SearchConfig = field(default_factory=SearchConfig)
    """Queries that search servers are asked."""
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    """How many pairs a query may keep."""
    crawl: CrawlConfig = field(default_factory=CrawlConfig)
    """Download of the images."""
    curate: CurateConfig = field(default_factory=CurateConfig)
    """What a pair must be to be trained on."""
    pack: PackConfig = field(default_factory=PackConfig)
    """Size, order and place of the shards."""
    report: ReportConfig = field(default_factory=ReportConfig)
    """What the data set's card is compared with."""
    plan: PlanConfig = field(default_factory=PlanConfig)
    """Figures that the estimate of cost is made with."""


# Left out by data_settings; None leaves out the whole group.
SETTINGS_WITHOUT_EFFECT_ON_DATA: dict[str, set[str] | None] = {
    "out_dir": None,
    "queries": {"path"},
    "sources": {"contact", "timeout_s", "max_attempts", "max_wait_s"},
    "match": {"processes", "unit_bytes", "merge_memory_gb"},
    "search": {"give_up_after"},
    "crawl": {"processes", "threads", "stall_timeout_s"}
    | {"connections_per_host", "requests_per_host_per_s"},
    "curate": {"processes"},
    "pack": {"processes", "target_url"},
    "report": None,
    "plan": None,
}

ConfigStore.instance().store(name="dataset_schema", node=DatasetJob)

CONFIGURATION = Configuration(DatasetJob, CONF_DIR, "dataset")
"""What the words of a command line may set."""


def load_job(overrides: list[str], until: str = "report") -> DatasetJob:
    """Compose conf/dataset.yaml with Hydra overrides (`queries.path=q.txt source=commons`) and
    validate what the stages up to `until` read."""
    quoted, refused = CONFIGURATION.quoted(overrides)
    refused += CONFIGURATION.unknown_names(overrides)
    if refused:
        raise ConfigError("the configuration does not compose:\n  " + "\n  ".join(refused))
    wrong = wrong_values(CONFIGURATION, quoted)
    try:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            composed = compose("dataset", [word for word in quoted if word not in wrong])
        job: DatasetJob = OmegaConf.to_object(composed)  # type: ignore[assignment]
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"the configuration does not compose: {error_chain(error)}") from error
    problems = [*wrong.values(), *validate(job, until)]
    if problems:
        raise ConfigError("the dataset job is not valid:\n  " + "\n  ".join(problems))
    return job


def validate(job: DatasetJob, until: str = "report") -> list[str]:
    """Every problem as `field = value: what is wrong, what to do`; empty when the job can start.

    `until="queries"` skips the checks of later stages, so that a query list can be built before a
    source is chosen.
    """
    found = []
    if not job.out_dir:
        found.append("out_dir is not given: add out_dir=DIR")
    elif "::" in job.out_dir:
        found.append(
            f"out_dir = {job.out_dir}: the crawl reads :: as a chain of URLs; give a folder "
            "without it"
        )
    elif os.path.exists(job.out_dir) and not os.path.isdir(job.out_dir):
        found.append(f"out_dir = {job.out_dir}: is a file; name a folder")
    found += queries.problems(job.queries)
    if until == "queries":
        return found
    found += sources.problems(job.sources)
    found += match.problems(job.match) + search.problems(job.search)
    found += balance.problems(job.balance) + crawl.problems(job.crawl)
    found += curate.problems(job.curate) + pack.problems(job.pack)
    found += report.problems(job.report) + plan.problems(job.plan)
    if job.search.deficit_only and not job.balance.max_per_query:
        found.append(
            "search.deficit_only = True, balance.max_per_query = null: which queries are short is "
            "known only with a fixed t; give balance.max_per_query (python -m data_tools.plan "
            "prints what balance.target_pairs or balance.tail_share come to)"
        )
    return found


def data_settings(job: DatasetJob) -> dict[str, Any]:
    """Group -> settings that can change the data set. Location, speed and contact are left out:
    they do not change it."""
    settings = hashable(job)
    for group, names in SETTINGS_WITHOUT_EFFECT_ON_DATA.items():
        if names is None:
            del settings[group]
        else:
            settings[group] = {k: v for k, v in settings[group].items() if k not in names}
    # Two settings of earlier versions that could only be False: without them, every data folder of
    # those versions would have another fingerprint, and be searched and crawled again.
    settings["sources"] |= {"pixabay": False, "unsplash": False}
    return settings


def to_yaml(job: DatasetJob) -> str:
    return OmegaConf.to_yaml(OmegaConf.structured(job))


def fingerprint(*parts: object) -> str:
    """16 hex digits over dataclasses and plain values: equal for equal settings."""
    plain = [
        (hashable(part) if dataclasses.is_dataclass(part) and not isinstance(part, type) else part)
        for part in parts
    ]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:16]
