"""Top-k routing of tokens to experts: which experts, with which weights, how evenly, and the computation of only those.

The gate of BTT-MoE (2410.02117): logits linear in the token, softmax over the chosen k. The balance loss is that
of 2101.03961, equation 4, the z loss that of 2202.08906, equation 5.
"""

# T tokens, E experts, K choices of each token, N tokens of one expert, I inputs, O outputs

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from einlayers.dims import check_size
from einlayers.errors import FieldError

Z_SHARE = 0.1
"""The weight of the z loss in the auxiliary loss (2410.02117, reference code)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Routing:
    """The experts of each token, best first, and what they were chosen from."""

    experts: Tensor
    """``(T, K)`` int64"""
    weights: Tensor
    """``(T, K)``, each row sums to 1"""
    logits: Tensor
    """``(T, E)``"""

    @property
    def counts(self) -> Tensor:
        """How many tokens each expert has: ``(E,)`` int64."""
        return torch.bincount(self.experts.flatten(), minlength=self.logits.shape[1])

    @property
    def switch_loss(self) -> Tensor:
        """``E sum_e p_e f_e``, mean probability times share of assignments; 1 where even (2101.03961, eq. 4)."""
        p_E = self.logits.softmax(1).sum(0) / max(1, len(self.logits))
        f_E = self.counts.to(p_E.dtype) / max(1, self.experts.numel())
        return len(p_E) * (p_E * f_E).sum()

    @property
    def z_loss(self) -> Tensor:
        """``mean_t logsumexp(logits)**2``, which keeps logits small (2202.08906, eq. 5)."""
        return self.logits.logsumexp(1).square().sum() / max(1, len(self.logits))

    @property
    def aux_loss(self) -> Tensor:
        """``switch_loss + 0.1 z_loss``; 0 of no tokens."""
        return self.switch_loss + Z_SHARE * self.z_loss


def route(logits_TE: Tensor, top_k: int) -> Routing:
    """The ``top_k`` largest logits of every token, and their softmax.

    Equal logits are taken in an order that is rotated by ``top_k`` from each token to the next. Where all are equal, as at
    a gate of zeros, every expert gets the same number of tokens up to 1; a fixed order would give all to the first experts.
    Without equal logits the choice is that of ``torch.topk``, and does not depend on the place of the token.

    Raises:
        FieldError: ``top_k`` is not from 1 to the number of experts.
    """
    num_tokens, num_experts = logits_TE.shape
    check_size("top_k", top_k, largest=num_experts)
    token_T1 = torch.arange(num_tokens, device=logits_TE.device)[:, None]
    rotated_TE = (token_T1 * top_k + torch.arange(num_experts, device=logits_TE.device)) % num_experts
    best_TE = logits_TE.detach().gather(1, rotated_TE).argsort(dim=1, descending=True, stable=True)
    experts_TK = rotated_TE.gather(1, best_TE[:, :top_k])
    return Routing(experts=experts_TK, weights=logits_TE.gather(1, experts_TK).softmax(1), logits=logits_TE)


class Router(nn.Linear):
    """The gate: logits ``(T, num_experts)`` of tokens ``(T, d_in)``; ``route`` chooses by them. It starts at zero.

    Computed in the type of its weight also under autocast, and chosen from in float32 or wider: in bfloat16 different
    logits would often be equal (2101.03961, section 2.4).

    Raises:
        FieldError: a size is not a positive whole number, or ``top_k`` exceeds ``num_experts``.
    """

    aux_loss: Tensor | None
    """Of the last ``route`` in training mode, until ``auxiliary_loss`` takes it; never saved or copied."""

    def __init__(
        self,
        d_in: int,
        num_experts: int,
        *,
        top_k: int = 2,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_size("d_in", d_in)
        check_size("num_experts", num_experts)
        check_size("top_k", top_k, largest=num_experts)
        super().__init__(d_in, num_experts, bias=False, device=device, dtype=dtype)
        self.top_k = top_k
        self.aux_loss = None

    def reset_parameters(self) -> None:
        """Zero the gate: all experts are equally good."""
        nn.init.zeros_(self.weight)

    def forward(self, x_TI: Tensor) -> Tensor:
        """The logits."""
        with torch.autocast(x_TI.device.type, enabled=False):
            return F.linear(x_TI.to(self.weight.dtype), self.weight)

    def route(self, x_TI: Tensor) -> Routing:
        """Choose the experts of every token; in training mode, keep the auxiliary loss."""
        logits_TE: Tensor = self(x_TI)
        routing = route(logits_TE.to(torch.promote_types(logits_TE.dtype, torch.float32)), self.top_k)
        self.aux_loss = routing.aux_loss if self.training else None
        return routing

    def __getstate__(self) -> dict[str, Any]:
        # The loss belongs to one forward pass: torch refuses to copy it, and its graph does not pickle.
        return self.__dict__ | {"aux_loss": None}

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, top_k={self.top_k}"


def auxiliary_loss(model: nn.Module) -> Tensor:
    """Take the auxiliary losses of the last forward pass: their mean over the routers of ``model`` that ran in it.

    To be added to the training loss, times 0.01 in 2410.02117. A loss is taken once, so that none is left over for a later
    pass; a forward pass in evaluation mode discards it. Of a layer that ran twice before, the last pass counts.

    Raises:
        FieldError: no router of the model has a loss.
    """
    routers = [module for module in model.modules() if isinstance(module, Router)]
    losses = [router.aux_loss for router in routers if router.aux_loss is not None]
    if not losses:
        expected = "a model with routers, after a forward pass in training mode whose loss was not taken before"
        raise FieldError("model", expected=expected, got=f"{type(model).__name__} with {len(routers)} routers")
    for router in routers:
        router.aux_loss = None
    return torch.stack(losses).mean()


def mix(x_TI: Tensor, routing: Routing, experts: Callable[[Sequence[Tensor]], Sequence[Tensor]]) -> Tensor:
    """``y[t] = sum_k weight[t,k] expert[t,k](x[t])``: ``(T, I)`` to ``(T, O)``, computing the chosen experts only.

    ``experts`` maps the rows of every expert, ``(N, I)`` each and none left out, to ``(N, O)``. How many each has is read by
    the host, which on a GPU waits for it, once a layer.
    """
    order = routing.experts.flatten().argsort(stable=True)
    counts = routing.counts.tolist()
    tokens = torch.split(order // routing.experts.shape[1], counts)
    weights = torch.split(routing.weights.flatten().index_select(0, order), counts)
    parts = experts(_Gathered.apply(x_TI, tokens))  # type: ignore[no-untyped-call]
    # The type that autocast chose shows in the experts that had something to compute.
    dtype = max(parts, key=len).dtype
    wide = torch.promote_types(dtype, routing.weights.dtype)
    y_TO = torch.zeros(len(x_TI), parts[0].shape[1], device=x_TI.device, dtype=wide)
    # One expert after the other: its rows are still in the cache, and no two of them belong to one token.
    for token_N, weight_N, y_NO in zip(tokens, weights, parts, strict=True):
        y_TO = y_TO.index_add_(0, token_N, (y_NO * weight_N[:, None]).to(wide))
    return y_TO.to(dtype)


class _Gathered(torch.autograd.Function):
    """The rows of each expert; torch's own gradient makes a tensor of all tokens for every expert."""

    @staticmethod
    def forward(ctx: Any, x_TI: Tensor, tokens: Sequence[Tensor]) -> tuple[Tensor, ...]:
        ctx.tokens, ctx.num_tokens = tokens, len(x_TI)
        return tuple(x_TI.index_select(0, token_N) for token_N in tokens)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        dx_TI = gradients[0].new_zeros(ctx.num_tokens, gradients[0].shape[1])
        for token_N, dx_NI in zip(ctx.tokens, gradients, strict=True):
            dx_TI = dx_TI.index_add_(0, token_N, dx_NI)
        return dx_TI, None
