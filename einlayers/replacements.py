"""What was done to the linear layers of a model, as values that print as a table."""

from collections.abc import Iterable
from dataclasses import dataclass

from einlayers.dims import Dims


@dataclass(frozen=True, slots=True, kw_only=True)
class Replacement:
    """One layer that was replaced; parameters with the bias, MACs per row of its input without it.

    ``dims`` are the axes of the structured layer; ``macs`` are None for structures that do not have them. ``error`` is
    that of the projection; None where the new layer has nothing to do with the old weights, or is the same map.
    """

    name: str
    d_in: int
    d_out: int
    dims: Dims | None
    params_before: int
    params_after: int
    macs_before: int | None
    macs_after: int | None
    error: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """One layer that matched and was left as it is, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Replacements:
    """What was done to a model; prints as a table. A layer with several names is here once, under its first."""

    replaced: tuple[Replacement, ...]
    kept: tuple[Kept, ...] = ()

    @property
    def params_before(self) -> int:
        """The parameters of all replaced layers, before."""
        return sum(row.params_before for row in self.replaced)

    @property
    def params_after(self) -> int:
        """The parameters of all replaced layers, after."""
        return sum(row.params_after for row in self.replaced)

    @property
    def macs_before(self) -> int | None:
        """The MACs of all replaced layers, each applied to one row, before."""
        return _total(row.macs_before for row in self.replaced)

    @property
    def macs_after(self) -> int | None:
        """The MACs of all replaced layers, each applied to one row, after."""
        return _total(row.macs_after for row in self.replaced)

    def __str__(self) -> str:
        header = ("layer", "widths", "a, b, g | d, e, f | r", "parameters", "MACs", "error")
        total = (
            "total", "", "", _change(self.params_before, self.params_after), _change(self.macs_before, self.macs_after), ""
        )  # fmt: skip
        table = [header, *map(_row, self.replaced), total]
        columns = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(map(str.ljust, row, columns)).rstrip() for row in table]
        return "\n".join([*lines, *(f"kept {kept.name}: {kept.reason}" for kept in self.kept)])


def _row(row: Replacement) -> tuple[str, ...]:
    sizes = [f"{size}" for size in row.dims.axes] if row.dims else []
    axes = " | ".join((", ".join(sizes[:3]), ", ".join(sizes[3:6]), sizes[6])) if sizes else "-"
    params, macs = _change(row.params_before, row.params_after), _change(row.macs_before, row.macs_after)
    return (
        row.name,
        f"{row.d_in} -> {row.d_out}",
        axes,
        params,
        macs,
        "-" if row.error is None else f"{row.error:.3g}",
    )


def _change(before: int | None, after: int | None) -> str:
    if before is None or after is None:
        return "-"
    return f"{before:,} -> {after:,}" + (f" ({after / before:.0%})" if before else "")


def _total(counts: Iterable[int | None]) -> int | None:
    known = list(counts)
    return None if None in known else sum(count for count in known if count is not None)
