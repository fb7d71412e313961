"""Adapters from Python, on a model of your own, without a workflow: `pipeline.adapt(model, adapter, targets=[...])`."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from pipeline.adapters import files
from pipeline.adapters.base import AdapterSettings, Method
from pipeline.core.settings import SettingsError, nearest
from pipeline.core.site import Site
from pipeline.core.update import Update
from pipeline.models import sites
from pipeline.models.adapt import method_on
from pipeline.models.places import put, stored
from pipeline.models.states import merged
from pipeline.optimizers.base import Optimizer, OptimizerSettings
from pipeline.quantization.base import Format, StoredLinear
from pipeline.quantization.none import Dense


def adapt(
    model: nn.Module,
    adapter: AdapterSettings,
    targets: Sequence[str] | None = None,
    *,
    quantization: Format | None = None,
    seed: int = 0,
    total_steps: int = 1,
) -> "Adapted":
    """Freeze `model`, put an adapter on linear layers of it, in place; return what trains, saves and merges it.

    Args:
        model: any module; its linear layers may be nn.Linear or GPT-2's Conv1D.
        adapter: settings of the method, such as `LoRA(rank=8, alpha=16.0)`.
        targets: modules by name, or by the end of their names. None: by the roles of `adapter`, for which the
            architecture must be known.
        quantization: format to store the targets in, such as `NF4(block_size=64, double=True)`; None: as they are.
        seed: of every draw that the method makes.
        total_steps: of the training, for methods that follow a schedule.

    Raises:
        SettingsError: a target is not there or no linear layer, or the method does not go with the model.
    """
    format_ = quantization or Dense()
    offered = sites.find(model) if targets is None else _chosen(model, targets)
    if targets is not None:
        adapter = adapter.model_copy(update={"roles": tuple(dict.fromkeys(site.role for site in offered))})
    found = _with_wholes(model, offered)
    model.requires_grad_(False)
    plain = {site: model.get_submodule(site.name) for site in found if site.rows is None}
    places = put(model, found, {site: _frozen(format_, site, plain[site]) for site in stored(found)})
    try:
        frozen = {site: places[site].frozen for site in offered}
        method = method_on(format_, frozen, adapter, seed, total_steps)
    except SettingsError:
        _put_back(model, plain)
        raise
    adapted = Adapted(model, method, places, plain)
    adapted.enable()
    return adapted.eval()


class Adapted:
    """A model with an adapter on it. `model` is used as before: it computes with the adapter."""

    def __init__(
        self, model: nn.Module, method: Method[Any, Any], places: dict[Site, Any], plain: dict[Site, nn.Module]
    ) -> None:
        self.model, self.method = model, method
        self._places, self._plain = places, plain

    def train(self, mode: bool = True) -> Self:
        """Set the train mode of model and method."""
        self.model.train(mode)
        self.method.train(mode)
        return self

    def eval(self) -> Self:
        """Set the eval mode of model and method."""
        return self.train(mode=False)

    def parameters(self) -> list[nn.Parameter]:
        """Return what trains."""
        return [parameter for parameter in self.method.parameters() if parameter.requires_grad]

    def optimizer(self, settings: OptimizerSettings) -> Optimizer:
        """Return an optimizer over the method's groups, with their decay, learning rates and masks."""
        return settings.build(self.method.groups())

    def step(self, step: int, optimizer: Optimizer, lr: float, loss: Callable[[], Tensor]) -> float:
        """Make one optimizer step, with all that the method does around it, and return the loss before it.

        Args:
            step: from 0.
            optimizer: of `optimizer`.
            lr: learning rate of this step.
            loss: computes the model's mean loss of one batch.
        """
        self.method.before_step(step)
        value = self.method.loss(lambda _: _Given(loss), _Unseen())  # type: ignore[arg-type]
        value.backward()
        self.method.after_backward(step)
        optimizer.step(lr)
        self.method.after_step(step)
        self.method.refresh()
        optimizer.zero_grad()
        return float(value.detach())

    def enable(self) -> None:
        """Put the adapter on the model."""
        for site, layer in self.method.placed.items():
            self._places[site].__dict__["adapter"] = layer

    def disable(self) -> None:
        """Take the adapter off: the model computes what it did before."""
        for place in self._places.values():
            place.__dict__["adapter"] = None

    @contextlib.contextmanager
    def disabled(self) -> Iterator[None]:
        """Take the adapter off for the length of the block."""
        self.disable()
        try:
            yield
        finally:
            self.enable()

    def save(self, folder: str | Path) -> None:
        """Write the adapter, in PEFT's format wherever PEFT can compute the same."""
        config = getattr(self.model, "config", None)
        files.save(self.method, Path(folder), base_name=getattr(config, "model_type", type(self.model).__name__))

    def load(self, folder: str | Path) -> Self:
        """Fill the adapter from a folder that `save` wrote, for the same settings and targets.

        Raises:
            RecordError: a file is missing or damaged, or belongs to other settings or targets.
        """
        files.load(self.method, Path(folder))
        return self

    @torch.no_grad()
    def merge(self, at: int | None = None) -> nn.Module:
        """Return the model without places, the update in its own weights, in their dtype.

        Args:
            at: one of the method's points, such as a rank of DyLoRA; None where it has none, or for the largest.

        Raises:
            SettingsError: the method's update cannot be written as weights.
        """
        mergeable, reason = self.method.mergeable
        if not mergeable:
            raise SettingsError(f"adapter: {self.method.settings.label} cannot be merged: {reason}.")
        at = max(self.method.points, default=None) if at is None else at
        updates = {site: layer.update() for site, layer in self.method.export(at).items()}
        _put_back(self.model, self._plain)
        for site, update in updates.items():
            assert update is not None
            _write(update, site, self._plain[_whole(site, self._plain)])
        return self.model


class _Given:
    """The rows of a batch that only the user's own loss has seen."""

    def __init__(self, loss: Callable[[], Tensor]) -> None:
        self._loss = loss

    def cross_entropy(self, labels_BT: Tensor) -> Tensor:
        return self._loss()


class _Unseen:
    """The batch that only the user's own loss sees."""

    labels_BT = None

    def __getattr__(self, name: str) -> Any:
        raise SettingsError(
            "adapter: this method makes its loss from the batch itself, so it cannot be trained on a loss of your own. "
            "Train it in a sweep."
        )


def _chosen(model: nn.Module, targets: Sequence[str]) -> list[Site]:
    """Return the sites that `targets` name, in the model's order.

    Raises:
        SettingsError: a target is no linear layer, or its weight is another module's too.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    known = {site.name: site for site in sites.find(model) if site.linear} if kind in sites.TABLE else {}
    for name, module in model.named_modules():
        if name not in known and sites.is_linear(module):
            known[name] = sites.site_of(name, module, "linear", sites.layer_of(name))
    words = [*known, *dict.fromkeys(name.rpartition(".")[2] for name in known)]
    for target in targets:
        if not any(_names(target, name) for name in known):
            raise SettingsError(
                f"targets: the model has no linear layer {target!r}.{nearest(target, words)} Allowed: module "
                f"names, whole or by their ends, such as {', '.join(list(known)[:3])}."
            )
    chosen = [site for name, site in known.items() if any(_names(target, name) for target in targets)]
    _refuse_shared(model, chosen)
    return chosen


def _names(target: str, name: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _refuse_shared(model: nn.Module, chosen: list[Site]) -> None:
    """Refuse a weight that is another module's too: an update would be merged into both."""
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for site in chosen:
        others = owners[id(model.get_submodule(site.module).weight)]
        if len(others) > 1:
            raise SettingsError(
                f"targets: {site.name} shares its weight: {', '.join(others)} are one. Untie them first."
            )


def _with_wholes(model: nn.Module, offered: list[Site]) -> list[Site]:
    """Return the sites with the fused projections that slices among them are of."""
    there = {site.name for site in offered}
    cut = dict.fromkeys(site.module for site in offered if site.module not in there)
    wholes = [sites.site_of(name, model.get_submodule(name), "qkv", sites.layer_of(name)) for name in cut]
    return [*wholes, *offered]


def _whole(site: Site, plain: Mapping[Site, nn.Module]) -> Site:
    return next(one for one in plain if one.name == site.module)


def _frozen(format_: Format, site: Site, module: Any) -> StoredLinear:
    weight = module.weight.detach()
    weight_OI = weight.T.contiguous() if site.transposed else weight
    return format_.frozen(format_.quantize(weight_OI), None if module.bias is None else module.bias.detach())


def _write(update: Update, site: Site, module: Any) -> None:
    """Give a linear layer the merged weight and bias; what another module may share is left as it is."""
    weight = module.weight.float()
    bias_O = None if module.bias is None else module.bias.float()
    weight_OI, bias_O = merged(update, site, weight.T if site.transposed else weight, bias_O)
    dtype = module.weight.dtype
    stored_weight = (weight_OI.T if site.transposed else weight_OI).to(dtype).contiguous()
    module.weight = nn.Parameter(stored_weight, requires_grad=False)
    module.bias = None if bias_O is None else nn.Parameter(bias_O.to(dtype), requires_grad=False)


def _put_back(model: nn.Module, plain: Mapping[Site, nn.Module]) -> None:
    for site, module in plain.items():
        model.set_submodule(site.name, module)
