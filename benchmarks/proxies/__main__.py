"""How fast the training steps of the proxies are, and how much memory a trial takes.

    python -m benchmarks.proxies                     # all of docs/benchmarks/proxies.md
    python -m benchmarks.proxies --quick             # less of everything, in less than a minute
    python -m benchmarks.proxies --only steps --widths 128 --searches screening

Whole steps are timed as the service takes them: data, forward, backward, Adam, averaged weights. One thread, its CPU time,
everything once a round in shuffled order, medians of the rounds in which dense kept its rate.

``reference`` is the same model whose structured layers use the papers' formulation (see ``benchmarks.layers``). ``best
dense`` is the faster of the dense model and the same one whose linear layers go through oneDNN. The control is the same
training under two names. ``workers`` is timed by the clock and wants a machine that does nothing else.
"""

import argparse
import tempfile
from pathlib import Path

import torch

from benchmarks.proxies import gpu, memory, sharing, steps
from benchmarks.proxies.settings import RANK_ONE, SCREENING, SEARCHES, Setting, gpt
from benchmarks.timing import prepare
from workers.workspace import Workspace

PARTS = ("steps", "workers", "saved", "memory", "gpu")
WIDTHS, BATCHES, ROUNDS = (128, 256), (32, 8), 9
STRUCTURES = gpt(128, 8).structures | SCREENING.structures

GOALS = {"GPT 128, batch 32": 1.45, "GPT 256, batch 32": 1.35}
"""How many times the rate of the reference block tensor-train of rank 1 should have."""

_SAVED_WIDTH, _SAVED_TOKENS = 256, 4096


def main() -> None:
    """Measure what was asked for and print it."""
    asked = _arguments().parse_args()
    prepare("benchmarks.proxies")
    with tempfile.TemporaryDirectory(prefix="einsearch-benchmark-") as folder:
        for part in asked.only or PARTS:
            _print(part, Path(folder), asked)


def _print(part: str, folder: Path, asked: argparse.Namespace) -> None:
    match part:
        case "steps":
            _steps(folder, asked)
        case "workers":
            _workers(folder, asked)
        case "saved":
            _say(memory.saved(_SAVED_WIDTH, _SAVED_TOKENS))
        case "memory":
            _memory(folder, asked)
        case "gpu" if torch.cuda.is_available():
            for setting in gpu.SETTINGS:
                _say(gpu.steps(setting, folder, asked.rounds))
            _say(gpu.shared(folder, asked.rounds))


def _steps(folder: Path, asked: argparse.Namespace) -> None:
    if asked.quick:
        settings, rounds = [gpt(128, 8), SCREENING], 3
    else:
        settings = [gpt(width, batch) for width in asked.widths for batch in asked.batches]
        settings, rounds = [*settings, *(_searches(asked) or SEARCHES)], asked.rounds
    workspace = Workspace(cache_dir=folder)
    found = [steps.measure(setting, workspace, rounds, asked.structures) for setting in settings]
    _say(steps.structured(found))
    _say(steps.dense(found))
    if any(each.setting.name in GOALS for each in found):
        _say(steps.goals(found, GOALS))


def _workers(folder: Path, asked: argparse.Namespace) -> None:
    seconds, rounds = (1.0, 2) if asked.quick else (5.0, asked.rounds)
    setting = gpt(WIDTHS[0], BATCHES[0])
    found = {
        f"{setting.name}, {structure}": sharing.measure(
            setting, structure, folder, (1, 2), seconds=seconds, rounds=rounds
        )
        for structure in ("dense", RANK_ONE)
    }
    _say(sharing.summary(found))


def _memory(folder: Path, asked: argparse.Namespace) -> None:
    if asked.quick:
        _say(memory.trials([SCREENING], folder, [RANK_ONE]))
    else:
        _say(memory.trials(_searches(asked) or memory.SETTINGS.values(), folder, asked.structures))


def _searches(asked: argparse.Namespace) -> list[Setting]:
    return [memory.SETTINGS[name] for name in asked.searches]


def _say(text: str) -> None:
    print(f"{text}\n", flush=True)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS)
    parser.add_argument("--searches", nargs="+", choices=memory.SETTINGS, default=[], help="these settings of searches")
    parser.add_argument(
        "--structures", nargs="+", choices=STRUCTURES, default=[], help=f"these beside dense and {RANK_ONE}"
    )
    parser.add_argument("--widths", type=int, nargs="*", default=WIDTHS, help="of the GPT; none leaves it out")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--quick", action="store_true")
    return parser


if __name__ == "__main__":
    main()
