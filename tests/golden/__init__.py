"""The exact facts of SCIENCE.md, section 4 (``structures.json``; its "schema" entry explains every field), typed."""

import json
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

from einlayers.rank import Axes
from einlayers.theta import Theta


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


def monarch_as_btt() -> MonarchAsBtt:
    """Monarch with four blocks at d = 1024."""
    row = _content()["monarch_btt_equivalence"]
    return MonarchAsBtt(d=row["d"], num_blocks=row["k"], axes=_axes(row["dims"]), params=row["params"])


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


def _numbers(fractions: list[str]) -> tuple[float, ...]:
    return tuple(map(_number, fractions))


def _number(fraction: str) -> float:
    return float(Fraction(fraction))
