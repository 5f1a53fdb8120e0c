"""``docs/fidelity.md``, of what the studies found."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.fidelity.coverage import NUM_DRAWS
from benchmarks.fidelity.goals import goals
from benchmarks.fidelity.groups import contrasts
from einlayers.taxonomy import taxonomy
from einlayers.theta import Theta
from einsearch.answers import Study
from search.studies.fidelity import REFERENCE_FACTOR

_HEAD = """# Fidelity: how far the proxies can be trusted

Made by `make fidelity` (it goes on where it was interrupted), on {machine}. Seeds, teacher and random structures are
neither those of the measurements that the recipe came from nor those of the six whole runs before this one: what is
measured here was set down before it started, and nothing was tuned on it.

The first two runs led to ADR 12, to the rule of equal compute in the check of truth, and to the ends of the intervals of
laws; before the third the space changed (ADR 13). The third kept 21 of 24 goals: the log of a screening trial's loss had a
standard deviation of 0.030, a trial of a random structure took 8.1 CPU-seconds, and the best four random structures of
three seeds had 2 in common. For the fourth the teacher got eight outputs: it kept 22, but the order of `standard` agreed
with that at four times the compute by 0.74 only, and the order of random structures with the GPT's by 0.53. For the fifth
it got four (ADR 14): it kept 23 of 24, and the order of random structures agreed with the GPT's by 0.58 [0.22, 0.80], where
0.60 was asked; drawn with as many of each group of the taxonomy, it was 0.72 [0.40, 0.88]. For the sixth the GPT had 4e11
training FLOPs instead of 1e11 (ADR 21): it kept 22, the order of random structures agreed with the GPT's by
0.45 [0.05, 0.74], and the best four of three seeds had 2 in common. Over the four draws of those runs, 96 structures, the
two orders agree by 0.63 [0.46, 0.74] at 1e11 and by 0.64 [0.45, 0.76] at 4e11.

What was behind that, and what changed for this run (ADR 23): one random structure of six is dense at the widths of the
proxy, and was trained as two factors of which one does nothing but scale; it is one matrix now, and none of the structures
that are drawn. And the GPT, whose heads leave it few widths, was trained at one width for each structure; now it has three,
the best of which counts.

Every number is from trials of the service itself; intervals are 95%, over structures for rank
correlations (bootstrap) and over seeds for multipliers (Student's t, the noise of the dense baseline included). The Spearman
with the truth compares the mean over seeds with the reference that is named below.
"""


def report(studies: Sequence[Study], covered: Mapping[str, int], machine: str) -> str:
    """The page, of the studies and of how many intervals held the truth of synthetic runs."""
    found = {study["name"]: study for study in studies if study["finding"]}
    fidelity = [study for study in found.values() if study["kind"] == "fidelity_study"]
    scaling = [study for study in found.values() if study["kind"] == "scaling_study"]
    lines = [_HEAD.format(machine=machine)]
    findings = {name: _found(study) for name, study in found.items()}
    lines += ["## What was asked for, and what was measured\n", *_goals_table(findings, covered), ""]
    lines += ["## Reproducible, and true\n", *_fidelity_table(fidelity), ""]
    lines += ["## What it costs, and what it is compared with\n", *_cost_table(fidelity), ""]
    for study in fidelity:
        lines += [f"## {study['name'].capitalize()}: the structures\n", *_structures_table(study), ""]
    for study in scaling:
        lines += [f"## {study['name'].capitalize()}, with learning rates tuned for each structure\n"]
        lines += [*_scaling_table(study), "", *_verdicts(study), ""]
        if rows := list(_groups_table(study)):
            lines += ["Groups of the taxonomy, by seed (Student's t over seeds):\n", *rows, ""]
    lines += ["## Intervals that say how sure they are\n", *_coverage_table(covered), ""]
    failed = [study for study in studies if not study["finding"]]
    lines += [f"Without a result: {study['name']}: {study['reason']}\n" for study in failed]
    return "\n".join(lines).rstrip() + "\n"


def _fidelity_table(studies: Sequence[Study]) -> Iterator[str]:
    yield (
        "| study | Spearman between seeds (lowest pair) | Kendall | between means | top 4 | C/4 with C | with the truth "
        "| single trial with the truth | sd of log loss | most compute over least | verdict |"
    )
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for study in studies:
        found = _found(study)
        seeds = found["between_seeds"]
        means = ", ".join(f"{k}: {value:.2f}" for k, value in found["between_means"].items())
        yield (
            f"| {study['name']} | {_interval(seeds['spearman'])} ({seeds['lowest_spearman']:.2f}) "
            f"| {_interval(seeds['kendall'])} | {means} | {found['top_overlap']} "
            f"| {_interval(found['between_budgets']['spearman'])} | {_interval(found['against_reference']['spearman'])} "
            f"| {found['single_against_reference']:.2f} | {found['sd']:.3f} "
            f"| {found['compute_spread']:.2f} | {'truthful' if found['truthful'] else '**rejected**'} |"
        )


def _cost_table(studies: Sequence[Study]) -> Iterator[str]:
    yield "| study | training FLOPs | CPU-seconds a trial (at most) | structures | seeds | the truth | its seeds |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for study in studies:
        found, spec = _found(study), study["spec"]
        truth = spec["reference"] or {**spec["proxy"], "train_flops": REFERENCE_FACTOR * spec["proxy"]["train_flops"]}
        yield (
            f"| {study['name']} | {spec['proxy']['train_flops']:.2g} "
            f"| {found['cpu_seconds']:.1f} ({found['highest_cpu_seconds']:.1f}) "
            f"| {len(found['structures'])} | {spec['replicates']} | {truth['kind']} at {truth['train_flops']:.2g} "
            f"| {spec['reference_replicates']}{', the best of three widths' if spec['reference_neighbours'] else ''} |"
        )


def _structures_table(study: Study) -> Iterator[str]:
    yield "| theta | omega | psi | width | loss | sd of log loss | loss of the truth | width bracketed | CPU-seconds |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for each in sorted(_found(study)["structures"], key=lambda each: each["loss"] or float("inf")):
        theta = Theta(**each["theta"])
        group = taxonomy(theta)
        bracketed = {None: "not tried", True: "yes", False: "no"}[each["bracketed"]]
        yield (
            f"| {_cell(theta)} | {group.omega:.2f} | {group.psi:.2f} | {each['width']} | {_number(each['loss'])} "
            f"| {_number(each['sd'], 3)} | {_number(each['reference_loss'])} | {bracketed} | {each['cpu_seconds']:.1f} |"
        )


def _scaling_table(study: Study) -> Iterator[str]:
    seeds = study["spec"]["replicates"]
    yield f"{seeds} seeds; rates 0.5, 1 and 2 times the transferred one, the best by its mean.\n"
    yield "| theta | omega | psi | best rate x | loss | worth, in compute of dense | bracketed |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for each in sorted(_found(study)["structures"], key=lambda each: -each["multipliers"][-1]["value"]):
        theta, last, multiplier = Theta(**each["theta"]), each["frontier"][-1], each["multipliers"][-1]
        group = taxonomy(theta)
        yield (
            f"| {_cell(theta)} | {group.omega:.2f} | {group.psi:.2f} | {last['lr_mult']:g} "
            f"| {sum(last['losses']) / seeds:.4f} | {_interval(multiplier)}"
            f"{' (extrapolated)' if multiplier['extrapolated'] else ''} | {'yes' if each['bracketed'] else 'no'} |"
        )


def _goals_table(findings: Mapping[str, Mapping[str, Any]], covered: Mapping[str, int]) -> Iterator[str]:
    yield "| goal | measured | bound | |"
    yield "| --- | --- | --- | --- |"
    for goal in goals(findings, covered):
        yield f"| {goal.what} | {goal.measured} | {goal.bound} | {'kept' if goal.is_met else '**missed**'} |"


def _verdicts(study: Study) -> Iterator[str]:
    for each in _found(study)["structures"][1:]:
        theta, multiplier = Theta(**each["theta"]), each["multipliers"][-1]
        verdict = "cannot be told from dense"
        if multiplier["low"] > 1:
            verdict = "better than dense"
        elif multiplier["high"] < 1:
            verdict = "worse than dense"
        yield f"- {theta}: {verdict} at equal tuned compute, {_interval(multiplier)}."


def _groups_table(study: Study) -> Iterator[str]:
    rows = list(contrasts(_found(study)))
    if rows:
        yield "| groups | difference of the log of the loss | p | seeds with this sign |"
        yield "| --- | --- | --- | --- |"
    for row in rows:
        difference = f"{row.difference.value:+.3f} [{row.difference.low:+.3f}, {row.difference.high:+.3f}]"
        yield f"| {row.worse} less {row.better} | {difference} | {row.p_value:.2g} | {row.same_sign} of {row.num_seeds} |"


def _coverage_table(covered: Mapping[str, int]) -> Iterator[str]:
    yield f"Scaling studies of synthetic runs with known constants, {NUM_DRAWS} draws: how many intervals held the truth.\n"
    yield f"| constant | of {NUM_DRAWS} |"
    yield "| --- | --- |"
    for name, hits in covered.items():
        yield f"| {name} | {hits} |"


def _cell(theta: Theta) -> str:
    return str(theta).replace("|", "\\|")


def _found(study: Study) -> Mapping[str, Any]:
    assert study["finding"] is not None, "only completed studies are shown"
    return study["finding"]


def _interval(estimate: Mapping[str, float]) -> str:
    return f"{estimate['value']:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"


def _number(value: float | None, digits: int = 4) -> str:
    return "diverged" if value is None else f"{value:.{digits}f}"
