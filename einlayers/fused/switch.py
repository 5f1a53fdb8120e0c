"""Whether the fused kernels are used where they serve. They are off by default: on a GPU they have never been timed."""

from importlib import import_module
from types import TracebackType

_is_on = False


class use_fused_kernels:
    """Use the fused GPU kernels where they serve, or do not; of ``with`` it is undone at the end.

    One switch for the process, as torch's own ones are. What the kernels do not serve is computed as ever.
    """

    def __init__(self, on: bool = True) -> None:
        global _is_on
        if on:
            # What takes torch's compiler to import, a second: not before it is wanted, nor while a layer is traced.
            for module in ("einlayers.fused.policy", "einlayers.fused.ops"):
                import_module(module)
        self._before, _is_on = _is_on, on

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        global _is_on
        _is_on = self._before


def is_on() -> bool:
    """Whether the kernels are switched on."""
    return _is_on
