"""A slice of the soak, and its report."""

from pathlib import Path

import pytest

from tests.faults.findings import describe_machine, render, write
from tests.faults.schedule import LIGHT, make_schedule
from tests.faults.site import Site
from tests.faults.soak import DOCUMENT, soak


@pytest.mark.parametrize("site", ["sqlite"], indirect=True)
class TestSoak:
    def test_of_some_faults_loses_nothing_and_doubles_nothing(self, site: Site) -> None:
        findings = soak(site, make_schedule(0, 8, LIGHT), 0, print)
        assert (findings.violations, findings.num_lost, findings.num_doubled) == ([], 0, 0)
        told = render(findings, describe_machine(site.database))
        assert told.startswith("## SQLite: 8 faults, 0 trials lost, 0 doubled\n")
        assert all(f"| {hit.fault} |" in told for hit in findings.hits)


class TestReport:
    def test_replaces_its_own_section_and_nothing_else(self, tmp_path: Path) -> None:
        document = tmp_path / "report.md"
        document.write_text("before\n<!-- soak on a -->\nold\n<!-- end of soak on a -->\nafter\n", encoding="utf-8")
        for section in ("new\n", "newer\n"):
            write(document, "a", section)
        assert document.read_text(encoding="utf-8") == (
            "before\n<!-- soak on a -->\nnewer\n<!-- end of soak on a -->\nafter\n"
        )

    def test_is_not_written_where_it_has_no_place(self, tmp_path: Path) -> None:
        document = tmp_path / "report.md"
        document.write_text("before\n", encoding="utf-8")
        with pytest.raises(ValueError, match="expected the lines <!-- soak on a --> and <!-- end of soak on a -->"):
            write(document, "a", "new\n")

    @pytest.mark.parametrize("name", ["sqlite", "postgres"])
    def test_has_its_place_in_the_document(self, name: str) -> None:
        text = DOCUMENT.read_text(encoding="utf-8")
        assert text.count(f"<!-- soak on {name} -->") == text.count(f"<!-- end of soak on {name} -->") == 1
