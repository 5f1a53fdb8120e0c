"""Regression on a random teacher, on paper: a residual MLP that learns a function of Gaussian inputs, without noise."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from search.checks import Number, Whole, check_whole
from search.proxies.base import NAMED_BY_KIND
from search.proxies.mlp import MLPSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Regression(MLPSettings):
    """A residual MLP fitted to a random ReLU network (2410.02117, section 5, synthetic regression); an example is a row.

    The teacher has ``teacher_depth`` linear layers of width ``teacher_width``, drawn from ``teacher_seed``, and each of its
    outputs is standardised: a model that knows nothing has a loss of 1. The paper has one output; with several, the loss is
    a mean over as many functions, and the same structure's losses from two seeds differ less. See ``ProxySettings``.
    """

    kind: Literal["regression"] = "regression"
    dense_width: Whole = 24
    depth: Whole = 3
    inputs: Whole = 8
    outputs: Whole = 1
    teacher_width: Whole = 256
    teacher_depth: Whole = 5
    teacher_seed: Whole = 42
    batch_size: Whole = 256
    train_flops: Number = 1e11
    base_width: Whole = 64
    input_lr_mult: Number = 1.0

    SHIPPED_LR: ClassVar[float] = 3.5e-3

    __pydantic_config__: ClassVar = NAMED_BY_KIND

    def __post_init__(self) -> None:
        MLPSettings.__post_init__(self)
        check_whole("inputs", self.inputs, 1, 64)
        check_whole("outputs", self.outputs, 1, 64)
        check_whole("teacher_width", self.teacher_width, 1, 4096)
        check_whole("teacher_depth", self.teacher_depth, 2, 32)
        check_whole("teacher_seed", self.teacher_seed, 0, 2**63 - 1)

    @property
    def num_inputs(self) -> int:
        """Those of the teacher."""
        return self.inputs

    @property
    def num_outputs(self) -> int:
        """Those of the teacher."""
        return self.outputs
