"""Whether the time of a mixture follows the k experts that each token chooses, and not the E that there are.

    python -m benchmarks.moe [--width 512] [--tokens 2048] [--rounds 15]

Forward and backward pass of one layer with a random gate, against the same layer computing all of its experts for all
tokens, most of them with a weight of zero: what the papers' code does, in our formulation. One thread, thread CPU time,
every implementation once a round in shuffled order, medians; float32. FLOPs count experts and gate; their ratio is the time
ratio of a mixture whose dispatch is free and whose small products run at the rate of large ones. "busiest" is the largest
share of the assignments that one expert has, times E: 1 is even.
"""

# T tokens, E experts, I inputs, O outputs

import argparse
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from torch import Tensor, nn

from benchmarks.timing import prepare, rounds_of
from einlayers.moe import DenseMoE, EinsumMoE, LinearMoE

NUM_EXPERTS = (4, 8, 16)
TOP_K = (1, 2, 4)

STRUCTURES: dict[str, Callable[[int, int, int], LinearMoE]] = {
    "monarch": lambda d, num_experts, top_k: EinsumMoE(d, d, "monarch", num_experts=num_experts, top_k=top_k),
    "dense": lambda d, num_experts, top_k: DenseMoE(d, d, num_experts=num_experts, top_k=top_k),
}

_TOLERANCE = 1e-4
"""Of the largest output: float32 sums in different orders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One mixture: seconds of computing the chosen experts and of computing all."""

    structure: str
    num_experts: int
    top_k: int
    flops: float
    busiest: float
    chosen: float
    everything: float

    def __str__(self) -> str:
        time_ratio = self.chosen / self.everything
        return (
            f"| {self.structure} | {self.num_experts} | {self.top_k} | {self.top_k / self.num_experts:.3f} "
            f"| {self.flops:.3f} | {time_ratio:.3f} | {time_ratio / self.flops:.2f} | {self.busiest:.2f} "
            f"| {1e3 * self.chosen:.1f} | {1e3 * self.everything:.1f} |"
        )


HEADER = """\
| experts | E | k | k / E | FLOPs / all | time / all | time / FLOPs | busiest | ms | ms of all |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"""


def all_experts(layer: LinearMoE, x_TI: Tensor) -> Tensor:
    """The same output from every expert for every token."""
    routing = layer.gate.route(x_TI)
    gate_TE = torch.zeros_like(routing.logits).scatter(1, routing.experts, routing.weights)
    outputs = layer.apply_each([x_TI] * layer.num_experts, [None] * layer.num_experts)
    y_TO = outputs[0] * gate_TE[:, :1]
    for expert in range(1, layer.num_experts):
        y_TO = torch.addcmul(y_TO, outputs[expert], gate_TE[:, expert, None])
    return y_TO if layer.bias is None else y_TO + layer.bias


def measure(structure: str, width: int, num_tokens: int, rounds: int) -> Iterator[Row]:
    """Every number of experts and of choices for one structure, interleaved within each number of experts."""
    x_TI, dy_TO = torch.randn(num_tokens, width, requires_grad=True), torch.randn(num_tokens, width)
    for num_experts in NUM_EXPERTS:
        layers = {top_k: STRUCTURES[structure](width, num_experts, top_k) for top_k in TOP_K}
        runs: dict[tuple[int, str], Callable[[], object]] = {}
        for top_k, layer in layers.items():
            nn.init.normal_(layer.gate.weight, std=width**-0.5)
            _check(layer, x_TI)
            runs[top_k, "chosen"] = _run(layer, layer, x_TI, dy_TO)
            runs[top_k, "all"] = _run(partial(all_experts, layer), layer, x_TI, dy_TO)
        seconds = _interleave(runs, rounds)
        for top_k, layer in layers.items():
            macs, of_all = layer.cost.macs, layer.cost.macs * num_experts / top_k
            counts = layer.gate.route(x_TI).counts
            yield Row(
                structure=structure,
                num_experts=num_experts,
                top_k=top_k,
                flops=(macs + layer.cost.gate_macs) / (of_all + layer.cost.gate_macs),
                busiest=(counts.max() / counts.sum()).item() * num_experts,
                chosen=seconds[top_k, "chosen"],
                everything=seconds[top_k, "all"],
            )


def _run(apply: Callable[[Tensor], Tensor], layer: LinearMoE, x_TI: Tensor, dy_TO: Tensor) -> Callable[[], object]:
    inputs = (x_TI, *layer.parameters())
    return lambda: torch.autograd.grad(apply(x_TI), inputs, dy_TO)


def _check(layer: LinearMoE, x_TI: Tensor) -> None:
    """Both implementations give one result."""
    with torch.no_grad():
        expected_TO, y_TO = all_experts(layer, x_TI), layer(x_TI)
        error = ((y_TO - expected_TO).abs().max() / expected_TO.abs().max()).item()
    if not error < _TOLERANCE:
        raise RuntimeError(f"the chosen experts give another result than all of them, by {error:.1e}")


def _interleave(runs: dict[tuple[int, str], Callable[[], object]], rounds: int) -> dict[tuple[int, str], float]:
    """The median seconds of each."""
    for run in runs.values():
        run()
    seconds = list(islice(rounds_of(runs), rounds))
    return {key: statistics.median(times[key] for times in seconds) for key in runs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    prepare("benchmarks.moe")
    print(HEADER, flush=True)
    for structure in STRUCTURES:
        for row in measure(structure, arguments.width, arguments.tokens, arguments.rounds):
            print(row, flush=True)


if __name__ == "__main__":
    main()
