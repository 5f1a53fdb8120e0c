"""The regression proxy: the squared error against a random teacher (2410.02117, section 5)."""

# B batch, I inputs, O outputs, C columns of a row: inputs and outputs

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from einlayers.theta import Theta
from search.proxies.regression import Regression
from workers.models.layers import layers_of
from workers.models.mlp import MLP
from workers.proxies.base import Proxy
from workers.task import Batch, Task, mean_loss
from workers.teachers import POOL_ROWS, Rows, Teacher, TeacherRows, load_rows
from workers.workspace import Workspace


class RegressionProxy(Proxy[Regression]):
    """Trains a residual MLP on a teacher's rows; evaluates it on rows that are the same for every trial."""

    def build(self, theta: Theta, width: int) -> nn.Module:
        """A residual MLP; see ``Proxy.build``."""
        settings = self.settings
        return MLP(
            inputs=settings.inputs,
            outputs=settings.outputs,
            width=width,
            depth=settings.depth,
            layers=layers_of(settings, theta),
        )

    def task(self, seed: int, workspace: Workspace, device: torch.device) -> Task:
        """Rows of the teacher; see ``Proxy.task``."""
        rows = load_rows(self.settings, workspace)
        held_out = [self._batch(rows.held_out, device)]
        generator = np.random.default_rng(seed)
        return Task(
            batches=(self._from_pool if self._is_pool_enough() else self._fresh)(rows, generator, device),
            generator=generator,
            loss=squared_error,
            held_out_loss=lambda model: mean_loss(squared_error, model, held_out),
            uninformed_loss=1.0,
        )

    def _is_pool_enough(self) -> bool:
        # The same for all structures, by what dense needs, so that none of them trains on better data than the others.
        return self.settings.num_steps(self.settings.dense_macs) * self.settings.batch_size <= POOL_ROWS

    def _from_pool(self, rows: TeacherRows, generator: np.random.Generator, device: torch.device) -> Iterator[Batch]:
        while True:
            chosen = generator.integers(0, len(rows.train), size=self.settings.batch_size)
            yield self._batch(rows.train[chosen], device)

    def _fresh(self, rows: TeacherRows, generator: np.random.Generator, device: torch.device) -> Iterator[Batch]:
        teacher = Teacher(self.settings, device)
        mean_O, sd_O = (torch.from_numpy(np.array(each)).to(device) for each in (rows.mean, rows.sd))
        shape = (self.settings.batch_size, self.settings.inputs)
        while True:
            inputs_BI = torch.from_numpy(generator.standard_normal(shape, dtype=np.float32)).to(device)
            yield inputs_BI, (teacher(inputs_BI) - mean_O) / sd_O

    def _batch(self, rows: Rows, device: torch.device) -> Batch:
        rows_BC = torch.from_numpy(np.array(rows)).to(device)
        return rows_BC[:, : self.settings.inputs], rows_BC[:, self.settings.inputs :]


def squared_error(model: nn.Module, batch: Batch) -> Tensor:
    """The mean squared error of a batch ``(inputs_BI, targets_BO)``."""
    inputs_BI, targets_BO = batch
    return F.mse_loss(model(inputs_BI), targets_BO)
