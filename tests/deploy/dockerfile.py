"""As much of a Dockerfile's grammar as the tests need: stages, and what each takes from the others."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One ``FROM`` and the instructions below it, each a pair of its keyword and the rest of the line."""

    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def arguments(self, keyword: str) -> list[str]:
        """What stands after every ``keyword`` of this stage."""
        return [rest for name, rest in self.instructions if name == keyword]


def parse_stages(text: str) -> dict[str, Stage]:
    """The named stages of a Dockerfile, in order."""
    stages: dict[str, Stage] = {}
    current = Stage(base="")
    for keyword, rest in _instructions(text):
        if keyword == "FROM":
            base, name = re.fullmatch(r"(\S+) AS (\S+)", rest).groups()  # type: ignore[union-attr]  # ours are all named
            current = stages[name] = Stage(base=base)
        else:
            current.instructions.append((keyword, rest))
    return stages


def ancestry(stages: Mapping[str, Stage], name: str) -> Iterator[Stage]:
    """The stage ``name`` and those that it is built on with ``FROM``, the nearest first."""
    while name in stages:
        yield stages[name]
        name = stages[name].base


def sources(stages: Mapping[str, Stage], name: str) -> set[str]:
    """The names of all stages that anything in the image of ``name`` can come from."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        stage = waiting.pop()
        if stage in stages and stage not in found:
            found.add(stage)
            copied_from = re.findall(r"--from=(\S+)", "\n".join(stages[stage].arguments("COPY")))
            waiting += [stages[stage].base, *copied_from]
    return found


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    for line in re.sub(r"\s*\\\n\s*", " ", "\n".join(lines)).splitlines():
        keyword, _, rest = line.partition(" ")
        yield keyword.upper(), rest.strip()
