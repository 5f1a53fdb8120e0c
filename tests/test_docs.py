"""The documents do what they say: their Python runs, prints what they show, and their links lead somewhere.

A section, which is what stands under one ``##`` heading, is one program: its ``python`` blocks run in order and share their
names, so that a reader can copy it. A block prints exactly the ``text`` block that follows it directly, or nothing.
"""

import io
import re
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]

GUIDES = (ROOT / "docs" / "einlayers.md", ROOT / "README.md")
"""The documents whose Python is run."""

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
"""The documents whose links are followed."""

FENCE = "```"
LINK = re.compile(r"\[[^\]]*\]\(([^()\s]+)\)")
ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
"""How an address that is no file of the repository begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fenced:
    """A fenced block: the language that it declares, the line of its first line, and what stands in it."""

    language: str
    line: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Python code, the line of its first line, and what it prints."""

    line: int
    code: str
    output: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """The blocks under one heading of a document, and the line of the heading."""

    document: Path
    line: int
    title: str
    blocks: tuple[Block, ...]

    def __str__(self) -> str:
        name = self.document.relative_to(ROOT) if self.document.is_relative_to(ROOT) else self.document
        return f"{name}:{self.line} {self.title}"

    def run(self) -> None:
        """Run the blocks in one namespace; tracebacks name the document and the line in it.

        Raises:
            AssertionError: a block does not print what the document shows, or one of its assertions fails.
        """
        names: dict[str, Any] = {"__name__": "__main__"}
        for block in self.blocks:
            printed = io.StringIO()
            program = compile("\n" * (block.line - 1) + block.code, str(self.document), "exec")
            with redirect_stdout(printed):
                exec(program, names)
            where = f"{self.document.name}:{block.line}"
            assert printed.getvalue() == block.output, f"{where} prints something else"


def sections(document: Path, text: str) -> list[Section]:
    """The sections that hold Python; what stands above the first heading is one too."""
    found: list[Section] = []
    line, title = 1, "top"
    parts: list[Fenced | str] = []
    for number, part in [*_parts(text), (0, "## end")]:
        if isinstance(part, str) and part.startswith("## "):
            if blocks := _blocks(parts):
                found.append(Section(document=document, line=line, title=title, blocks=blocks))
            line, title, parts = number, part.removeprefix("## "), []
        else:
            parts.append(part)
    return found


def links(text: str) -> list[str]:
    """The targets of links within the repository: files, with or without an anchor, and anchors of the document itself."""
    prose = [part for _, part in _parts(text) if isinstance(part, str)]
    targets = [target for part in prose for target in LINK.findall(re.sub(r"`[^`]*`", "", part))]
    return [target for target in targets if not ELSEWHERE.match(target)]


def leads_somewhere(document: Path, target: str) -> bool:
    """Whether the file of a link exists and has the heading that the anchor asks for."""
    path, _, anchor = target.partition("#")
    file = document.parent / path if path else document
    return file.exists() and (not anchor or anchor in anchors(file.read_text(encoding="utf-8")))


def anchors(text: str) -> list[str]:
    """The headings of a document, as links name them: in lower case, words joined by hyphens, without punctuation."""
    headings = [part.lstrip("#").strip() for _, part in _parts(text) if isinstance(part, str) and part[0] == "#"]
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


def _parts(text: str) -> list[tuple[int, Fenced | str]]:
    """The fenced blocks, and the other lines that are not blank, each with the number of its line."""
    parts: list[tuple[int, Fenced | str]] = []
    opened: tuple[int, str] | None = None
    inside: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if opened is not None and line.rstrip() == FENCE:
            start, language = opened
            parts.append((start, Fenced(language=language, line=start + 1, text="".join(inside))))
            opened, inside = None, []
        elif opened is not None:
            inside.append(f"{line}\n")
        elif line.startswith(FENCE):
            opened = (number, line.removeprefix(FENCE).strip())
        elif line.strip():
            parts.append((number, line))
    assert opened is None, f"the block of line {opened} is not closed"
    return parts


def _blocks(parts: list[Fenced | str]) -> tuple[Block, ...]:
    blocks = []
    for part, after in zip(parts, [*parts, ""][1:], strict=True):
        if isinstance(part, Fenced) and part.language == "python":
            output = after.text if isinstance(after, Fenced) and after.language == "text" else ""
            blocks.append(Block(line=part.line, code=part.text, output=output))
    return tuple(blocks)


SECTIONS = [section for guide in GUIDES for section in sections(guide, guide.read_text(encoding="utf-8"))]


class TestGuide:
    @pytest.mark.parametrize("section", SECTIONS, ids=str)
    def test_runs_and_prints_what_it_shows(self, section: Section) -> None:
        section.run()

    def test_is_run_whole(self) -> None:
        counts = [guide.read_text(encoding="utf-8").count(f"{FENCE}python\n") for guide in GUIDES]
        assert sum(counts) == sum(len(section.blocks) for section in SECTIONS)


class TestLinks:
    @pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: str(document.relative_to(ROOT)))
    def test_lead_somewhere(self, document: Path) -> None:
        targets = links(document.read_text(encoding="utf-8"))
        assert [target for target in targets if not leads_somewhere(document, target)] == []

    def test_are_those_in_prose_within_the_repository(self) -> None:
        text = "[a](b.md#c) and [d](../e), [f](https://g.h) [i](#j) `[k](l)`\n```python\nm[n](o)\n```\n"
        assert links(text) == ["b.md#c", "../e", "#j"]

    def test_are_followed_to_the_heading(self, tmp_path: Path) -> None:
        document = tmp_path / "a.md"
        document.write_text("# Top\n## The papers' numbers\n```sh\n# no heading\n```\n", encoding="utf-8")
        found = [target for target in ("a.md", "#the-papers-numbers", "a.md#top") if leads_somewhere(document, target)]
        lost = [target for target in ("b.md", "#papers", "#no-heading") if leads_somewhere(document, target)]
        assert (len(found), lost) == (3, [])


class TestExtraction:
    def parsed(self, *lines: str) -> list[Section]:
        return sections(Path("guide.md"), "\n".join(lines))

    def only(self, *lines: str) -> Section:
        (section,) = self.parsed(*lines)
        return section

    def test_finds_the_blocks_of_each_section(self) -> None:
        python, text = ("```python", "x = 1", "```"), ("```text", "1", "```")
        found = self.parsed("# T", "## A", *python, "and", *python, "## B", *text, "## C", "", *python, "", *text)
        assert [(section.title, section.line, len(section.blocks)) for section in found] == [("A", 2, 2), ("C", 14, 1)]
        assert [(block.line, block.output) for section in found for block in section.blocks] == [
            (4, ""), (8, ""), (17, "1\n")
        ]  # fmt: skip

    def test_takes_no_heading_from_inside_a_block(self) -> None:
        assert self.only("## A", "```python", "## B", "```").title == "A"

    def test_refuses_a_block_without_end(self) -> None:
        with pytest.raises(AssertionError, match="not closed"):
            self.parsed("## A", "```python", "x = 1")

    def test_shares_names_within_a_section(self) -> None:
        self.only("## A", "```python", "x = 1", "```", "then", "```python", "assert x == 1", "```").run()

    def test_shares_no_names_between_sections(self) -> None:
        first, second = self.parsed("## A", "```python", "x = 1", "```", "## B", "```python", "x", "```")
        first.run()
        with pytest.raises(NameError):
            second.run()

    def test_fails_where_a_block_fails_and_says_where(self) -> None:
        section = self.only("## A", "```python", "x = 1", "assert x == 2", "```")
        with pytest.raises(AssertionError) as failure:
            section.run()
        last = failure.traceback[-1]
        assert (Path(last.path).name, last.lineno + 1) == ("guide.md", 4)

    def test_accepts_the_output_shown(self) -> None:
        self.only("## A", "```python", "print('a', 1)", "print()", "```", "", "```text", "a 1", "", "```").run()

    @pytest.mark.parametrize(
        "shown", [("```text", "2", "```"), ("prose", "```text", "1", "```"), ("```sh", "1", "```")]
    )
    def test_fails_where_the_output_is_another_or_not_shown(self, shown: tuple[str, ...]) -> None:
        with pytest.raises(AssertionError, match=r"guide\.md:3 prints something else"):
            self.only("## A", "```python", "print(1)", "```", *shown).run()
