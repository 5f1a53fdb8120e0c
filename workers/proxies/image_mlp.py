"""The image MLP proxy: an image's class from all of its pixels (2406.06248, section 5)."""

import torch
from torch import nn

from einlayers.theta import Theta
from search.proxies.image_mlp import ImageMLP
from workers.models.layers import layers_of
from workers.models.mlp import MLP
from workers.proxies.base import Proxy
from workers.proxies.images import classification
from workers.task import Task
from workers.workspace import Workspace


class ImageMLPProxy(Proxy[ImageMLP]):
    """Trains a residual MLP on shifted images; evaluates it on all that are held out."""

    def build(self, theta: Theta, width: int) -> nn.Module:
        """A residual MLP that reads flattened images; see ``Proxy.build``."""
        settings = self.settings
        mlp = MLP(
            inputs=settings.num_inputs,
            outputs=settings.num_outputs,
            width=width,
            depth=settings.depth,
            layers=layers_of(settings, theta),
        )
        return nn.Sequential(nn.Flatten(), mlp)

    def task(self, seed: int, workspace: Workspace, device: torch.device) -> Task:
        """Images and their classes; see ``Proxy.task``."""
        return classification(self.settings.images, self.settings.batch_size, seed, workspace, device)
