"""What a training step costs on this device: the time of a forward and a backward pass, and the memory of a whole step.

Both at the batch that the proxy trains on, so that they are a structure's at its own width. Time is that of the device as
it is then, with whatever else runs on it. Memory is counted and not watched where there is no device that counts it, so
that it neither depends on other trials nor on what the allocator keeps.
"""

import statistics
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from search.trial import StepCost
from workers.task import Batch
from workers.training import Training

_WARM_UPS = 2
_LEAST_PASSES, _MOST_PASSES, _SECONDS = 3, 15, 1.0
"""Passes are timed until there are enough of them, or until they have taken so long in all."""

_STEPS = 2
"""The second step is the first one that has the optimiser's state from its beginning."""


def step_cost(training: Training) -> StepCost:
    """What a step of ``training`` costs; it has been trained on one batch then, and is of no other use."""
    batch = next(training.task.batches)
    # Time first: what a GPU's libraries keep from their first call on is not of this model.
    return StepCost(latency=_latency(training, batch), peak_memory=_peak_memory(training, batch))


def _latency(training: Training, batch: Batch) -> float:
    seconds = list[float]()
    for _ in range(_WARM_UPS):
        _timed(training, batch)
    while len(seconds) < _LEAST_PASSES or (len(seconds) < _MOST_PASSES and sum(seconds) < _SECONDS):
        seconds.append(_timed(training, batch))
    return statistics.median(seconds)


def _timed(training: Training, batch: Batch) -> float:
    _wait_for(training.device)
    started = time.perf_counter()
    training.backward(batch)
    _wait_for(training.device)
    return time.perf_counter() - started


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_memory(training: Training, batch: Batch) -> int:
    training.optimiser.zero_grad()
    return (_peak_on_gpu if training.device.type == "cuda" else _peak_of_tensors)(training, batch)


def _peak_on_gpu(training: Training, batch: Batch) -> int:
    """As the allocator of this process has it, without what is there beside this training: held-out batches, for one."""
    device = training.device
    others = torch.cuda.memory_allocated(device) - sum(tensor.nbytes for tensor in _kept(training, batch))
    torch.cuda.reset_peak_memory_stats(device)
    for _ in range(_STEPS):
        training.update(batch)
    return int(torch.cuda.max_memory_allocated(device) - others)


def _kept(training: Training, batch: Batch) -> Iterable[Tensor]:
    """What a training has before its first step."""
    for module in (training.model, training.averaged):
        yield from module.parameters()
        yield from module.buffers()
    yield from batch


def _peak_of_tensors(training: Training, batch: Batch) -> int:
    tensors = LiveTensors()
    with tensors:
        for _ in range(_STEPS):
            training.update(batch)
    return tensors.peak


class LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it unannotated
    """Counts the bytes of all tensors that any operation reads or writes, each storage once, for as long as it lives.

    What an operation needs for itself while it computes is not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # as above
        self.live = 0
        self.peak = 0
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch's switch. With it, the first such mode of a process imports for seconds what only torch.compile needs."""
        return False

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Compute as without it, and look at what went in and what came out."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, result)):
            if isinstance(leaf, Tensor):
                self._see(leaf.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        size = storage.nbytes()
        self._seen.add(storage)
        weakref.finalize(storage, self._forget, size).atexit = False
        self.live += size
        self.peak = max(self.peak, self.live)

    def _forget(self, size: int) -> None:
        self.live -= size
