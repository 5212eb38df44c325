"""A W&B workspace for the names in metrics.jsonl: a new project opens with the right charts.

python -m pipeline.metrics.workspace ENTITY/PROJECT   # saves a view, prints its address
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_tools.ground.command_line import run
from data_tools.ground.settings import Command

if TYPE_CHECKING:
    import wandb_workspaces.workspaces as ws

# Samples, not steps: runs with different batch sizes can be compared, and a run that was rolled
# back still moves to the right.
X_AXIS = "train/samples_seen"
VIEW_NAME = "CLIP training"
SMOOTHING = 0.6

# (title, names, smoothed) per chart. A name that ends in $ is a pattern over names.
Charts = tuple[tuple[str, tuple[str, ...], bool], ...]
SECTIONS: dict[str, Charts] = {
    "train": (
        ("loss of the global batch", ("train/loss", "train/loss_mean"), True),
        ("logit scale (14.3 to 100 is healthy)", ("train/logit_scale",), False),
        (
            "top-1 within the batch",
            ("train/top1_image_to_text", "train/top1_text_to_image"),
            True,
        ),
        (
            "gradient norm",
            ("train/grad_norm", "train/grad_norm_image", "train/grad_norm_text"),
            True,
        ),
        ("learning rate", ("train/lr",), False),
        ("skipped steps, roll-backs", ("train/skipped_steps", "train/rollbacks"), False),
    ),
    "eval": (
        ("zero-shot top-1", (r"^eval/.*/top1$",), False),
        ("text to image, recall at 1", (r"^eval/.*/text_to_image_r1$",), False),
        ("image to text, recall at 1", (r"^eval/.*/image_to_text_r1$",), False),
    ),
    "perf": (
        ("samples per second", ("perf/samples_per_second",), False),
        ("MFU", ("perf/mfu",), False),
        ("memory, GiB (largest rank)", ("perf/memory_gib",), False),
        ("seconds per step", ("perf/step_s",), False),
        (
            "seconds in the towers: median and slowest rank",
            ("perf/towers_s_median", "perf/towers_s_slowest"),
            False,
        ),
        ("TFLOP/s per rank", ("perf/tflops_per_rank",), False),
    ),
    "data": (
        ("share of step time that waits for data", ("data/wait_share",), False),
        ("samples replaced", ("data/replaced_samples",), False),
    ),
}


class WorkspaceError(RuntimeError):
    """The view cannot be made; the message says what to do."""


def build_workspace(entity: str, project: str) -> ws.Workspace:
    """Build the view, without network access. W&B adds panels for all other logged names by
    itself."""
    try:
        import wandb_workspaces.reports.v2 as wr
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise WorkspaceError(
            "wandb-workspaces is not installed: pip install 'clip-pretrain[wandb]'"
        ) from error

    def chart(title: str, names: tuple[str, ...], smoothed: bool) -> wr.LinePlot:
        pattern = names[0] if names[0].endswith("$") else None
        return wr.LinePlot(
            title=title,
            x=X_AXIS,
            y=[] if pattern else list(names),
            metric_regex=pattern,
            smoothing_type="exponentialTimeWeighted" if smoothed else "none",
            smoothing_factor=SMOOTHING if smoothed else 0.0,
            smoothing_show_original=smoothed,
        )

    return ws.Workspace(
        entity=entity,
        project=project,
        name=VIEW_NAME,
        sections=[
            ws.Section(
                name=name,
                panels=[chart(*settings) for settings in charts],
                is_open=True,
                panel_settings=ws.SectionPanelSettings(x_axis=X_AXIS),
            )
            for name, charts in SECTIONS.items()
        ],
        settings=ws.WorkspaceSettings(x_axis=X_AXIS, group_by_prefix="first"),
        auto_generate_panels=True,
    )


def save_workspace(target: str) -> str:
    """Save a new view in "entity/project" and return its address. Raises WorkspaceError."""
    entity, slash, project = target.partition("/")
    if not (entity and slash and project) or "/" in project:
        raise WorkspaceError(f"{target!r} is no entity/project, such as my-team/clip-pretrain")
    workspace = build_workspace(entity, project)
    import wandb

    try:
        has_key = wandb.login(prompt=False, verify=False)
    except wandb.errors.AuthenticationError:  # its text may quote the key
        has_key = False
    if not has_key:
        raise WorkspaceError(
            "no W&B key of the right form is at hand: set WANDB_API_KEY or run `wandb login`"
        )
    try:
        return str(workspace.save().url)
    except Exception as error:  # W&B raises what its HTTP library does
        raise WorkspaceError(
            f"W&B did not take the view for {target} ({type(error).__name__}): check that the "
            f"project exists and that the key may write to it"
        ) from error


@dataclass(frozen=True, kw_only=True)
class WorkspaceSettings:
    project: str
    """ENTITY/PROJECT as in the project's address at W&B, such as my-team/clip-pretrain."""


COMMAND = Command(
    name="pipeline.metrics.workspace",
    purpose="Save a W&B view with charts of the names in metrics.jsonl, and print its address.",
    settings=WorkspaceSettings,
    example="my-team/clip-pretrain",
    bare_word=True,
    failed_by=(WorkspaceError,),
)


def main(arguments: list[str]) -> int:
    """Exit code 0, 1 when the view could not be saved, 2 for a refused command line."""
    return run(COMMAND, arguments, lambda settings, _: print(save_workspace(settings.project)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
