"""The exact facts of SCIENCE.md, section 4 (``structures.json``; its "schema" entry explains every field), typed."""

import json
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from einlayers.families import HeadCase
from einlayers.rank import Axes
from einlayers.theta import Theta

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exponents:
    """A theta and its coordinates in the cheaper contraction order; ``reference`` ones are from the papers' GPT grid."""

    name: str
    reference: bool
    theta: Theta
    omega: float
    psi: float
    nu: float
    canonical: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """The muP facts of one factor of one layer."""

    fan_in: int
    fan_out: int
    init_var: float
    lr_mult: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A named theta between two widths, its axes by the papers' rounding, and what follows from them."""

    name: str
    d_in: int
    d_out: int
    axes: Axes
    params: int
    macs_a_first: int
    macs_b_first: int
    inter_a_first: int
    inter_b_first: int
    padding_in: float
    padding_out: float
    A: Factor
    B: Factor


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRank:
    """The measured rank of one layer's map between the requested widths."""

    name: str
    d_in: int
    d_out: int
    axes: Axes
    rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RankException:
    """Axes whose measured rank is below the minimal cut."""

    axes: Axes
    bound: int
    rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PsiDisagreement:
    """A theta for which the published rank exponent is wrong."""

    name: str
    theta: Theta
    published: float
    psi: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalisation:
    """Weights whose groups do not sum to 1, the exponents that they become, and these at d = 1024."""

    weights: tuple[float, ...]
    accepted: bool
    exponents: tuple[float, ...]
    axes_1024: Axes


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A whole character GPT with one structure in all of its layers."""

    name: str
    width: int
    depth: int
    context: int
    d_head: int
    params: int
    macs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """A mixture of square layers, each a rank-1 Block Tensor-Train of ``m`` x ``m`` features; losses at a zero gate."""

    d: int
    num_experts: int
    top_k: int
    m: int
    params: int
    gate_params: int
    macs: int
    gate_macs: int
    macs_of_all_experts: int
    overhead_of_all_experts: float
    switch_loss: float
    z_loss: float
    aux_loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Monarch:
    """The parameters of the papers' rectangular Monarch layer, and these as a share of the dense layer's."""

    d_in: int
    d_out: int
    num_blocks: int
    params: int
    share_of_dense: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadAligned:
    """A square Block Tensor-Train whose axes are the heads and the features of each."""

    width: int
    num_heads: int
    head_width: int
    case: HeadCase
    axes: Axes
    params: int
    macs: int
    rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A square Block Tensor-Train of ``num_cores`` cores, both widths split into axes of ``m`` features."""

    d: int
    num_cores: int
    m: int
    rank: int
    params: int
    macs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MonarchBlock:
    """The rows (l, j) and columns (k, i) of one j and one k, as the matrix [l, i], and what its best rank 1 loses."""

    j: int
    k: int
    entries: tuple[tuple[float, ...], ...]
    squared_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MonarchProjection:
    """The squared distance of a matrix from the nearest Monarch matrix of ``m`` blocks, as a sum over blocks."""

    m: int
    squared_norm: float
    squared_error: float
    blocks: tuple[MonarchBlock, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FourierProjection:
    """The same of the unitary Fourier matrix of ``n`` features, in square blocks; then with its columns transposed."""

    n: int
    squared_error: float
    squared_error_transposed: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingExample:
    """Logits of three tokens, the experts that they choose, and the losses of that choice."""

    logits: tuple[tuple[float, ...], ...]
    top_k: int
    experts: tuple[tuple[int, ...], ...]
    weights: tuple[tuple[float, ...], ...]
    switch_loss: float
    z_loss: float
    aux_loss: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MonarchAsBtt:
    """The axes of a Monarch matrix of ``num_blocks`` blocks, written as a Block Tensor-Train."""

    d: int
    num_blocks: int
    axes: Axes
    params: int


def exponents() -> list[Exponents]:
    """Reference, named and tricky thetas."""
    return [
        Exponents(
            name=row["name"],
            reference=row["group"] == "ref",
            theta=Theta.of(_numbers(row["theta"])),
            omega=_number(row["omega_best_order"]),
            psi=_number(row["psi_mincut"]),
            nu=_number(row["nu_best_order"]),
            canonical=row["canonical"],
        )
        for row in _rows("exponents")
    ]


@cache
def thetas() -> dict[str, Theta]:
    """Every named theta of the file."""
    recorded = {row.name: row.theta for row in exponents()} | {row.name: row.theta for row in psi_disagreements()}
    return recorded | {name: Theta.parse(text) for name, text in _UNRECORDED.items()}


def reference_thetas() -> dict[str, Theta]:
    """The 23 thetas of the papers' grid: btt1 to btt16 without btt4, tt1 to tt4, l1, l2, g1, g2."""
    return {name: theta for name, theta in thetas().items() if name.rstrip("0123456789") in {"btt", "tt", "l", "g"}}


@cache
def layers() -> list[Layer]:
    """Named thetas at 17 pairs of widths."""
    return [
        Layer(
            name=row["name"],
            d_in=row["d_in"],
            d_out=row["d_out"],
            axes=_axes(row["dims"]),
            params=row["params"],
            macs_a_first=row["macs_A_first"],
            macs_b_first=row["macs_B_first"],
            inter_a_first=row["inter_A_first"],
            inter_b_first=row["inter_B_first"],
            padding_in=_number(row["rel_pad_in"]),
            padding_out=_number(row["rel_pad_out"]),
            A=_factor(row, "A"),
            B=_factor(row, "B"),
        )
        for row in _rows("layers")
    ]


def layer_ranks() -> list[LayerRank]:
    """Ranks that were measured over a finite field and by a singular value decomposition."""
    return [
        LayerRank(
            name=row["name"],
            d_in=row["d_in"],
            d_out=row["d_out"],
            axes=_axes(row["dims"]),
            rank=row["rank_after_pad_crop"],
        )
        for row in _rows("layer_ranks")
    ]


def rank_exceptions() -> list[RankException]:
    """The exceptions of the exhaustive grid of axes 1..3."""
    return _exceptions(_content()["rank_bruteforce"]["mincut_exceptions"])


def pencil_exceptions() -> list[RankException]:
    """The exceptions among sums of a few Kronecker products with axes up to 9."""
    return _exceptions(_content()["rank_bruteforce"]["pencil_scan"]["exceptions"])


def psi_disagreements() -> list[PsiDisagreement]:
    """The thetas for which the published psi differs from the true exponent."""
    return [
        PsiDisagreement(
            name=row["name"],
            theta=Theta.of(_numbers(row["theta"])),
            published=_number(row["psi_formula"]),
            psi=_number(row["psi_mincut"]),
        )
        for row in _rows("psi_disagreements")
    ]


def normalisations() -> list[Normalisation]:
    """Weights and the thetas that they are normalised to."""
    return [
        Normalisation(
            weights=_numbers(row["theta"]),
            accepted=row["accepted_by_tol_1e_2"],
            exponents=_numbers(row["normalised"]),
            axes_1024=_axes(row["dims_1024"]),
        )
        for row in _rows("normalise")
    ]


def models() -> list[Model]:
    """Totals of whole models; MACs per token include attention and head."""
    return [
        Model(
            name=row["name"],
            width=row["d"],
            depth=row["L"],
            context=row["ctx"],
            d_head=row["d_head"],
            params=row["params_total"],
            macs=row["nonemb_macs_per_token"] + row["head_macs_per_token"],
        )
        for row in _rows("model")
    ]


def mixtures() -> list[Mixture]:
    """Two of 8 and of 16 experts at three widths."""
    return [
        Mixture(
            d=row["d"],
            num_experts=row["E"],
            top_k=row["k"],
            m=row["m"],
            params=row["total_params"],
            gate_params=row["gate_params"],
            macs=row["active_macs"],
            gate_macs=row["gate_macs"],
            macs_of_all_experts=row["macs_if_all_experts_computed"],
            overhead_of_all_experts=_number(row["overhead_all_experts"]),
            switch_loss=row["switch_at_zero_gate"],
            z_loss=row["z_at_zero_gate"],
            aux_loss=row["aux_loss_at_zero_gate"],
        )
        for row in _rows("moe")
    ]


def monarchs() -> list[Monarch]:
    """Square and rectangular layers, some of widths that the blocks do not divide."""
    return [
        Monarch(
            d_in=row["d_in"],
            d_out=row["d_out"],
            num_blocks=row["nblocks"],
            params=row["params"],
            share_of_dense=_number(row["fraction_of_dense"]),
        )
        for row in _rows("monarch")
    ]


def head_aligned() -> list[HeadAligned]:
    """Heads of width 64 at four widths, in the case that has full rank and few parameters."""
    return [
        HeadAligned(
            width=row["d_model"],
            num_heads=row["n_head"],
            head_width=row["d_head"],
            case=row["case"],
            axes=_axes(row["dims"]),
            params=row["params"],
            macs=row["macs"],
            rank=row["rank"],
        )
        for row in _rows("head_aligned")
    ]


def index_classes() -> dict[int, int]:
    """How many kinds of axes the einsum of an input, an output and so many factors can have."""
    return {row["K"]: row["index_classes"] for row in _rows("k_factor") if "index_classes" in row}


def chains() -> list[Chain]:
    """Two to four cores of three ranks at d = 4096."""
    return [
        Chain(
            d=row["d"],
            num_cores=row["K"],
            m=row["m"],
            rank=row["rank"],
            params=row["params"],
            macs=row["macs"],
        )
        for row in _rows("k_factor")
        if "rank" in row
    ]


def monarch_projection() -> MonarchProjection:
    """The projection of the numbers 0 to 15, row by row in a matrix of 4 x 4."""
    row = _content()["monarch_projection"]
    return MonarchProjection(
        m=row["m"],
        squared_norm=row["frob_sq"],
        squared_error=row["optimal_residual_frob_sq"],
        blocks=tuple(
            MonarchBlock(j=block["j"], k=block["k"], entries=_table(block["block"]), squared_error=block["sigma2_sq"])
            for block in row["blocks"]
        ),
    )


def fourier_projections() -> list[FourierProjection]:
    """The projections of three Fourier matrices."""
    return [
        FourierProjection(
            n=row["n"],
            squared_error=row["residual_dft_natural_columns"],
            squared_error_transposed=row["residual_dft_transposed_columns"],
        )
        for row in _content()["monarch_dft"]["cases"]
    ]


def routing_example() -> RoutingExample:
    """Three tokens that choose two of four experts."""
    row = _content()["routing_example"]
    return RoutingExample(
        logits=_table(row["logits"]),
        top_k=row["k"],
        experts=_table(row["selected"]),
        weights=_table(row["weights"]),
        switch_loss=row["switch"],
        z_loss=row["z"],
        aux_loss=row["aux"],
    )


def monarch_as_btt() -> MonarchAsBtt:
    """Monarch with four blocks at d = 1024."""
    row = _content()["monarch_btt_equivalence"]
    return MonarchAsBtt(d=row["d"], num_blocks=row["k"], axes=_axes(row["dims"]), params=row["params"])


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeMultiplier:
    """Two power laws without an irreducible loss, as (scale, exponent), and the ratio of the compute for a loss."""

    dense: tuple[float, float]
    structured: tuple[float, float]
    loss: float
    dense_compute: float
    structured_compute: float
    multiplier: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeOptimum:
    """The constants of a published law of both sizes, and where it is lowest at a compute of 6 N D."""

    irreducible: float
    params_scale: float
    params_exponent: float
    data_scale: float
    data_exponent: float
    compute: float
    params: float
    data: float
    loss: float


def compute_multipliers() -> list[ComputeMultiplier]:
    """The entry "scaling"."""
    return [
        ComputeMultiplier(
            dense=(row["dense"]["c"], row["dense"]["exponent"]),
            structured=(row["struct"]["c"], row["struct"]["exponent"]),
            loss=row["loss"],
            dense_compute=row["C_dense"],
            structured_compute=row["C_struct"],
            multiplier=row["multiplier"],
        )
        for row in _rows("scaling")
    ]


def compute_optima() -> list[ComputeOptimum]:
    """The entry "chinchilla"."""
    return [
        ComputeOptimum(
            irreducible=row["E"],
            params_scale=row["A"],
            params_exponent=row["alpha"],
            data_scale=row["B"],
            data_exponent=row["beta"],
            compute=row["C"],
            params=row["N_opt"],
            data=row["D_opt"],
            loss=row["L_opt"],
        )
        for row in _rows("chinchilla")
    ]


_UNRECORDED = {
    "btt2": "(0.33|0|0.67|0|0.67|0.33|0)",
    "btt3": "(0.25|0|0.75|0|0.75|0.25|0)",
    "btt5": "(0.67|0|0.33|0|0.33|0.67|0)",
    "btt8": "(0.33|0|0.67|0|0.33|0.67|0)",
    "btt12": "(0.5|0|0.5|0|0.5|0.5|0.33)",
    "btt14": "(0.67|0|0.33|0|0.33|0.67|0.25)",
    "btt15": "(0.67|0|0.33|0|0.67|0.33|0.25)",
    "tt3": "(0.5|0.5|0|0.5|0.5|0|0.25)",
    "btt_fig2*": "(0.8|0|0.2|0|0.8|0.2|0.1)",
    "degenerate_rho": "(0.5|0|0.5|0|0.5|0.5|0.75)",
    "dense_as_lowrank_rho1": "(1|0|0|0|1|0|1)",
    "dense_single_factor": "(1|0|0|1|0|0|0)",
    "kronecker*": "(0.5|0.5|0|0.5|0.5|0|0)",
    "omega0_but_beta_pos": "(0.25|0.25|0.5|0|0.5|0.5|0)",
}
"""Thetas that the file names without their exponents; their axes at its 17 pairs of widths leave no other choice."""


@cache
def _content() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(__file__).with_name("structures.json").read_text(encoding="utf-8"))
    return content


def _rows(entry: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = _content()[entry]
    return rows


def _exceptions(rows: list[dict[str, Any]]) -> list[RankException]:
    return [RankException(axes=_axes(row["dims"]), bound=row["bound"], rank=row["rank"]) for row in rows]


def _factor(row: dict[str, Any], name: str) -> Factor:
    return Factor(
        fan_in=row[f"{name}_fan_in"],
        fan_out=row[f"{name}_fan_out"],
        init_var=_number(row[f"{name}_init_var"]),
        lr_mult=_number(row[f"{name}_lr_mult"]),
    )


def _axes(sizes: list[int]) -> Axes:
    alpha, beta, gamma, delta, epsilon, phi, rho = sizes
    return (alpha, beta, gamma, delta, epsilon, phi, rho)


def _table(rows: list[list[T]]) -> tuple[tuple[T, ...], ...]:
    return tuple(map(tuple, rows))


def _numbers(fractions: list[str]) -> tuple[float, ...]:
    return tuple(map(_number, fractions))


def _number(fraction: str) -> float:
    return float(Fraction(fraction))
