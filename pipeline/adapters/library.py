"""LoRA and OFT of the PEFT library itself, as rows to compare ours with.

What computes is PEFT's own generic layer, `Linear`; its base layer is the frozen one of this house, so that it goes on
every format. (Its class for a bitsandbytes base differs by a clone of the output and by casts.) It starts from our
draws, is trained by our loop and merged as an update, never by PEFT: between this row and ours lies the layer alone.

Shapes: A (R, I), B (O, R), packed Q (N, E), R (N, C, C).
"""

from importlib import metadata
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor, nn

from pipeline.adapters.base import AdapterLayer, AdapterSettings, Count, Method, Places, Positive
from pipeline.adapters.files import PEFT_VERSION
from pipeline.adapters.lora import alpha_or_default, at_start, peft_lora
from pipeline.adapters.oft import peft_oft
from pipeline.adapters.rotation import blocks_along
from pipeline.adapters.spectrum import effective_rank, rotation_angles
from pipeline.core.frozen import FrozenLinear
from pipeline.core.settings import SettingsError
from pipeline.core.site import Site
from pipeline.core.update import Update

NAME = "default"
"""What PEFT calls the one adapter of a layer."""


class PeftLoRA(AdapterSettings):
    label = f"LoRA (PEFT {PEFT_VERSION})"
    axis = "rank"

    rank: Count
    alpha: Positive | None

    def method(self, seed: int, total_steps: int) -> "PeftLoRAMethod":
        return PeftLoRAMethod(self, seed, total_steps)


class PeftOFT(AdapterSettings):
    """`terms` is PEFT's own count, two more than the paper's k; None the exact transform."""

    label = f"OFTv2 (PEFT {PEFT_VERSION})"
    axis = "block_size"

    block_size: Annotated[int, Ge(2)]
    terms: Annotated[int, Ge(4)] | None

    def method(self, seed: int, total_steps: int) -> "PeftOFTMethod":
        return PeftOFTMethod(self, seed, total_steps)


class Underneath(nn.Linear):
    """What PEFT takes for the linear layer below its own. It hands over to the frozen layer of the call."""

    weight: Tensor  # type: ignore[assignment]  # empty: PEFT reads its device and dtype only
    frozen: FrozenLinear

    def __init__(self, site: Site, device: torch.device) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = site.in_features, site.out_features
        self.__dict__ |= {"weight": torch.empty(0, device=device), "bias": None}

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (its name in nn.Linear)
        return self.frozen(input)


class PeftLayer(AdapterLayer):
    """A layer of PEFT, in our doorway."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, frozen: FrozenLinear) -> Tensor:
        self.inner.base_layer.__dict__["frozen"] = frozen  # not as a submodule: the adapter does not own it
        return self.inner(x)


class PeftLoRALayer(PeftLayer):
    @torch.no_grad()
    def update(self) -> Update:
        return Update(delta_OI=self.inner.get_delta_weight(NAME))

    def tensors(self) -> dict[str, Tensor]:
        return {f"{name}.weight": getattr(self.inner, name)[NAME].weight for name in ("lora_A", "lora_B")}

    def insight(self) -> dict[str, Any]:
        return {"effective_rank": effective_rank(*self.tensors().values())}


class PeftOFTLayer(PeftLayer):
    @torch.no_grad()
    def rotation(self) -> Tensor:
        """Return PEFT's own blocks; its `get_delta_weight` would spread them over a dense (I, I)."""
        of = self.inner.oft_R[NAME]
        terms = of.num_cayley_neumann_terms
        rotation_NCC: Tensor = of._cayley_batch(of.weight, of.block_size, of.use_cayley_neumann, terms)
        return rotation_NCC

    def update(self) -> Update:
        return Update(rotation_NCC=self.rotation())

    def insight(self) -> dict[str, Any]:
        return {"rotation_angle": rotation_angles(self.rotation())}

    def tensors(self) -> dict[str, Tensor]:
        return {"oft_R.weight": self.inner.oft_R[NAME].weight}


class PeftLoRAMethod(Method[PeftLoRA, PeftLoRALayer]):
    start = ("identity", "B is zero")

    @torch.no_grad()
    def layers(self, places: Places) -> dict[Site, PeftLoRALayer]:
        peft, rank, made = _library(), self.settings.rank, {}
        alpha = alpha_or_default(self.settings.alpha, rank)
        config = peft.LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights=False)
        for site, frozen in self.chosen(places).items():
            below = Underneath(site, frozen.device)
            inner = peft.tuners.lora.Linear(below, NAME, config, r=rank, lora_alpha=alpha)
            layer = made[site] = PeftLoRALayer(inner)
            layer.fill(dict(zip(layer.tensors(), at_start(site, rank, self.seed, frozen.device), strict=True)))
        return made

    def peft(self) -> dict[str, Any]:
        return peft_lora(self.settings.rank, alpha_or_default(self.settings.alpha, self.settings.rank))


class PeftOFTMethod(Method[PeftOFT, PeftOFTLayer]):
    start = ("identity", "Q is zero, so R is the identity")

    def layers(self, places: Places) -> dict[Site, PeftOFTLayer]:
        peft, made = _library(), {}
        own = {key: value for key, value in self.peft().items() if key != "peft_type"}
        config = peft.OFTConfig(**own)
        for site, frozen in self.chosen(places).items():
            blocks_along(site, self.settings.block_size)  # PEFT would take another size, and warn
            inner = peft.tuners.oft.Linear(Underneath(site, frozen.device), NAME, config, r=0)
            made[site] = PeftOFTLayer(inner)
        return made

    def peft(self) -> dict[str, Any]:
        return peft_oft(self.settings.block_size, self.settings.terms, shared=False)


def _library() -> Any:
    """Return PEFT in the release that the labels name.

    Raises:
        SettingsError: it is not installed, or in another release.
    """
    try:
        found = metadata.version("peft")
    except metadata.PackageNotFoundError:
        found = "none"
    if found != PEFT_VERSION:
        raise SettingsError(
            f"adapter: this row is PEFT {PEFT_VERSION} itself, and installed is {found}. Install it "
            f"(pip install -c constraints.txt peft=={PEFT_VERSION}), or use adapter=lora or oft."
        )
    import peft  # noqa: PLC0415  (seconds, and only for these rows)

    return peft
