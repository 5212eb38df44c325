"""The training job: typed dataclasses behind Hydra groups, composed once, validated, frozen into
the run directory.

The dataclasses hold the defaults, YAML files hold differences only. No torch here: `slurm.submit`
runs this on a login node. A `step` is a finished optimizer step; time is counted in steps and in
samples, never in epochs.
"""

import dataclasses
import difflib
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


class Stem(Enum):
    patch = "patch"
    """One convolution of stride patch_size, as in ViT and CLIP."""
    conv = "conv"
    """Three stride-2 3x3 convolutions (patch_size 8): sees better at few pixels and few samples
    (arXiv 2106.14881)."""


class Precision(Enum):
    fp32 = "fp32"
    bf16 = "bf16"
    """Autocast of matrix products to bfloat16; weights, moments, logit scale and loss stay
    float32."""


class WandbMode(Enum):
    auto = "auto"
    """Online when an API key is at hand (WANDB_API_KEY or a login), else offline."""
    online = "online"
    offline = "offline"
    disabled = "disabled"


@dataclass(kw_only=True, slots=True)
class VisionConfig:
    patch_size: int = 32
    """Pixels; with the conv stem the stride of the whole stem, which must be 8."""
    width: int = 768
    num_layers: int = 12
    num_heads: int = 12
    stem: Stem = Stem.patch


@dataclass(kw_only=True, slots=True)
class TextConfig:
    context_length: int = 77
    """Tokens, start and end included; longer captions are cut, the end token kept."""
    vocab_size: int = 49408
    """CLIP's byte-pair vocabulary."""
    width: int = 512
    num_layers: int = 12
    num_heads: int = 8


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    name: str = "vit_b_32"
    embed_dim: int = 512
    image_size: int = 224
    """Pixels, square."""
    image_mean: list[float] = field(default_factory=lambda: [0.48145466, 0.4578275, 0.40821073])
    """Of pixels in 0..1, RGB; subtracted on the device. CLIP's own values."""
    image_std: list[float] = field(default_factory=lambda: [0.26862954, 0.26130258, 0.27577711])
    quick_gelu: bool = False
    """x*sigmoid(1.702x) as in OpenAI's weights, else GELU. A property of the weights: exported with
    them."""
    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)


@dataclass(kw_only=True, slots=True)
class DataConfig:
    manifest: str = ""
    """manifest.json of a data set made by `make shards`, or by `python -m data_tools.audit` for a
    foreign one."""
    chunk_size: int = 16
    """Consecutive samples that one lane of the batch reads; 1 is a full shuffle, more means fewer,
    longer reads."""
    num_workers: int = 2
    """Decoding threads a rank."""
    prefetch_batches: int = 4
    """Batches decoded ahead, a rank."""
    crop_scale_min: float = 0.9
    """Smallest area of the random resized crop, as a share of the image; 1.0 only resizes."""
    max_bad_fraction: float = 0.001
    """Undecodable samples, as a share of those read, above which training stops and names the worst
    shards."""


@dataclass(kw_only=True, slots=True)
class LossConfig:
    init_logit_scale: float = 2.6592600369
    """ln(1/0.07): log-space, as the field stores it."""
    max_logit_scale: float = 4.6051701860
    """ln(100): the clamp, applied in the forward."""
    same_caption_positive: bool = True
    """Equal captions in a global batch count as positives with shared weight; False: each pair has
    one positive only."""


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    steps: int = 10000
    global_batch_size: int = 1024
    """Over all ranks; the logits cover it. A rank takes global_batch_size / world_size."""
    lr: float = 1e-3
    """Peak, after warm-up; cosine to zero at the last step."""
    warmup_steps: int = 500
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6
    weight_decay: float = 0.2
    """Of matrices only: not of biases, gains, embeddings of position, or the logit scale."""
    grad_clip_norm: float = 1.0
    precision: Precision = Precision.bf16
    seed: int = 0
    checkpoint_every_steps: int = 1000
    checkpoints_kept: int = 2
    threads_per_rank: int = 0
    """torch's threads on CPU; 0 leaves torch's choice (on CUDA it does not matter)."""


@dataclass(kw_only=True, slots=True)
class DeepSpeedConfig:
    """What of DeepSpeed is ours to choose; batch sizes are derived, never written (design of the
    engine)."""

    zero_stage: int = 1
    """1: optimizer state sharded over ranks. 2 and 3 are accepted too; 0 applies NaN gradients and
    has no gradient norm."""
    reduce_bucket_size: int = 50_000_000
    """Elements; a rank allocates one such buffer per communication dtype (DeepSpeed's default 5e8
    is 2 GB)."""
    allgather_bucket_size: int = 200_000_000


@dataclass(kw_only=True, slots=True)
class EvalConfig:
    datasets: list[str] = field(default_factory=list)
    """Folders in CLIP_benchmark's WebDataset layout: classification (with class names and
    templates) or retrieval."""
    every_steps: int = 0
    """0 evaluates after the last step only."""
    batch_size: int = 256
    """Images a rank and pass."""


@dataclass(kw_only=True, slots=True)
class LoggingConfig:
    every_steps: int = 10
    wandb_mode: WandbMode = WandbMode.auto
    wandb_project: str = "clip-pretrain"
    wandb_entity: str = ""
    """Empty: the account's default."""


@dataclass(kw_only=True, slots=True)
class ClusterConfig:
    """Where the ranks run; `slurm.submit` makes sbatch's options of it."""

    nodes: int = 1
    ranks_per_node: int = 1
    """One a GPU; on a machine without GPUs any number."""
    gpus_per_node: int = 0
    """Asked of Slurm; 0 asks for none."""
    cpus_per_rank: int = 8
    partition: str = ""
    account: str = ""
    qos: str = ""
    time_limit: str = "24:00:00"
    signal_before_s: int = 120
    """Seconds before the time limit at which Slurm warns the job, which then requeues itself and
    resumes."""
    timeout_minutes: float = 15.0
    """Of any collective operation: a rank that waits longer fails, and its failure ends the
    others."""
    setup: list[str] = field(default_factory=list)
    """Shell lines run on each node before Python: module load, source venv/bin/activate."""


@dataclass(kw_only=True, slots=True)
class TrainJob:
    run_dir: str = ""
    """Everything of the run goes here; naming the folder of an earlier run resumes it."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    deepspeed: DeepSpeedConfig = field(default_factory=DeepSpeedConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    @property
    def world_size(self) -> int:
        return self.cluster.nodes * self.cluster.ranks_per_node

    @property
    def local_batch_size(self) -> int:
        return self.train.global_batch_size // self.world_size


ConfigStore.instance().store(name="train_schema", node=TrainJob)


def load_job(overrides: list[str]) -> TrainJob:
    """Compose conf/train.yaml with Hydra overrides (`experiment=demo train.steps=200`); ConfigError
    lists every problem."""
    try:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            composed = compose("train", overrides)
        job: TrainJob = OmegaConf.to_object(composed)  # type: ignore[assignment]
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"the configuration does not compose: {_whole_story(error)}") from error
    problems = validate(job)
    if problems:
        raise ConfigError("the training job is not valid:\n  " + "\n  ".join(problems))
    return job


def load_frozen(path: Path | str) -> TrainJob:
    """Read a run's config.yaml back through the schema: an unknown key or a wrong type is refused
    here too."""
    try:
        merged = OmegaConf.merge(OmegaConf.structured(TrainJob), OmegaConf.load(path))
        job: TrainJob = OmegaConf.to_object(merged)  # type: ignore[assignment]
    except (OSError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: {_whole_story(error)}") from error
    return job


def to_yaml(job: TrainJob) -> str:
    return OmegaConf.to_yaml(OmegaConf.structured(job))


def freeze(job: TrainJob) -> Path:
    """Write run_dir/config.yaml, which the ranks load; returns its path.

    A run directory that holds another configuration is refused with the difference: a resumed run
    must be the run that was started. `cluster` and `logging` may change (where it runs and what it
    prints is not what it computes).
    """
    path = Path(job.run_dir) / "config.yaml"
    if path.exists():
        kept = load_frozen(path)
        comparable = dataclasses.replace(job, cluster=kept.cluster, logging=kept.logging)
        comparable.run_dir = kept.run_dir
        before, now = to_yaml(kept).splitlines(), to_yaml(comparable).splitlines()
        if before != now:
            lines = difflib.unified_diff(before, now, "of the run", "given now", lineterm="", n=0)
            changes = "\n  ".join(line for line in lines if not line.startswith("@@"))
            raise ConfigError(
                f"run_dir = {job.run_dir}: holds a run of another configuration:\n  {changes}\n"
                "name another run_dir, or resume with nothing but run_dir=... given"
            )
        if job.world_size != kept.world_size:
            raise ConfigError(
                f"cluster.nodes x cluster.ranks_per_node = {job.world_size}: the run in "
                f"{job.run_dir} has "
                f"{kept.world_size} ranks, and its optimizer state is sharded over them; resume "
                f"with the same number"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(".config.yaml.tmp")
    aside.write_text(to_yaml(job))
    os.replace(aside, path)
    return path


def job_of_arguments(overrides: list[str]) -> TrainJob:
    """The job that a command line means: `run_dir=X` alone, where X is an earlier run, is that run;
    else compose."""
    run_dirs = [word.partition("=")[2] for word in overrides if word.startswith("run_dir=")]
    if len(overrides) == 1 and run_dirs and (Path(run_dirs[0]) / "config.yaml").exists():
        job = load_frozen(Path(run_dirs[0]) / "config.yaml")
        job.run_dir = run_dirs[0]  # the folder may have been moved
        problems = validate(job)
        if problems:
            raise ConfigError(f"the run in {run_dirs[0]} cannot go on:\n  " + "\n  ".join(problems))
        return job
    return load_job(overrides)


def _whole_story(error: BaseException) -> str:
    """Hydra names the override, the exception behind it says what is wrong with it: both, without
    tracebacks."""
    told = [str(error).split("\nConfig search path")[0].strip()]
    while error.__cause__ is not None:
        error = error.__cause__
        told.append(str(error).strip().split("\n")[0])
    return "\n  ".join(dict.fromkeys(told))


def validate(job: TrainJob) -> list[str]:
    """Every problem as `field = value: what is wrong, what to do`; empty when the job can start."""
    problems = []
    if not job.run_dir:
        problems.append("run_dir is not given: add run_dir=runs/NAME")
    elif os.path.exists(job.run_dir) and not os.path.isdir(job.run_dir):
        problems.append(f"run_dir = {job.run_dir}: is a file; name a folder")
    if not job.data.manifest:
        problems.append(
            "data.manifest is not given: add data.manifest=DIR/manifest.json (made by `make "
            "shards`)"
        )
    elif not os.path.isfile(job.data.manifest):
        problems.append(
            f"data.manifest = {job.data.manifest}: no such file; `make shards` writes it"
        )
    for folder in job.eval.datasets:
        if not os.path.isdir(folder):
            problems.append(f"eval.datasets: {folder} is no folder; correct or remove it")
    return problems + _validate_ranges(job) + _validate_batch(job) + _validate_model(job.model)


def _validate_ranges(job: TrainJob) -> list[str]:
    train, data = job.train, job.data
    lowest = [
        ("train.steps", train.steps, 1),
        ("train.global_batch_size", train.global_batch_size, 2),
        ("train.warmup_steps", train.warmup_steps, 0),
        ("train.checkpoint_every_steps", train.checkpoint_every_steps, 1),
        ("train.checkpoints_kept", train.checkpoints_kept, 1),
        ("train.threads_per_rank", train.threads_per_rank, 0),
        ("data.chunk_size", data.chunk_size, 1),
        ("data.num_workers", data.num_workers, 1),
        ("data.prefetch_batches", data.prefetch_batches, 1),
        ("eval.every_steps", job.eval.every_steps, 0),
        ("eval.batch_size", job.eval.batch_size, 1),
        ("logging.every_steps", job.logging.every_steps, 1),
        ("cluster.nodes", job.cluster.nodes, 1),
        ("cluster.ranks_per_node", job.cluster.ranks_per_node, 1),
        ("cluster.gpus_per_node", job.cluster.gpus_per_node, 0),
    ]
    problems = [f"{name} = {value}: must be >= {low}" for name, value, low in lowest if value < low]
    positive = [
        ("train.lr", train.lr),
        ("train.eps", train.eps),
        ("train.grad_clip_norm", train.grad_clip_norm),
        ("cluster.timeout_minutes", job.cluster.timeout_minutes),
    ]
    problems += [f"{name} = {value}: must be > 0" for name, value in positive if not value > 0]
    shares = [
        ("data.crop_scale_min", data.crop_scale_min, "of the image's area"),
        ("data.max_bad_fraction", data.max_bad_fraction, "of the samples read"),
    ]
    problems += [
        f"{name} = {value}: a share {what}, give 0 to 1"
        for name, value, what in shares
        if not 0 <= value <= 1
    ]
    if train.warmup_steps >= train.steps and train.warmup_steps > 0:
        problems.append(
            f"train.warmup_steps = {train.warmup_steps}: warm-up would not end before train.steps "
            f"= {train.steps}; "
            "give fewer, or 0"
        )
    if job.deepspeed.zero_stage not in (1, 2, 3):
        problems.append(
            f"deepspeed.zero_stage = {job.deepspeed.zero_stage}: give 1, 2 or 3 (stage 0 applies "
            f"NaN gradients to the "
            "weights and reports no gradient norm; stage 1 costs nothing on one device)"
        )
    if not 0 < job.loss.init_logit_scale <= job.loss.max_logit_scale:
        problems.append(
            f"loss.init_logit_scale = {job.loss.init_logit_scale}: must be > 0 and <= "
            f"loss.max_logit_scale = "
            f"{job.loss.max_logit_scale} (both are logarithms: ln(1/0.07) = 2.66, ln(100) = 4.61)"
        )
    return problems


def _validate_batch(job: TrainJob) -> list[str]:
    world_size, batch = job.world_size, job.train.global_batch_size
    if world_size < 1 or batch % world_size == 0:
        return []
    lower, upper = batch // world_size * world_size, -(-batch // world_size) * world_size
    return [
        f"train.global_batch_size = {batch}: is not divisible by {world_size} ranks "
        f"(cluster.nodes = "
        f"{job.cluster.nodes} x cluster.ranks_per_node = {job.cluster.ranks_per_node}); give "
        f"{lower or upper} or {upper}"
    ]


def _validate_model(model: ModelConfig) -> list[str]:
    problems = []
    for name, tower in (("vision", model.vision), ("text", model.text)):
        if tower.width % tower.num_heads:
            problems.append(
                f"model.{name}.width = {tower.width}: is not divisible by model.{name}.num_heads "
                f"= {tower.num_heads}"
            )
    if model.image_size % model.vision.patch_size:
        problems.append(
            f"model.image_size = {model.image_size}: is not divisible by model.vision.patch_size = "
            f"{model.vision.patch_size}"
        )
    if model.vision.stem is Stem.conv and model.vision.patch_size != 8:
        problems.append(
            f"model.vision.patch_size = {model.vision.patch_size}: the conv stem has stride 8; "
            f"give 8 or stem=patch"
        )
    if not 3 <= model.text.context_length <= 77:
        problems.append(f"model.text.context_length = {model.text.context_length}: give 3 to 77")
    return problems
