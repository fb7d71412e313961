"""rsLoRA: y = W x + b + (alpha / sqrt r) B A x: LoRA whose branch neither fades nor grows as the rank rises.

Kalajdzievski 2023, arXiv:2312.03732: with alpha / r, what the branch learns shrinks with the rank.

Shapes: A (R, I), B (O, R).
"""

import math
from typing import Any

from pipeline.adapters.base import AdapterSettings, Count, Method, Places, Positive
from pipeline.adapters.lora import LoRALayer, at_start, peft_lora
from pipeline.core.site import Site


class RsLoRA(AdapterSettings):
    """`alpha` is the same at every rank: tied to the rank it would undo what the root is for."""

    label = "rsLoRA"
    axis = "rank"

    rank: Count
    alpha: Positive

    def method(self, seed: int, total_steps: int) -> "RsLoRAMethod":
        return RsLoRAMethod(self, seed, total_steps)


class RsLoRAMethod(Method[RsLoRA, LoRALayer]):
    start = ("identity", "B is zero")

    def layers(self, places: Places) -> dict[Site, LoRALayer]:
        rank, scale = self.settings.rank, self.settings.alpha / math.sqrt(self.settings.rank)
        return {
            site: LoRALayer(*at_start(site, rank, self.seed, frozen.device), scale)
            for site, frozen in self.chosen(places).items()
        }

    def peft(self) -> dict[str, Any]:
        return peft_lora(self.settings.rank, self.settings.alpha) | {"use_rslora": True}
