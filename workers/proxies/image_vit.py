"""The vision transformer proxy: an image's class from its patches (2406.06248, section 5)."""

import torch
from torch import nn

from einlayers.theta import Theta
from search.proxies.image_vit import ImageViT
from workers.models.layers import layers_of
from workers.models.vit import ViT
from workers.proxies.base import Proxy
from workers.proxies.images import classification
from workers.task import Task
from workers.workspace import Workspace


class ImageViTProxy(Proxy[ImageViT]):
    """Trains a vision transformer on shifted images; evaluates it on all that are held out."""

    def build(self, theta: Theta, width: int) -> nn.Module:
        """A vision transformer; see ``Proxy.build``."""
        settings = self.settings
        return ViT(
            size=settings.images.size,
            channels=settings.images.channels,
            classes=settings.images.num_classes,
            patch_size=settings.patch_size,
            width=width,
            depth=settings.depth,
            num_heads=settings.num_heads,
            layers=layers_of(settings, theta),
        )

    def task(self, seed: int, workspace: Workspace, device: torch.device) -> Task:
        """Images and their classes; see ``Proxy.task``."""
        return classification(self.settings.images, self.settings.batch_size, seed, workspace, device)
