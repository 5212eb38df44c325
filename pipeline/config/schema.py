"""The typed dataclasses of a training job, one per Hydra group. Default, bound, and whether a
resumed run may change a value stand beside the field; the docstrings are the help of the command.

Null turns an optional setting off.
"""

from dataclasses import dataclass, field

from data_tools.ground.fields import (
    at_least,
    between,
    changeable,
    fixed,
    more_than,
    not_empty,
    share,
    share_below_1,
)
from pipeline.config.choices import (
    CaptionChoice,
    Compile,
    Optimizer,
    Precision,
    Schedule,
    Stem,
    WandbMode,
)
from pipeline.config.loss import LossConfig

_A_YEAR = 365 * 24 * 60
"""In minutes; the clocks of threads and of collectives count no further than some centuries."""
_SHAPES = "the weights in its checkpoints have the shapes of this value"
_SEEDS = "torch's generators take whole numbers from -2**63 to 2**64 - 1; give 0 or another of them"
_ORDER = "the order of its samples is laid out for it: some would come twice and some never"


class ConfigError(ValueError):
    """Every problem of a configuration at once; each line names the field, the value and the
    fix."""


class RefusedStartError(ConfigError):
    """Raised on every rank where the run in run_dir does not allow this start; rank 0 has told
    why."""


@dataclass(kw_only=True, slots=True)
class VisionConfig:
    patch_size: int = fixed(_SHAPES, at_least(1, default=32))
    """Side of a square patch in pixels. With stem=conv it is the stride of the whole stem and must
    be 8."""
    width: int = fixed(_SHAPES, at_least(1, default=768))
    """Size of the tower's hidden vectors; must be divisible by num_heads."""
    num_layers: int = fixed(_SHAPES, at_least(1, default=12))
    """Transformer blocks."""
    num_heads: int = fixed(_SHAPES, at_least(1, default=12))
    """Attention heads per block."""
    stem: Stem = fixed(_SHAPES, field(default=Stem.patch))
    """How pixels become patch embeddings."""
    patch_dropout: float = share_below_1("of the patches", default=0.0)
    """Share of the patches left out of each training image (arXiv 2212.00794); 0 keeps all."""


@dataclass(kw_only=True, slots=True)
class TextConfig:
    context_length: int = fixed(_SHAPES, between(3, 77, default=77))
    """Tokens per text, start and end included. Longer captions are cut; the end token is kept."""
    vocab_size: int = fixed(_SHAPES, between(49408, 1_000_000, default=49408))
    """Number of token ids: those of CLIP's byte-pair vocabulary."""
    width: int = fixed(_SHAPES, at_least(1, default=512))
    """Size of the tower's hidden vectors; must be divisible by num_heads."""
    num_layers: int = fixed(_SHAPES, at_least(1, default=12))
    """Transformer blocks."""
    num_heads: int = fixed(_SHAPES, at_least(1, default=8))
    """Attention heads per block."""


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    name: str = "vit_b_32"
    """Name of the architecture in logs and exports; it has no effect on the model."""
    embed_dim: int = fixed(_SHAPES, at_least(1, default=512))
    """Size of the features in which images and texts are compared."""
    image_size: int = fixed(_SHAPES, between(1, 8192, default=224))
    """Side of the square input image in pixels; must be divisible by vision.patch_size."""
    image_mean: list[float] = field(default_factory=lambda: [0.48145466, 0.4578275, 0.40821073])
    """Mean per channel (RGB) of pixels scaled to 0..1: three values from 0 to 1, subtracted on the
    device. The default is CLIP's."""
    image_std: list[float] = field(default_factory=lambda: [0.26862954, 0.26130258, 0.27577711])
    """Standard deviation per channel, by which pixels are divided after the mean is subtracted:
    three values from 0.001 to 1."""
    dropout: float = share_below_1("of the activations", default=0.0)
    """Dropout on the output of each attention and MLP block; training only. 0 drops nothing."""
    quick_gelu: bool = False
    """Use x*sigmoid(1.702x) in the MLPs, as OpenAI's weights do, instead of GELU. It belongs to the
    weights and is exported with them."""
    vision: VisionConfig = field(default_factory=VisionConfig)
    """The image tower."""
    text: TextConfig = field(default_factory=TextConfig)
    """The text tower."""


@dataclass(kw_only=True, slots=True)
class SourceConfig:
    manifest: str = ""
    """Path or URL of this data set's manifest.json."""
    weight: float = more_than(0, default=1.0, advice="must be > 0; leave the data set out instead")
    """Share of all samples that come from this data set, relative to the other weights. Above its
    share of the sizes it is up-sampled: it goes through more epochs."""


@dataclass(kw_only=True, slots=True)
class ColourConfig:
    """SimCLR's colour augmentation (arXiv 2002.05709); off by default, as in CLIP."""

    jitter_probability: float = share("of the samples", default=0.0)
    """Share of the samples whose colours are changed by the four strengths below; 0 changes
    none."""
    brightness: float = share("around a factor of 1", default=0.32)
    """Brightness is multiplied by a factor drawn uniformly from 1 - this to 1 + this."""
    contrast: float = share("around a factor of 1", default=0.32)
    """As brightness, for the contrast."""
    saturation: float = share("around a factor of 1", default=0.32)
    """As brightness, for the saturation."""
    hue: float = share("of the circle of hues", default=0.08)
    """The hue is turned by up to this share of the colour circle, either way."""
    grayscale_probability: float = share("of the samples", default=0.0)
    """Share of the samples that become grey; 0 changes none."""


@dataclass(kw_only=True, slots=True)
class DataConfig:
    manifest: str = ""
    """The manifest.json of a data set made by `make shards`, or by `python -m data_tools.audit` for
    a foreign one: a path or, for object stores, a URL that fsspec knows (s3://, gs://)."""
    mixture: list[SourceConfig] = field(default_factory=list)
    """Several data sets instead of `manifest`: [{manifest: A, weight: 3}, {manifest: B, weight:
    1}]."""
    stream: list[str] = field(default_factory=list)
    """Instead of `manifest`, tars that cannot be read by index, as webdataset takes them (pipe:,
    http:, with braces). A run on a stream cannot be resumed exactly and has no epochs."""
    resample: bool = False
    """Draw the samples of each epoch by their keep_probability, from the files that `python -m
    pipeline.data.keep_probability MANIFEST` makes; for data sets that were packed unbalanced."""
    chunk_size: int = at_least(1, default=16)
    """Consecutive samples that one lane of the batch reads. 1 is a full shuffle; more means fewer,
    longer reads."""
    num_workers: int = changeable(between(1, 256, default=2))
    """Decoding workers per rank. 1 is a thread; more are processes (threads with data.stream)."""
    prefetch_batches: int = changeable(between(1, 1000, default=4))
    """Batches decoded ahead per rank."""
    crop_scale_min: float = share("of the image's area", default=0.9)
    """Smallest area of the random resized crop, as a share of the image; 1.0 only resizes."""
    colour: ColourConfig = field(default_factory=ColourConfig)
    """Colour augmentation."""
    caption_choice: CaptionChoice = CaptionChoice.own
    """Which caption is used of a sample that has several."""
    caption_dropout: float = share("of the samples", default=0.0)
    """Share of the samples whose caption is replaced by the empty text; 0 replaces none."""
    max_bad_fraction: float = share("of the samples read", default=0.001)
    """Undecodable samples, as a share of those read, above which training stops and names the worst
    shards."""


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    steps: int = between(1, 1_000_000_000, default=10000)
    """Optimizer steps in all."""
    global_batch_size: int = fixed(_ORDER, between(2, 10_000_000, default=1024))
    """Samples per step over all ranks, all of which the loss compares with each other. Each rank
    takes global_batch_size / world_size of them."""
    image_micro_batch_size: int | None = changeable(
        at_least(1, default=None, null="takes all at once")
    )
    """Images that a rank's tower takes at once; null takes its whole share. Fewer need less memory
    and a second forward; the loss covers the whole batch all the same (grad-cache, arXiv
    2101.06983)."""
    text_micro_batch_size: int | None = changeable(
        at_least(1, default=None, null="takes all at once")
    )
    """As image_micro_batch_size, for texts; null takes all at once."""
    lr: float = between(0, 1000, low_open=True, default=1e-3)
    """Peak learning rate, reached after warm-up."""
    image_lr_scale: float = at_least(0, default=1.0)
    """Factor on lr for the image tower; 0 freezes it."""
    text_lr_scale: float = at_least(0, default=1.0)
    """Factor on lr for the text tower; 0 freezes it."""
    layer_decay: float = between(
        0,
        1,
        low_open=True,
        default=1.0,
        advice="a factor on lr for each block further from the output; give more than 0, and 1 for "
        "none",
    )
    """Factor on lr for each block further from the output (arXiv 2106.08254); 1.0 gives all blocks
    the same lr."""
    schedule: Schedule = Schedule.cosine
    """How the learning rate falls after warm-up."""
    warmup_steps: int = at_least(0, default=500)
    """Steps over which the learning rate rises linearly to lr; 0 starts at lr."""
    cooldown_steps: int = at_least(0, default=0)
    """Last steps over which schedule=wsd falls to zero; 0 with the other schedules."""
    optimizer: Optimizer = Optimizer.adamw
    """What turns gradients into steps."""
    beta1: float = share_below_1("of the mean gradient that stays at each step", default=0.9)
    """Decay per step of the running mean of the gradient."""
    beta2: float = share_below_1("of the mean square that stays at each step", default=0.98)
    """Decay per step of the running mean of the squared gradient."""
    eps: float = between(1e-30, 1, default=1e-6)
    """Added to the root of the mean square, so that nothing is divided by zero."""
    weight_decay: float = at_least(0, default=0.2)
    """Decoupled weight decay of matrices; biases, gains, embeddings and the logit scale and bias
    have none. 0 decays nothing."""
    grad_clip_norm: float | None = more_than(0, default=1.0)
    """Largest norm of the gradient of all parameters together; a larger gradient is scaled down to
    it. Null does not clip."""
    precision: Precision = Precision.bf16
    """What weights, gradients and activations are stored and computed in."""
    compile: Compile = changeable(field(default=Compile.none))
    """What torch.compile compiles."""
    overlap_text_gather: bool = changeable(field(default=True))
    """Send the text features of all ranks while the image tower runs. False waits for them first:
    the numbers are the same; it is for measuring what the overlap saves."""
    ema_decay: float | None = between(
        0,
        1,
        low_open=True,
        high_open=True,
        default=None,
        advice="a share of the average that stays at each step, give more than 0, and less than 1",
    )
    """Decay per step of the moving average (EMA) of the weights, such as 0.9999; the EMA is what is
    evaluated and exported. Null keeps no average."""
    seed: int = between(-(2**63), 2**64 - 1, default=0, advice=_SEEDS)
    """Seed of the initial weights, the order of the samples, augmentation and dropout."""
    threads_per_rank: int | None = changeable(
        between(1, 1024, default=None, null="leaves torch's choice")
    )
    """Threads of torch per rank on CPU; null leaves torch's choice. On CUDA it does not matter."""


@dataclass(kw_only=True, slots=True)
class CheckpointConfig:
    every_steps: int = at_least(1, default=1000)
    """Steps between checkpoints."""
    every_minutes: float | None = more_than(0, default=None)
    """Minutes between checkpoints by the clock of rank 0, in addition to every_steps; null counts
    steps only."""
    kept: int = at_least(1, default=2)
    """Newest checkpoints that are kept; older ones are deleted when a newer one is whole."""
    remote: str | None = not_empty(default=None)
    """A folder, as a URL that fsspec knows (s3://bucket/runs/mine), to which checkpoints are
    copied. A run that finds no checkpoint in run_dir resumes from there. Null copies nothing."""


@dataclass(kw_only=True, slots=True)
class HealthConfig:
    max_skipped_in_a_row: int = at_least(1, default=20)
    """Consecutive steps without a finite gradient after which the run goes back to its last
    checkpoint and continues with later data."""
    loss_spike: float | None = more_than(
        1,
        default=None,
        advice="a multiple of the usual loss, which any healthy step would be above; give more "
        "than 1 (2 is a doubling)",
    )
    """Go back likewise when the mean loss since the last log line is above this many times the
    median of the up to 20 lines before, of which there must be 5. Null never does."""
    max_rollbacks: int = at_least(0, default=3)
    """Times that a run may go back; the next time it ends with an error."""
    stall_minutes: float = between(0, _A_YEAR, low_open=True, default=30.0)
    """Minutes without a finished step or evaluation batch after which every rank writes its stacks
    to run_dir/stacks and the run ends."""


@dataclass(kw_only=True, slots=True)
class DeepSpeedConfig:
    """The settings of DeepSpeed that can be chosen; batch sizes follow from `train` and
    `cluster`."""

    zero_stage: int = between(
        1,
        3,
        default=1,
        advice="give 1, 2 or 3 (stage 0 applies NaN gradients to the weights and reports no "
        "gradient norm; stage 1 costs nothing on one device)",
    )
    """What ZeRO shards over ranks. 1: the optimizer state; 2: the gradients too; 3: the weights
    too."""
    reduce_bucket_size: int = at_least(1, default=50_000_000)
    """Gradient elements that are sent at once, at most all there are. Stage 3 and offload also
    allocate a buffer of this size per communication dtype (DeepSpeed's default 5e8 is 2 GB)."""
    allgather_bucket_size: int = at_least(1, default=200_000_000)
    """Weight elements that are gathered at once after a step."""
    offload_optimizer: bool = False
    """Keep the float32 masters and moments in host memory: less memory on the device, a slower
    step."""


@dataclass(kw_only=True, slots=True)
class EvalConfig:
    datasets: list[str] = field(default_factory=list)
    """Folders in CLIP_benchmark's WebDataset layout: classification (with class names and
    templates) or retrieval. Empty evaluates nothing."""
    every_steps: int | None = at_least(1, default=None, null="evaluates after the last step only")
    """Steps between evaluations; null evaluates after the last step only."""
    batch_size: int = at_least(1, default=256)
    """Images (or texts) per forward pass, per rank."""


@dataclass(kw_only=True, slots=True)
class LoggingConfig:
    every_steps: int = at_least(1, default=10)
    """Steps per log line."""
    wandb_mode: WandbMode = WandbMode.auto
    """Where Weights & Biases keeps the log."""
    wandb_project: str = not_empty(default="clip-pretrain")
    """Project at Weights & Biases."""
    wandb_entity: str | None = not_empty(default=None, null="is the account's default")
    """Team or user at Weights & Biases; null is the account's default."""
    tensorboard: bool = False
    """Write run_dir/tensorboard too."""


@dataclass(kw_only=True, slots=True)
class ClusterConfig:
    """Where the ranks run; `slurm.submit` turns it into options of sbatch."""

    nodes: int = between(1, 100_000, default=1)
    """Machines."""
    ranks_per_node: int = between(1, 1024, default=1)
    """Ranks (processes) per node: one per GPU; on a machine without GPUs any number."""
    gpus_per_node: int = at_least(0, default=0)
    """GPUs per node that Slurm is asked for, as many as ranks_per_node; 0 asks for none."""
    cpus_per_rank: int = 8
    """CPU cores per rank that Slurm is asked for."""
    partition: str | None = not_empty(default=None, null="is the site's default")
    """Slurm partition; null is the site's default."""
    account: str | None = not_empty(default=None, null="is the site's default")
    """Slurm account; null is the site's default."""
    qos: str | None = not_empty(default=None, null="is the site's default")
    """Slurm quality of service; null is the site's default."""
    time_limit: str = "24:00:00"
    """Time limit of the Slurm job, as sbatch takes it: [days-]hours:minutes:seconds."""
    signal_before_s: int = 120
    """Seconds before the time limit at which Slurm warns the job, which then requeues itself and
    resumes."""
    timeout_minutes: float = between(0.1, _A_YEAR, default=15.0)
    """Minutes that a rank waits in a collective operation before it fails; its failure ends the
    other ranks too."""
    setup: list[str] = field(default_factory=list)
    """Shell lines run on each node before Python, such as `module load` or `source
    venv/bin/activate`."""


@dataclass(kw_only=True, slots=True)
class TrainJob:
    """A whole training job. A resumed run may change the groups and fields that are `changeable`:
    where it runs, what it logs, when it saves and evaluates, and how the same numbers are computed,
    up to rounding (a checkpoint can be resumed on any number of ranks)."""

    run_dir: str = changeable(field(default=""))
    """Folder that everything of the run is written to; naming the folder of an earlier run resumes
    that run."""
    force: list[str] = changeable(field(default_factory=list))
    """Fields in which this job knowingly differs from the run in run_dir, such as [train.lr]."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Architecture."""
    data: DataConfig = field(default_factory=DataConfig)
    """Samples: where they come from, and what happens to them."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Contrastive loss."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Length, batch, optimizer and precision."""
    deepspeed: DeepSpeedConfig = changeable(field(default_factory=DeepSpeedConfig))
    """How state is divided over ranks."""
    checkpoint: CheckpointConfig = changeable(field(default_factory=CheckpointConfig))
    """When the run is saved, and where to."""
    health: HealthConfig = changeable(field(default_factory=HealthConfig))
    """When the run goes back to a checkpoint, and when it gives up."""
    eval: EvalConfig = changeable(field(default_factory=EvalConfig))
    """Evaluation."""
    logging: LoggingConfig = changeable(field(default_factory=LoggingConfig))
    """Log lines and where they go."""
    cluster: ClusterConfig = changeable(field(default_factory=ClusterConfig))
    """Where the ranks run."""

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return self.cluster.nodes * self.cluster.ranks_per_node

    @property
    def local_batch_size(self) -> int:
        """Samples per step and rank."""
        return self.train.global_batch_size // self.world_size
