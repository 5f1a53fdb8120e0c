"""How many examples a training step gets through per CPU-second: ours, the papers' formulation, dense, dense at its best."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from benchmarks.proxies.baselines import ONEDNN_ERROR, as_papers, by_onednn, onednn_error
from benchmarks.proxies.settings import RANK_ONE, Setting
from benchmarks.proxies.tables import table
from benchmarks.timing import calm_medians
from workers.training import Training
from workers.workspace import Workspace

OURS, REFERENCE, AGAIN, ONEDNN = "ours", "reference", "ours again", "oneDNN"

Key = tuple[str, str]
"""A structure, and who trains it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """The CPU seconds of one step of everything that was trained at one setting, and the error of oneDNN there."""

    setting: Setting
    seconds: dict[Key, float]
    error: float

    @property
    def best_dense(self) -> float:
        """The seconds of the faster dense step."""
        return min(self.seconds["dense", OURS], self.seconds.get(("dense", ONEDNN), float("inf")))

    def rate(self, structure: str) -> float:
        """Examples per CPU-second: tokens of text, or rows."""
        return self.setting.proxy.examples_per_step / self.seconds[structure, OURS]

    def against(self, seconds: float, structure: str) -> float:
        """How many times the rate of a step of ``seconds`` ours has, counted in examples."""
        return seconds / self.seconds[structure, OURS]


def measure(setting: Setting, workspace: Workspace, rounds: int, only: Collection[str] = ()) -> Steps:
    """Train everything, or ``only`` some structures, by turns."""
    proxy = setting.proxy
    shapes = {(layer.d_in, layer.d_out) for layer in proxy.layers(setting.width("dense"))}
    error = onednn_error(shapes, proxy.examples_per_step)
    trainings: dict[Key, Training] = {}
    for structure in setting.chosen(only):
        trainings[structure, OURS] = setting.begin(structure, workspace)
        if structure != "dense":
            trainings[structure, REFERENCE] = setting.begin(structure, workspace, as_papers)
    trainings[RANK_ONE, AGAIN] = setting.begin(RANK_ONE, workspace)
    if error < ONEDNN_ERROR:
        trainings["dense", ONEDNN] = setting.begin("dense", workspace, by_onednn)
    runs: dict[Key, Callable[[], object]] = {key: training.advance for key, training in trainings.items()}
    return Steps(setting=setting, seconds=calm_medians(runs, ("dense", OURS), rounds), error=error)


def structured(found: list[Steps]) -> str:
    """The table of the structured steps."""
    columns = ["setting", "structure", "width", "FLOPs / dense", "examples per CPU-s"]
    columns += ["ours / reference", "ours / dense", "ours / best dense"]
    rows = [
        [
            steps.setting.name,
            structure,
            steps.setting.width(structure),
            f"{steps.setting.flops(structure):.3f}",
            f"{steps.rate(structure):,.0f}",
            f"{steps.against(steps.seconds[structure, REFERENCE], structure):.2f}",
            f"{steps.against(steps.seconds['dense', OURS], structure):.2f}",
            f"{steps.against(steps.best_dense, structure):.2f}",
        ]
        for steps in found
        for structure in steps.setting.structures
        if (structure, REFERENCE) in steps.seconds
    ]
    return table(columns, rows)


def dense(found: list[Steps]) -> str:
    """The table of the dense steps and of the control."""
    columns = [
        "setting",
        "width",
        "dense, examples per CPU-s",
        "oneDNN / dense",
        "best dense / dense",
        "error of oneDNN",
    ]
    columns += ["control: ours / ours again"]
    return table(columns, map(_dense, found))


def _dense(steps: Steps) -> list[str]:
    seconds = steps.seconds
    # Left out where its error is not that of float32.
    onednn = f"{seconds['dense', OURS] / seconds['dense', ONEDNN]:.2f}" if ("dense", ONEDNN) in seconds else "left out"
    return [
        steps.setting.name,
        str(steps.setting.width("dense")),
        f"{steps.rate('dense'):,.0f}",
        onednn,
        f"{seconds['dense', OURS] / steps.best_dense:.2f}",
        f"{steps.error:.1e}",
        f"{steps.against(seconds[RANK_ONE, AGAIN], RANK_ONE):.2f}",
    ]


def goals(found: list[Steps], asked: dict[str, float]) -> str:
    """The table of goals: block tensor-train of rank 1 against the reference and the best dense, dense through oneDNN."""
    rows = []
    for steps in found:
        name = steps.setting.name
        if name in asked:
            reference = steps.against(steps.seconds[RANK_ONE, REFERENCE], RANK_ONE)
            rows.append(_goal("G7", f"{name}: {RANK_ONE}, ours / reference", asked[name], reference))
            rows.append(
                _goal("G7", f"{name}: {RANK_ONE}, ours / best dense", 1.0, steps.against(steps.best_dense, RANK_ONE))
            )
            rows.append(
                _goal("G8", f"{name}: best dense / dense", 1.5, steps.seconds["dense", OURS] / steps.best_dense)
            )
    return table(["goal", "what", "at least", "measured", "met"], rows)


def _goal(name: str, what: str, least: float, measured: float) -> list[str]:
    return [name, what, f"{least:.2f}", f"{measured:.2f}", "yes" if measured >= least else "no"]
