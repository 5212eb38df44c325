"""The loss group of a training job."""

from dataclasses import dataclass, field

from data_tools.ground.fields import at_least, between, changeable, fixed, share_below_1
from pipeline.config.choices import Exchange, LossBackend, LossKind, ReduceDtype


@dataclass(kw_only=True, slots=True)
class LossConfig:
    kind: LossKind = fixed(
        "its checkpoints have a logit bias with kind=sigmoid, and none with kind=clip",
        field(default=LossKind.clip),
    )
    """Which contrastive loss is trained."""
    init_logit_scale: float = 2.6592600369
    """Logit scale at the start, as a logarithm: ln(1/0.07). For both kinds; SigLIP's paper has
    ln(10) = 2.303 with kind=sigmoid."""
    init_logit_bias: float = between(-100, 100, default=-10.0)
    """Logit bias at the start; only kind=sigmoid has one."""
    max_logit_scale: float = 4.6051701860
    """Largest logit scale, as a logarithm: ln(100). The scale is clamped to it in the forward."""
    same_caption_positive: bool = True
    """Pairs of a global batch with equal captions count as positives of each other; with kind=clip
    they share the weight. False: each pair has one positive."""
    label_smoothing: float = share_below_1("of the targets", default=0.0)
    """Weight of the uniform distribution in the targets of kind=clip; 0 is none."""
    exchange: Exchange = Exchange.gather
    """How the ranks get each other's text features; ring is for kind=sigmoid only."""
    reduce_dtype: ReduceDtype | None = None
    """Data type in which the gradient of the text features is sent from rank to rank; null sends
    what it is summed in, float32. bfloat16 halves the bytes and rounds the gradient once more."""
    backend: LossBackend = changeable(field(default=LossBackend.auto))
    """What computes the tiles of logits."""
    tile: int | None = changeable(
        at_least(1, default=None, null="takes the size that suits the backend")
    )
    """Rows and columns of a tile of logits; null takes the size that suits the backend."""
    stash_mib: float = changeable(at_least(0, default=64.0))
    """kind=clip keeps the logits for the backward, in MiB per rank, if they take no more than this
    and same_caption_positive is false: it saves one matrix product of four. Triton keeps 16 bits
    of each, which costs up to 1e-3 of the scale's gradient at scale 100. 0 always computes them
    again."""
