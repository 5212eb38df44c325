"""The dataset job: typed dataclasses behind Hydra groups, one module a stage.

The dataclasses hold the defaults and say what is wrong with their values; YAML files hold
differences only.
"""

from data_tools.config.balance import BalanceConfig
from data_tools.config.crawl import CrawlConfig, ResizeMode
from data_tools.config.curate import CaptionChoice, ClassifierConfig, CurateConfig
from data_tools.config.job import (
    CONF_DIR,
    CONFIGURATION,
    DatasetJob,
    data_settings,
    fingerprint,
    load_job,
    to_yaml,
    validate,
)
from data_tools.config.match import MatchConfig
from data_tools.config.pack import PackConfig
from data_tools.config.plan import PlanConfig
from data_tools.config.problems import ConfigError
from data_tools.config.queries import QueriesConfig
from data_tools.config.report import ReportConfig
from data_tools.config.search import SearchConfig
from data_tools.config.servers import (
    BraveConfig,
    CommonsConfig,
    FlickrConfig,
    OpenverseConfig,
    SearxngConfig,
)
from data_tools.config.sources import PoolConfig, SourcesConfig, reaches_somebody

__all__ = [
    "CONF_DIR",
    "BalanceConfig",
    "CaptionChoice",
    "ClassifierConfig",
    "BraveConfig",
    "CommonsConfig",
    "ConfigError",
    "CrawlConfig",
    "CurateConfig",
    "DatasetJob",
    "FlickrConfig",
    "MatchConfig",
    "OpenverseConfig",
    "PackConfig",
    "PlanConfig",
    "PoolConfig",
    "QueriesConfig",
    "ReportConfig",
    "ResizeMode",
    "SearchConfig",
    "SearxngConfig",
    "SourcesConfig",
    "data_settings",
    "fingerprint",
    "CONFIGURATION",
    "load_job",
    "reaches_somebody",
    "to_yaml",
    "validate",
]
