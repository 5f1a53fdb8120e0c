"""Self-attention over any linear layers, and the one whose layers' blocks are its heads (2410.02117, figure 10)."""

# B batch (any leading axes), T tokens, D width, H heads, K width per head

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from einlayers.dims import check_size
from einlayers.errors import FieldError
from einlayers.families import ALIGNED_IN, ALIGNED_OUT, HeadCase, head_aligned_dims
from einlayers.linear import EinsumLinear

BASE_HEAD_WIDTH = 8
"""The width per head at which muP's attention scale 1/d_head meets the usual 1/sqrt(d_head)."""


class LinearFactory(Protocol):
    """Makes one linear layer; ``zero_init`` asks for a layer that starts as the zero map."""

    def __call__(self, d_in: int, d_out: int, *, zero_init: bool = False) -> nn.Module: ...


class Attention(nn.Module):
    """Self-attention with muP's scale, by default causal and with LayerNorm on the queries and keys of each head.

    ``linear`` makes the query, key and value projections, in this order, and ``output`` (by default the same factory) the
    output projection, which starts as the zero map. ``device`` and ``dtype`` are of the norms; factories know their own.
    Sources: 2203.03466, definition 4.1 (scale); 2410.02117, appendix (norms, zero init).

    Raises:
        FieldError: the width is not a positive whole number, or the number of heads does not divide it.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        linear: LinearFactory,
        *,
        output: LinearFactory | None = None,
        causal: bool = True,
        qk_norm: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        head_width = _head_width(width, num_heads)
        self.num_heads = num_heads
        self.causal = causal
        self.scale = math.sqrt(BASE_HEAD_WIDTH) / head_width
        self.query = linear(width, width)
        self.key = linear(width, width)
        self.value = linear(width, width)
        self.output = (output or linear)(width, width, zero_init=True)

        def norm() -> nn.Module:
            return nn.LayerNorm(head_width, bias=False, device=device, dtype=dtype) if qk_norm else nn.Identity()

        self.query_norm = norm()
        self.key_norm = norm()

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Mix ``(..., T, D)`` along T."""
        q_BHTK = self.query_norm(self._split(self.query(x_BTD)))
        k_BHTK = self.key_norm(self._split(self.key(x_BTD)))
        v_BHTK = self._split(self.value(x_BTD))
        y_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=self.causal, scale=self.scale)
        out_BTD: Tensor = self.output(y_BHTK.transpose(-3, -2).flatten(-2))
        return out_BTD

    def _split(self, x_BTD: Tensor) -> Tensor:
        *batch, D = x_BTD.shape
        return x_BTD.view(*batch, self.num_heads, D // self.num_heads).transpose(-3, -2)


def head_aligned_attention(
    width: int,
    num_heads: int,
    *,
    causal: bool = True,
    case_in: HeadCase = ALIGNED_IN,
    case_out: HeadCase = ALIGNED_OUT,
    rank: int = 1,
    qk_norm: bool = True,
    bias: bool = False,
    weight_norm: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Attention:
    """Attention whose four projections are BTTs with the heads for blocks (2410.02117, figure 10).

    With ``case_in`` ending in ``d|n)`` the queries, keys and values of a head come from blocks of B of its own; with
    ``case_out`` beginning with ``(d|n`` the output projection reads each head by blocks of A of its own, which the defaults
    do. The features are flattened (head, within head) on both sides of the split, so alignment needs no permutation. The
    other cases are not aligned; they are there to compare with.

    Raises:
        FieldError: a size is not a positive whole number, the heads do not divide the width, or a case is unknown.
    """
    head_width = _head_width(width, num_heads)

    def factory(case: HeadCase) -> LinearFactory:
        dims = head_aligned_dims(num_heads, head_width, case, rank)

        def linear(d_in: int, d_out: int, *, zero_init: bool = False) -> nn.Module:
            assert (d_in, d_out) == (dims.d_in, dims.d_out)
            return EinsumLinear.from_dims(
                dims, bias=bias, zero_init=zero_init, weight_norm=weight_norm, device=device, dtype=dtype
            )

        return linear

    return Attention(
        width,
        num_heads,
        factory(case_in),
        output=factory(case_out),
        causal=causal,
        qk_norm=qk_norm,
        device=device,
        dtype=dtype,
    )


def _head_width(width: int, num_heads: int) -> int:
    check_size("width", width)
    check_size("num_heads", num_heads, largest=width)
    if width % num_heads:
        raise FieldError("num_heads", expected=f"a divisor of the width {width}", got=num_heads)
    return width // num_heads
