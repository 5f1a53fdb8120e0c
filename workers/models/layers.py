"""What the blocks of a proxy's model are made of: one object, so that models need not know what a proxy can ask for."""

# B batch (any leading axes), D width

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from einlayers.attention import Attention, LinearFactory, head_aligned_attention
from einlayers.moe import FeedForwardMoE
from einlayers.theta import Theta
from search.proxies.base import ProxySettings
from search.proxies.shapes import Mixture
from search.proxies.transformer import AttentionSettings
from workers.models.linears import dense_linear, linear_factory, mixture_factory


@dataclass(frozen=True, slots=True, kw_only=True)
class Layers:
    """What makes the layers of a model's blocks.

    ``linear`` makes single layers, of which the rest consists; but ``attention``, if there is one, makes those of attention,
    ``feed_forward`` makes whole feed-forward blocks of a width, and where there is a ``head_aligned_rank`` attention has
    layers of its own.
    ``branch_scale`` is what the model multiplies its residual branches by.
    """

    linear: LinearFactory = dense_linear
    attention: LinearFactory | None = None
    feed_forward: Callable[[int], nn.Module] | None = None
    head_aligned_rank: int | None = None
    weight_norm: bool = False
    branch_scale: float = 1.0

    def make_attention(self, width: int, num_heads: int, *, causal: bool) -> Attention:
        """Self-attention of a width."""
        if self.head_aligned_rank is None:
            return Attention(width, num_heads, self.attention or self.linear, causal=causal)
        return head_aligned_attention(
            width, num_heads, causal=causal, rank=self.head_aligned_rank, weight_norm=self.weight_norm
        )

    def make_feed_forward(self, width: int) -> nn.Module:
        """A feed-forward block of a width."""
        return FeedForward(width, self.linear) if self.feed_forward is None else self.feed_forward(width)


class FeedForward(nn.Module):
    """Two layers that widen four times and narrow again, with a GELU between; the second one starts as the zero map."""

    def __init__(self, width: int, linear: LinearFactory) -> None:
        super().__init__()
        self.up = linear(width, 4 * width)
        self.down = linear(4 * width, width, zero_init=True)

    def forward(self, x_BD: Tensor) -> Tensor:
        """Map ``(..., D)`` to the same shape."""
        y_BD: Tensor = self.down(F.gelu(self.up(x_BD)))
        return y_BD


def layers_of(settings: ProxySettings, theta: Theta) -> Layers:
    """The layers of structure ``theta``, or of those of their groups, as these settings want them."""
    mixture, inner = settings.mixture, settings.theta_of("feed_forward", theta)
    return Layers(
        linear=_factory(settings, inner),
        attention=_factory(settings, settings.theta_of("attention", theta)),
        feed_forward=_feed_forward_mixture(inner, mixture) if mixture and mixture.of == "feed_forward" else None,
        head_aligned_rank=settings.head_aligned_rank if isinstance(settings, AttentionSettings) else None,
        weight_norm=settings.weight_norm,
        branch_scale=settings.branch_scale,
    )


def _factory(settings: ProxySettings, theta: Theta) -> LinearFactory:
    if settings.mixture is not None and settings.mixture.of == "layers":
        return mixture_factory(theta, settings.mixture)
    return linear_factory(theta, weight_norm=settings.weight_norm)


def _feed_forward_mixture(theta: Theta, mixture: Mixture) -> Callable[[int], nn.Module]:
    return lambda width: FeedForwardMoE(
        width,
        4 * width,
        theta=theta,
        num_experts=mixture.num_experts,
        top_k=mixture.top_k,
        bias=False,
        zero_init=True,
    )
