"""Settings of the demo that are not those of a dataset job: the size of its corpus, its ports."""

import dataclasses
from dataclasses import dataclass, field

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data_tools.config import ConfigError

TRAINING_STYLES = (
    "noto",
    "noto-v1",
    "fluent-emoji-flat",
    "fxemoji",
    "emojione",
    "openmoji",
)
HELD_OUT_STYLE = "twemoji"


@dataclass(kw_only=True, slots=True)
class DemoConfig:
    """Settings of the corpus and of the server."""

    num_labels: int = 0
    """Number of queries and classes, spread evenly over the emoji list; 0 takes all 1,949."""
    styles: list[str] = field(default_factory=lambda: list(TRAINING_STYLES))
    """Art styles that are served; each is one image site."""
    cache: str = ".cache/npm"
    """Folder in which the npm packages are kept."""
    first_port: int = 18600
    """Port of the API; the sites have the next ports. Addresses are part of a sample's uid, so with
    fixed ports two runs give the same data set. If a port is taken, free ones are used."""


# `recipe=NAME` selects conf/recipe/NAME.yaml for the dataset job, and one of these for the corpus.
RECIPES = {
    "demo": DemoConfig(),
    "demo_smoke": DemoConfig(num_labels=60, styles=["noto", "fluent-emoji-flat", "openmoji"]),
}


def parse_demo(overrides: list[str]) -> tuple[DemoConfig, list[str]]:
    """(the demo's config, the overrides without `demo.*`), from `recipe=...` and `demo.*`.

    Without a recipe, `recipe=demo` is added in front. Raises ConfigError.
    """
    own = [text.removeprefix("demo.") for text in overrides if text.startswith("demo.")]
    rest = [text for text in overrides if not text.startswith("demo.")]
    recipe = next((text.split("=")[1] for text in rest if text.startswith("recipe=")), None)
    if recipe is None:
        recipe, rest = "demo", ["recipe=demo", *rest]
    if recipe not in RECIPES:
        raise ConfigError(f"recipe = {recipe}: the demo has {', '.join(RECIPES)}")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(RECIPES[recipe]), OmegaConf.from_dotlist(own))
        config: DemoConfig = OmegaConf.to_object(merged)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        names = ", ".join(f"demo.{field.name}" for field in dataclasses.fields(DemoConfig))
        reason = str(error).split("\n")[0]
        raise ConfigError(f"{' '.join(own)}: {reason}; there are {names}") from error
    problems = [
        f"demo.styles: {style!r} is no training style; there are {', '.join(TRAINING_STYLES)}"
        for style in config.styles
        if style not in TRAINING_STYLES
    ]
    if not config.styles:
        problems.append("demo.styles is empty: name at least one")
    if config.num_labels < 0:
        problems.append(f"demo.num_labels = {config.num_labels}: give 0 (all) or more")
    if not 1024 <= config.first_port <= 65000:
        problems.append(f"demo.first_port = {config.first_port}: give 1024 to 65000")
    if problems:
        raise ConfigError("the demo cannot start:\n  " + "\n  ".join(problems))
    return config, rest
