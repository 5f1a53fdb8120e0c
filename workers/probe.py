"""The coordinate check of a trial on its way: how large the outputs of its layers are, and how far the first steps move
them (2203.03466, appendix D.1)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from einlayers.linear import EinsumLinear
from einlayers.moe import FeedForwardMoE, LinearMoE
from einlayers.routing import Router
from search.trial import Coordinates
from workers.task import Batch

_HEAD = "head"
_LAYERS = (EinsumLinear, nn.Linear, LinearMoE, FeedForwardMoE)


class Probe:
    """Looks at a model's layers on its first batch, before training and after ``num_steps`` steps.

    Layers are told apart by the last part of their names, and those of different blocks are one kind: the blocks of a
    model, and the head, which every proxy's model has.
    """

    def __init__(self, model: nn.Module, loss: Callable[[nn.Module, Batch], Tensor], num_steps: int) -> None:
        self.found: dict[str, Coordinates] = {}
        self._model, self._loss, self._num_steps = model, loss, num_steps
        self._batch: Batch | None = None
        self._before: dict[str, Tensor] = {}
        self._layers = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, _LAYERS) and not isinstance(module, Router) and _is_watched(name)
        }

    def begin(self, batch: Batch) -> None:
        """Look at the layers before the first step."""
        if self._layers:
            self._batch, self._before = batch, self._outputs(batch)

    def after(self, step: int) -> None:
        """Look again, if enough steps have been taken."""
        if step == self._num_steps and self._batch is not None:
            self.found = self._compare(self._outputs(self._batch))
            self._batch, self._before = None, {}

    def state_dict(self) -> dict[str, Any]:
        """What it has seen."""
        found = {kind: (each.features, each.updates) for kind, each in self.found.items()}
        return {"batch": self._batch, "before": self._before, "found": found}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from what another probe of the same model had seen."""
        self._batch, self._before = saved["batch"], saved["before"]
        self.found = {kind: Coordinates(features=f, updates=u) for kind, (f, u) in saved["found"].items()}

    @torch.no_grad()
    def _outputs(self, batch: Batch) -> dict[str, Tensor]:
        outputs: dict[str, Tensor] = {}
        handles = [
            layer.register_forward_hook(lambda _module, _args, output, name=name: outputs.update({name: output}))
            for name, layer in self._layers.items()
        ]
        try:
            self._loss(self._model, batch)
        finally:
            for handle in handles:
                handle.remove()
        return outputs

    def _compare(self, after: dict[str, Tensor]) -> dict[str, Coordinates]:
        kinds: dict[str, list[str]] = {}
        for name in after:
            kinds.setdefault(name.rpartition(".")[2], []).append(name)
        return {
            kind: Coordinates(
                features=_rms([self._before[name] for name in names]),
                updates=_rms([after[name] - self._before[name] for name in names]),
            )
            for kind, names in kinds.items()
        }


def _is_watched(name: str) -> bool:
    return name.startswith("blocks.") or name == _HEAD


def _rms(tensors: list[Tensor]) -> float:
    """The root of the mean square over all of them; finite, however large: JSON knows no infinity."""
    squares = torch.stack([tensor.double().square().mean() for tensor in tensors])
    return float(torch.nan_to_num(squares.mean().sqrt(), nan=1e300, posinf=1e300))
