"""What every proxy provides to the training loop."""

from abc import ABC, abstractmethod
from typing import Generic, TypeVar

import torch
from torch import nn

from einlayers.theta import Theta
from search.proxies.base import ProxySettings
from workers.task import Task
from workers.workspace import Workspace

Settings = TypeVar("Settings", bound=ProxySettings)


class Proxy(ABC, Generic[Settings]):
    """A small honest training run: a model built from a linear factory, and the task that it is trained on."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @abstractmethod
    def build(self, theta: Theta, width: int) -> nn.Module:
        """The model whose layers have the structure ``theta``; its weights come from torch's generator."""

    @abstractmethod
    def task(self, seed: int, workspace: Workspace, device: torch.device) -> Task:
        """Data, loss and evaluation; what is random about them comes from ``seed``.

        Raises:
            FieldError: the data that the settings name cannot serve.
        """
