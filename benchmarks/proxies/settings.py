"""What is trained: the papers' character GPT, the settings that searches use, and the structures of both."""

import math
from collections.abc import Collection
from dataclasses import dataclass, replace

import torch

from benchmarks.layers import GENERAL
from benchmarks.proxies.baselines import Exchange, as_it_is, exchange
from einlayers.theta import NAMED, Theta
from search.proxies.char_lm import CharLM
from search.proxies.presets import PRESETS, PresetName
from search.proxies.registry import ProxySpec
from workers.proxies.registry import proxy_for
from workers.training import Training
from workers.transfer import param_groups
from workers.workspace import Workspace

RANK_ONE = "BTT rank 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A proxy with a name."""

    name: str
    proxy: ProxySpec

    @property
    def structures(self) -> dict[str, Theta]:
        """Those that are measured on it."""
        btt = (
            {"BTT, rho 1/4": NAMED["btt"]} if self.proxy.width is None else {"BTT rank 4": _rank_four(self.proxy.width)}
        )
        return {
            "dense": NAMED["dense"],
            RANK_ONE: NAMED["monarch"],
            **btt,
            "low rank": NAMED["low-rank"],
            "general": GENERAL,
            "Kronecker": NAMED["kronecker"],
        }

    def chosen(self, only: Collection[str]) -> list[str]:
        """Dense and block tensor-train of rank 1, which everything is compared with, and those of ``only``; or all."""
        return [name for name in self.structures if not only or name in ("dense", RANK_ONE, *only)]

    def width(self, structure: str) -> int:
        """The width of the model: the fixed one, or the one at which the structure costs what the dense model costs."""
        return self.proxy.width_for(self.structures[structure])

    def flops(self, structure: str) -> float:
        """FLOPs per example of the whole model, as a share of those of the dense one."""
        cost = self.proxy.cost(self.structures[structure], self.width(structure)).macs
        return cost / self.proxy.cost(NAMED["dense"], self.width("dense")).macs

    def begin(
        self, structure: str, workspace: Workspace, other: Exchange = as_it_is, *, device: str = "cpu", seed: int = 0
    ) -> Training:
        """A training as ``workers.evaluate`` begins it, with other layers in the model. Its first step is the only one in
        which the model is looked at."""
        proxy = proxy_for(self.proxy)
        torch.manual_seed(seed)
        model = proxy.build(self.structures[structure], self.width(structure)).to(device)
        groups = param_groups(model, self.proxy)
        exchanged = exchange(model, other)
        for group in groups:
            group["params"] = [exchanged.get(parameter, parameter) for parameter in group["params"]]
        task = proxy.task(seed, workspace, torch.device(device))
        return Training(model, groups, task, num_steps=1, warmup_steps=1)


def gpt(width: int, batch_size: int) -> Setting:
    """The papers' character GPT, of this width whatever the structure."""
    proxy = CharLM(
        dense_width=width,
        width=width,
        depth=3,
        num_heads=width // 64,
        context=128,
        batch_size=batch_size,
        base_lr=CharLM.SHIPPED_LR,
    )
    return Setting(name=f"GPT {width}, batch {batch_size}", proxy=proxy)


def _preset(name: PresetName) -> Setting:
    proxy = PRESETS[name].proxy
    return Setting(name=name, proxy=replace(proxy, base_lr=proxy.base_lr or proxy.SHIPPED_LR))  # type: ignore[arg-type]


def _rank_four(width: int) -> Theta:
    return Theta.of([*NAMED["btt"].exponents[:6], math.log(4, width)])


DEFAULT = Setting(name="default char_lm", proxy=CharLM(base_lr=CharLM.SHIPPED_LR))
SCREENING = _preset("screening")
SEARCHES = (DEFAULT, SCREENING, _preset("standard"))
"""The settings of real searches."""

QUICK = (_preset("quick/image_vit"), _preset("quick/next_pixel"))
