"""The words that a training job can choose from: one Enum per setting."""

from enum import Enum


class Stem(Enum):
    """How the vision tower turns pixels into patch embeddings."""

    patch = "patch"
    """One convolution of stride patch_size, as in ViT and CLIP."""
    conv = "conv"
    """Three stride-2 3x3 convolutions (patch_size 8): sees better at few pixels and few samples
    (arXiv 2106.14881)."""


class Precision(Enum):
    """What each precision stores, sends and computes in: pipeline/engine/README.md. In all of them
    the loss and the logit scale are float32 in the forward."""

    fp32 = "fp32"
    bf16 = "bf16"
    """Autocast of matrix products to bfloat16; weights and moments stay float32."""
    pure_bf16 = "pure_bf16"
    """Weights and gradients in bfloat16 beside sharded float32 masters and moments."""
    fp16 = "fp16"
    """Weights and gradients in float16 under a dynamic loss scale: for GPUs without bfloat16."""


class LossKind(Enum):
    """Which contrastive loss is trained."""

    clip = "clip"
    """Symmetric InfoNCE (arXiv 2103.00020)."""
    sigmoid = "sigmoid"
    """A sigmoid for each pair, with a learned bias (arXiv 2303.15343)."""


class Exchange(Enum):
    """How the ranks get each other's text features."""

    gather = "gather"
    """Each rank holds those of the global batch, while the image tower runs."""
    ring = "ring"
    """Each rank holds two blocks of its own batch's size; blocks and their gradients travel one
    lap from rank to rank. Less memory, and no overlap with the image tower."""


class ReduceDtype(Enum):
    """Data type of a gradient on its way between ranks."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class LossBackend(Enum):
    """What computes the tiles of logits."""

    auto = "auto"
    """triton on a CUDA device where it is installed, else torch."""
    triton = "triton"
    torch = "torch"


class Optimizer(Enum):
    """What turns gradients into steps."""

    adamw = "adamw"
    lamb = "lamb"
    """AdamW whose step is scaled by each tensor's norm (arXiv 1904.00962), for batches of 32k and
    more."""


class Schedule(Enum):
    """Learning-rate schedule after warm-up; depends on the step only."""

    cosine = "cosine"
    """Half a cosine wave, to zero at the last step."""
    linear = "linear"
    """A straight line to zero at the last step."""
    wsd = "wsd"
    """Constant, then linear to zero over the last train.cooldown_steps (warm-up, stable, decay)."""


class Compile(Enum):
    """What torch.compile compiles of the towers: minutes at the start, faster steps on a GPU."""

    none = "none"
    blocks = "blocks"
    """Each Transformer block: one graph serves all blocks of a tower, so it compiles quickly."""
    towers = "towers"
    """Each tower as one graph."""


class CaptionChoice(Enum):
    """Which caption of a sample is used: its .txt, or one of the further `captions` in its json."""

    own = "own"
    """The .txt."""
    random = "random"
    """One of all captions, each equally likely; drawn anew in each epoch."""
    longest = "longest"
    shortest = "shortest"


class WandbMode(Enum):
    """Where Weights & Biases keeps a run's log."""

    auto = "auto"
    """Online when there is an API key (WANDB_API_KEY or a login), else offline."""
    online = "online"
    offline = "offline"
    disabled = "disabled"
