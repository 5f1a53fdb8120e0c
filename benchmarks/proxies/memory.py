"""How much memory a trial takes at its peak, and what one layer keeps for its backward pass.

python -m benchmarks.proxies.memory CACHE_DIR SETTING STRUCTURE     # one trial, in this process; what Linux tells of it
"""

# T tokens, I inputs

import os
import re
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from benchmarks.layers import STRUCTURES
from benchmarks.proxies.baselines import PapersLinear
from benchmarks.proxies.settings import QUICK, SEARCHES, Setting
from benchmarks.proxies.tables import table
from einlayers.contraction import choose
from einlayers.linear import EinsumLinear
from search.trial import OutcomeKind, TrialSpec
from workers.evaluate import evaluate
from workers.proxies.registry import proxy_for
from workers.workspace import Workspace

SETTINGS = {setting.name: setting for setting in (*SEARCHES, *QUICK)}

_STATUS = Path("/proc/self/status")
"""Where Linux tells a process the most memory that it has had at once; ``ru_maxrss`` counts that of its parent before it."""


def trials(settings: Iterable[Setting], cache_dir: Path, only: Collection[str] = ()) -> str:
    """The table of the peaks of whole trials, each in a process of its own; ``only`` some structures, or all."""
    alone = _peak("-c", f"import torch; print(open('{_STATUS}').read())")
    return table(
        ["setting", "structure", "width", "peak, MiB", "above torch alone, MiB"],
        ([*row, f"{peak:.0f}", f"{peak - alone:.0f}"] for row, peak in _trials(settings, cache_dir, only)),
    )


def _trials(settings: Iterable[Setting], cache_dir: Path, only: Collection[str]) -> Iterator[tuple[list[str], float]]:
    for setting in settings:
        # What the machine prepares once is not of the trial.
        proxy_for(setting.proxy).task(0, Workspace(cache_dir=cache_dir), torch.device("cpu"))
        for structure in setting.chosen(only):
            peak = _peak("-m", "benchmarks.proxies.memory", str(cache_dir), setting.name, structure)
            yield [setting.name, structure, str(setting.width(structure))], peak


def _peak(*arguments: str) -> float:
    # The allocator as the service has it, not as the benchmarks of speed set it.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    found = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=True)
    return peak_of(found.stdout)


def peak_of(status: str) -> float:
    """The peak in MiB, from what Linux tells of a process."""
    peak = re.search(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)
    assert peak is not None
    return int(peak[1]) / 1024


def saved(width: int, tokens: int) -> str:
    """The table of what one layer keeps for backward beside its weights, in sizes of its input."""
    columns = ["d", "structure", "formulation", "ours", "ours, recompute", "reference"]
    rows = []
    for name, dims_of in STRUCTURES.items():
        layer = EinsumLinear.from_dims(dims_of(width), bias=False)
        recomputed = EinsumLinear.from_dims(dims_of(width), bias=False, recompute=True)
        x_TI = torch.randn(tokens, width, requires_grad=True)
        formulation = choose(x_TI, layer.A, layer.B, layer.order)
        sizes = [saved_inputs(each, x_TI) for each in (layer, recomputed, PapersLinear(layer))]
        rows.append([width, name, formulation, *(f"{size:.2f}" for size in sizes)])
    return table(columns, rows)


def saved_inputs(layer: Callable[[Tensor], Tensor], x_TI: Tensor) -> float:
    """The bytes of what is saved for backward, parameters apart, as a multiple of those of the input."""
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if not _is_parameter(tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        kept.append(tensor)  # or another one might get its address
        return tensor

    kept: list[Any] = []
    with saved_tensors_hooks(note, lambda tensor: tensor):
        layer(x_TI)
    return sum(storages.values()) / x_TI.untyped_storage().nbytes()


def _is_parameter(tensor: Tensor) -> bool:
    whole = tensor if tensor._base is None else tensor._base
    return isinstance(whole, torch.nn.Parameter)


def main() -> None:
    """Run one trial to its end and print what Linux tells of this process."""
    cache_dir, name, structure = sys.argv[1:]
    setting = SETTINGS[name]
    spec = TrialSpec(theta=setting.structures[structure], proxy=setting.proxy, width=setting.width(structure), seed=0)
    torch.set_num_threads(1)
    outcome = evaluate(spec, Workspace(cache_dir=Path(cache_dir)))
    if outcome.kind is not OutcomeKind.COMPLETED:
        raise SystemExit(f"the trial ended as {outcome.kind}: {outcome.reason}")
    print(_STATUS.read_text())


if __name__ == "__main__":
    main()
