"""Rows of a random teacher: Gaussian inputs, and what a random ReLU network makes of them, each output standardised, without
noise.

2410.02117 (section 5) draws every batch anew. A teacher costs many times what a small student does, so a pool of rows is
drawn once per machine, and students that need no more rows than it has take theirs from there.
"""

# N rows, I inputs, O outputs

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from search.proxies.regression import Regression
from workers.cache import prepared, save
from workers.workspace import Workspace

POOL_ROWS = 2**21
"""How many rows to train on are drawn once per machine."""

HELD_OUT_ROWS = 4096
"""How many rows score a model, the same ones for every trial."""

_AT_ONCE = 2**14

Rows = npt.NDArray[np.float32]
"""Inputs, and the targets as the last columns: ``(N, I + O)``."""


@dataclass(frozen=True, slots=True)
class TeacherRows:
    """Rows to train on and rows to score with; and what standardises the teacher's outputs, as ``(O,)``."""

    train: Rows
    held_out: Rows
    mean: Rows
    sd: Rows


class Teacher:
    """A random ReLU network without biases: He's initialisation, of variance 1 / I for the layer that reads the inputs."""

    def __init__(self, settings: Regression, device: torch.device) -> None:
        draw = np.random.default_rng([settings.teacher_seed, 0])
        widths = [settings.inputs, *[settings.teacher_width] * (settings.teacher_depth - 1), settings.outputs]
        self.weights_IO = []
        for layer, (d_in, d_out) in enumerate(pairwise(widths)):
            std = ((1 if layer == 0 else 2) / d_in) ** 0.5
            weight_IO = std * draw.standard_normal((d_in, d_out), dtype=np.float32)
            self.weights_IO.append(torch.from_numpy(weight_IO).to(device))

    @torch.no_grad()
    def __call__(self, x_NI: Tensor) -> Tensor:
        """What it makes of ``(N, I)``: ``(N, O)``, not standardised."""
        *hidden_IO, last_IO = self.weights_IO
        for weight_IO in hidden_IO:
            x_NI = torch.relu(x_NI @ weight_IO)
        return x_NI @ last_IO


def load_rows(settings: Regression, workspace: Workspace) -> TeacherRows:
    """The pool of a teacher, drawn on first use."""
    hidden = f"{settings.teacher_width}x{settings.teacher_depth}"
    name = f"{settings.inputs}-{hidden}-{settings.outputs}-{settings.teacher_seed}"
    arrays = prepared(workspace.cache_dir / "teachers" / name, lambda folder: save(folder, _draw_pool(settings)))
    mean, sd = arrays["outputs"]
    return TeacherRows(arrays["train"], arrays["held_out"], mean, sd)


def _draw_pool(settings: Regression) -> dict[str, npt.NDArray[np.float32]]:
    teacher = Teacher(settings, torch.device("cpu"))
    draw = np.random.default_rng([settings.teacher_seed, 1])
    rows = np.empty((HELD_OUT_ROWS + POOL_ROWS, settings.inputs + settings.outputs), dtype=np.float32)
    for first in range(0, len(rows), _AT_ONCE):
        part = rows[first : first + _AT_ONCE]
        inputs_NI = draw.standard_normal((len(part), settings.inputs), dtype=np.float32)
        part[:, : settings.inputs] = inputs_NI
        part[:, settings.inputs :] = teacher(torch.from_numpy(inputs_NI)).numpy()
    outputs_NO = rows[:, settings.inputs :]
    mean, sd = outputs_NO.mean(axis=0, dtype=np.float64), outputs_NO.std(axis=0, dtype=np.float64)
    outputs_NO[:] = (outputs_NO - mean) / sd
    return {
        "train": rows[HELD_OUT_ROWS:],
        "held_out": rows[:HELD_OUT_ROWS],
        "outputs": np.array([mean, sd], dtype=np.float32),
    }
