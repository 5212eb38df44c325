"""The typed dataclasses of a training job: one a Hydra group. They hold the defaults."""

from dataclasses import dataclass, field
from enum import Enum


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
    """What each stores, sends and computes in: pipeline/engine/README.md. The loss and the logit
    scale in the forward are float32 in all of them."""

    fp32 = "fp32"
    bf16 = "bf16"
    """Autocast of matrix products to bfloat16; weights and moments stay float32."""
    pure_bf16 = "pure_bf16"
    """Weights and gradients in bfloat16 beside sharded float32 masters and moments."""
    fp16 = "fp16"
    """Weights and gradients in float16 under a dynamic loss scale: for GPUs without bfloat16."""


class LossKind(Enum):
    clip = "clip"
    """Symmetric InfoNCE (arXiv 2103.00020)."""
    sigmoid = "sigmoid"
    """A sigmoid for each pair, with a learned bias (arXiv 2303.15343)."""


class Optimizer(Enum):
    adamw = "adamw"
    lamb = "lamb"
    """AdamW whose step is scaled by each tensor's norm (arXiv 1904.00962), for batches of 32k and
    more."""


class Schedule(Enum):
    """Of the learning rate after its warm-up, as a function of the step alone."""

    cosine = "cosine"
    """To zero at the last step."""
    linear = "linear"
    """To zero at the last step."""
    wsd = "wsd"
    """Constant, then linear to zero over the last train.cooldown_steps (warm-up, stable, decay)."""


class Compile(Enum):
    """torch.compile of the towers: minutes at the start, faster steps on a GPU."""

    none = "none"
    blocks = "blocks"
    """Each Transformer block: one graph for all of a tower, quick to compile."""
    towers = "towers"
    """Each tower as one graph."""


class CaptionChoice(Enum):
    """Which caption of a sample is used; those besides its .txt are `captions` in its json."""

    own = "own"
    """The .txt."""
    random = "random"
    """One of all, each as likely; drawn anew in each epoch."""
    longest = "longest"
    shortest = "shortest"


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
    patch_dropout: float = 0.0
    """Share of the patches left out of each training image (arXiv 2212.00794)."""


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
    dropout: float = 0.0
    """Of what each attention and MLP adds, in training."""
    quick_gelu: bool = False
    """x*sigmoid(1.702x) as in OpenAI's weights, else GELU. A property of the weights: exported with
    them."""
    vision: VisionConfig = field(default_factory=VisionConfig)
    text: TextConfig = field(default_factory=TextConfig)


@dataclass(kw_only=True, slots=True)
class SourceConfig:
    manifest: str = ""
    weight: float = 1.0
    """Share of all samples that come from this data set, relative to the other weights; above its
    share of the sizes it is up-sampled: it goes through more epochs."""


@dataclass(kw_only=True, slots=True)
class ColourConfig:
    """SimCLR's colour augmentation (arXiv 2002.05709); off by default, as in CLIP."""

    jitter_probability: float = 0.0
    """Share of the samples whose colours are changed by the four strengths below."""
    brightness: float = 0.32
    """Factors are uniform in 1 +- this; hue is turned by up to this share of the circle."""
    contrast: float = 0.32
    saturation: float = 0.32
    hue: float = 0.08
    grayscale_probability: float = 0.0


@dataclass(kw_only=True, slots=True)
class DataConfig:
    manifest: str = ""
    """manifest.json of a data set made by `make shards`, or by `python -m data_tools.audit` for a
    foreign one; a path or, for object stores, a URL that fsspec knows (s3://, gs://)."""
    mixture: list[SourceConfig] = field(default_factory=list)
    """Several data sets instead of `manifest`: [{manifest: A, weight: 3}, {manifest: B, weight:
    1}]."""
    stream: list[str] = field(default_factory=list)
    """Instead of `manifest`: tars that cannot be read by index, as webdataset takes them (pipe:,
    http:, with braces). Not exactly resumable, no epochs."""
    resample: bool = False
    """Each epoch draws its samples by their keep_probability, from the files that `python -m
    pipeline.data.keep_probability MANIFEST` makes; for data sets that were packed unbalanced."""
    chunk_size: int = 16
    """Consecutive samples that one lane of the batch reads; 1 is a full shuffle, more means fewer,
    longer reads."""
    num_workers: int = 2
    """That read and decode, a rank: one is a thread, several are processes (threads of a
    stream)."""
    prefetch_batches: int = 4
    """Batches decoded ahead, a rank."""
    crop_scale_min: float = 0.9
    """Smallest area of the random resized crop, as a share of the image; 1.0 only resizes."""
    colour: ColourConfig = field(default_factory=ColourConfig)
    caption_choice: CaptionChoice = CaptionChoice.own
    caption_dropout: float = 0.0
    """Share of the samples whose caption is replaced by the empty text."""
    max_bad_fraction: float = 0.001
    """Undecodable samples, as a share of those read, above which training stops and names the worst
    shards."""


@dataclass(kw_only=True, slots=True)
class LossConfig:
    kind: LossKind = LossKind.clip
    init_logit_scale: float = 2.6592600369
    """ln(1/0.07): log-space, as the field stores it. Of both kinds; SigLIP's paper has
    ln(10) = 2.303 with kind=sigmoid."""
    init_logit_bias: float = -10.0
    """Of kind=sigmoid."""
    max_logit_scale: float = 4.6051701860
    """ln(100): the clamp, applied in the forward."""
    same_caption_positive: bool = True
    """Equal captions in a global batch count as positives (of kind=clip with shared weight); False:
    each pair has one positive only."""


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    steps: int = 10000
    global_batch_size: int = 1024
    """Over all ranks; the logits cover it. A rank takes global_batch_size / world_size."""
    image_micro_batch_size: int = 0
    """Images that a rank's tower takes at once; 0 is all of its share. Fewer need less memory and a
    second forward; the loss covers the whole batch all the same (grad-cache, arXiv 2101.06983)."""
    text_micro_batch_size: int = 0
    lr: float = 1e-3
    """Peak, after warm-up."""
    image_lr_scale: float = 1.0
    """Factor on lr for the image tower; 0 freezes it."""
    text_lr_scale: float = 1.0
    layer_decay: float = 1.0
    """Factor on lr for each block further from the output (arXiv 2106.08254); 1.0 is none."""
    schedule: Schedule = Schedule.cosine
    warmup_steps: int = 500
    cooldown_steps: int = 0
    """Of schedule=wsd."""
    optimizer: Optimizer = Optimizer.adamw
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6
    weight_decay: float = 0.2
    """Of matrices only: not of biases, gains, embeddings, or the logit scale and bias."""
    grad_clip_norm: float = 1.0
    precision: Precision = Precision.bf16
    compile: Compile = Compile.none
    overlap_text_gather: bool = True
    """The text features of all ranks travel while the image tower runs; False waits for them first:
    the same numbers, for measuring what it saves."""
    ema_decay: float = 0.0
    """Of an average of the weights that is evaluated and exported in their stead; 0 keeps none."""
    seed: int = 0
    threads_per_rank: int = 0
    """torch's threads on CPU; 0 leaves torch's choice (on CUDA it does not matter)."""


@dataclass(kw_only=True, slots=True)
class CheckpointConfig:
    every_steps: int = 1000
    every_minutes: float = 0.0
    """Besides every_steps, by the clock of rank 0; 0 is never."""
    kept: int = 2
    """The newest; older ones are deleted when a newer one is whole."""
    remote: str = ""
    """A folder of any fsspec URL (s3://bucket/runs/mine) that checkpoints are copied to; a run that
    finds none in run_dir goes on from there."""


@dataclass(kw_only=True, slots=True)
class HealthConfig:
    max_skipped_in_a_row: int = 20
    """Steps without a finite gradient after which the run goes back to its last checkpoint and on
    with later data."""
    loss_spike: float = 0.0
    """Go back likewise when the mean loss since the last line is above this many times the median
    of the up to 20 lines before, of which there must be 5; 0 is never."""
    max_rollbacks: int = 3
    """After these the run ends with an error."""
    stall_minutes: float = 30.0
    """Without a finished step or batch of an evaluation: every rank writes its stacks to
    run_dir/stacks, and the run ends."""


@dataclass(kw_only=True, slots=True)
class DeepSpeedConfig:
    """What of DeepSpeed is ours to choose; batch sizes are derived, never written (design of the
    engine)."""

    zero_stage: int = 1
    """1: optimizer state sharded over ranks. 2 and 3 are accepted too; 0 applies NaN gradients and
    has no gradient norm."""
    reduce_bucket_size: int = 50_000_000
    """Elements that are sent at once, at most all there are; stage 3 and offload also allocate a
    buffer of it per communication dtype (DeepSpeed's default 5e8 is 2 GB)."""
    allgather_bucket_size: int = 200_000_000
    offload_optimizer: bool = False
    """Masters and moments in host memory: less on the device, a slower step."""


@dataclass(kw_only=True, slots=True)
class EvalConfig:
    datasets: list[str] = field(default_factory=list)
    """Folders in CLIP_benchmark's WebDataset layout: classification (with class names and
    templates) or retrieval."""
    every_steps: int = 0
    """0 evaluates after the last step only."""
    batch_size: int = 256
    """Images or texts a rank and pass."""


@dataclass(kw_only=True, slots=True)
class LoggingConfig:
    every_steps: int = 10
    wandb_mode: WandbMode = WandbMode.auto
    wandb_project: str = "clip-pretrain"
    wandb_entity: str = ""
    """Empty: the account's default."""
    tensorboard: bool = False
    """Also write run_dir/tensorboard."""


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
    force: list[str] = field(default_factory=list)
    """Fields in which this job knowingly differs from the run in run_dir: [train.lr]."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    deepspeed: DeepSpeedConfig = field(default_factory=DeepSpeedConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    @property
    def world_size(self) -> int:
        return self.cluster.nodes * self.cluster.ranks_per_node

    @property
    def local_batch_size(self) -> int:
        return self.train.global_batch_size // self.world_size
