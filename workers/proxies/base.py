"""What every proxy provides to the training loop."""

from typing import Protocol

import torch
from torch import nn

from search.trial import TrialSpec
from workers.training import Task
from workers.workspace import Workspace


class Proxy(Protocol):
    """A small honest training run: a model built from a linear factory, and the task that it is trained on."""

    def build(self, spec: TrialSpec) -> nn.Module:
        """The model of ``spec``; its weights come from torch's generator."""
        ...

    def task(self, spec: TrialSpec, workspace: Workspace, device: torch.device) -> Task:
        """Data, loss and evaluation.

        Raises:
            FieldError: the data that ``spec`` names cannot serve it.
        """
        ...
