"""Tables in Markdown."""

from collections.abc import Iterable, Sequence


def table(columns: list[str], rows: Iterable[Sequence[object]]) -> str:
    """The rows under their columns; numbers are to the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    numeric = [bool(cells) and all(_is_number(row[n]) for row in cells) for n in range(len(columns))]
    rule = ["---:" if right else "---" for right in numeric]
    return "\n".join(f"| {' | '.join(line)} |" for line in [columns, rule, *cells])


def _is_number(cell: str) -> bool:
    return cell == "-" or cell.replace(",", "").replace(".", "", 1).removeprefix("-").isdigit()
