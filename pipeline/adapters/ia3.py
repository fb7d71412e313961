"""(IA)3: keys, values and what enters the MLP's last layer are scaled elementwise; only the scales are trained.

Liu et al. 2022, arXiv:2205.05638, section 3.3: k' = l_k * k, v' = l_v * v, and l_ff * h enters the last linear layer of
the MLP, where h is what its nonlinearity (and gate) made. All l are one at the start. As weights: l * (W x + b), bias
included, for every role but `down`, and W (l * x) + b for `down`. Scaling a q, o, gate or up too is PEFT's extension.

In a gated MLP what enters `down` is act(gate x) * (up x): there l_ff merges into the rows of `up`, and not into the
columns of `down`. A quantized weight can take a row's scale into its own scales, with every code as it is; a column's
it cannot.

Shapes: l (O,) on an output, (I,) on an input; d_k + d_v + d_ff numbers a block.
"""

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.adapters.base import AdapterLayer, AdapterSettings, Method, Places
from pipeline.core.frozen import FrozenLinear
from pipeline.core.group import Group
from pipeline.core.site import Site
from pipeline.core.update import Update

ON_INPUT = "down"


class IA3(AdapterSettings):
    label = "(IA)3"

    def method(self, seed: int, total_steps: int) -> "IA3Method":
        return IA3Method(self, seed, total_steps)


class OutputScale(AdapterLayer):
    def __init__(self, l_O: Tensor) -> None:
        super().__init__()
        self.l_O = nn.Parameter(l_O)

    def forward(self, x: Tensor, frozen: FrozenLinear) -> Tensor:
        return scaled(frozen(x), self.l_O)

    def update(self) -> Update:
        return Update(row_scale_O=self.l_O.detach())

    def tensors(self) -> dict[str, Tensor]:
        return {"ia3_l": self.l_O[:, None]}


class InputScale(AdapterLayer):
    def __init__(self, l_I: Tensor) -> None:
        super().__init__()
        self.l_I = nn.Parameter(l_I)

    def forward(self, x: Tensor, frozen: FrozenLinear) -> Tensor:
        return frozen(scaled(x, self.l_I))

    def update(self) -> Update:
        return Update(column_scale_I=self.l_I.detach())

    def tensors(self) -> dict[str, Tensor]:
        return {"ia3_l": self.l_I[None]}


class IA3Method(Method[IA3, OutputScale | InputScale]):
    start = ("identity", "every scale is one")

    def layers(self, places: Places) -> dict[Site, OutputScale | InputScale]:
        gated = {site.layer for site in places if site.role == "gate"}
        self.ups = {site.layer: site for site in places if site.role == "up" and site.layer in gated}
        return {site: _at_start(site, frozen.device) for site, frozen in self.chosen(places).items()}

    def updates(self, at: int | None = None) -> dict[Site, Update]:
        """Return row scales alone where every MLP is gated."""
        found = super().updates(at)
        for site in [site for site in found if site.role == ON_INPUT and site.layer in self.ups]:
            l_I, up = found.pop(site).column_scale_I, self.ups[site.layer]
            own_O = found[up].row_scale_O if up in found else None
            assert l_I is not None
            found[up] = Update(row_scale_O=l_I if own_O is None else own_O * l_I)
        return found

    def groups(self) -> list[Group]:
        # Decay pulls towards zero, which is no keys and no values; no update at all is one.
        return [Group(list(self.parameters()), decay=False)]

    def peft(self) -> dict[str, Any]:
        # Left out, PEFT would take these from a table of its own by the model's type.
        return {
            "peft_type": "IA3",
            "feedforward_modules": [site.name for site in self.placed if site.role == ON_INPUT],
        }


def scaled(x: Tensor, l_X: Tensor) -> Tensor:
    """Return l * x for x (..., X) in the dtype of x, as x + (l - 1) x: in bf16 an l near one would round to one."""
    return torch.addcmul(x, x, (l_X - 1).to(x.dtype))


def _at_start(site: Site, device: torch.device) -> OutputScale | InputScale:
    if site.role == ON_INPUT:
        return InputScale(torch.ones(site.in_features, device=device))
    return OutputScale(torch.ones(site.out_features, device=device))
