"""What every adapter method promises, so that the training loop never asks which one it runs.

A method is one Python file here and one YAML file in conf/adapter that names its settings class; nothing is edited.
It never learns how a frozen weight is stored.

Letters of this room: B batch, T time, M rows of a batch (B T), I in_features, O out_features, R rank, N blocks along
I, C block size (N C = I), E entries of a packed strict triangle, C (C - 1) / 2.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Generic, Literal, Protocol, Self, TypeVar

from annotated_types import Gt, Len
from torch import Tensor, nn

from pipeline.core.frozen import FrozenLinear
from pipeline.core.group import Group
from pipeline.core.settings import Settings, SettingsError, parse
from pipeline.core.site import LINEAR_ROLES, Site
from pipeline.core.update import Update

Places = Mapping[Site, nn.Module]
"""What is frozen at every site: a FrozenLinear, or at a site of role norm the norm itself."""
Role = Literal["q", "k", "v", "qkv", "o", "gate", "up", "down", "linear"]
Roles = Annotated[tuple[Role, ...], Len(min_length=1)]
Positive = Annotated[float, Gt(0)]
Count = Annotated[int, Gt(0)]


class Batch(Protocol):
    """A part of one optimizer step; `labels_BT[b, t]` is the target of position t, -100 where there is none."""

    labels_BT: Tensor


class Rows(Protocol):
    """What the model says about a batch."""

    def cross_entropy(self, labels_BT: Tensor) -> Tensor:
        """Return the mean over the labelled positions, in nats."""
        ...

    def logits(self) -> Tensor:
        """Return all logits, (B, T, V)."""
        ...


Forward = Callable[[Any], Rows]


class AdapterLayer(nn.Module):
    """One adapter on one linear layer."""

    def forward(self, x: Tensor, frozen: FrozenLinear) -> Tensor:
        """Return what the adapted layer makes of x (..., I), in the dtype of x."""
        raise NotImplementedError  # each method has its own

    def update(self) -> Update | None:
        """Return what merging does to the frozen weight and bias, or None where it cannot be written as weights."""
        return None

    def tensors(self) -> dict[str, Tensor]:
        """Return what is saved: the name in PEFT's format, and the parameter or what that format makes of it."""
        raise NotImplementedError  # each method has its own

    def insight(self) -> dict[str, Any]:
        """Return what is worth knowing of this layer after training, as JSON."""
        return {}

    def fill(self, saved: dict[str, Tensor]) -> None:
        """Take back what `tensors` gave, from any device; overridden where that is not the parameters themselves."""
        for name, tensor in self.tensors().items():
            tensor.copy_(saved[name])


Layers = Mapping[Site, AdapterLayer]


class AdapterSettings(Settings):
    """Settings of one method; conf/adapter/<name>.yaml names the class by `_target_`."""

    label: ClassVar[str]
    """Name in tables."""
    axis: ClassVar[str | None] = None
    """The field that says how large the adapter is, an axis of sweeps; None where there is none."""
    takes: ClassVar[bool] = False
    """Whether the adapter starts from a part of the weight, for which `quantize_base` makes it a base of its own."""

    roles: Roles = LINEAR_ROLES

    def size(self) -> tuple[str, int] | None:
        """Return the size axis and its value, such as ("rank", 8)."""
        return None if self.axis is None else (self.axis, getattr(self, self.axis))

    def resized(self, size: int) -> Self:
        """Return the same settings with another size.

        Raises:
            SettingsError: the method cannot have this size.
        """
        assert self.axis is not None
        return parse(type(self), self.node() | {self.axis: size}, "adapter")

    def method(self, seed: int, total_steps: int) -> "Method[Any, Any]":
        """Return the method of one run, not yet placed."""
        raise NotImplementedError  # each method has its own

    def take(self, weight_OI: Tensor, back: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Split a weight, where `takes`; `back` stores a weight and returns what is read again.

        Returns:
            What the base is to store (O, I), and A (R, I) and B (O, R) of what is taken out of the weight.
        """
        raise NotImplementedError  # each method that takes has its own


S = TypeVar("S", bound=AdapterSettings)
L = TypeVar("L", bound=AdapterLayer)


class Method(nn.Module, Generic[S, L]):
    """One method in one run. Every hook has a default that does nothing.

    State: all that must survive a kill is a parameter or a persistent buffer. A draw is a pure function of
    (seed, name, step), made once an optimizer step. Tensors are made on the base's device and never move: layers
    and optimizer share views of them.
    """

    start: ClassVar[tuple[Literal["identity", "near", "other"], str]]
    """What the adapted model computes before training, compared with the base, and why."""
    mergeable: ClassVar[tuple[bool, str]] = (True, "every layer is an update of its weight")
    graph_safe: ClassVar[tuple[bool, str]] = (True, "layers read device tensors only")
    not_peft: ClassVar[str] = "PEFT has no such method"
    """Why PEFT cannot hold what is saved, where `peft` returns None."""
    quantized_base: ClassVar[tuple[bool, str]] = (True, "the frozen weight is only read")
    """Whether the base may be quantized, and why."""
    unquantized_base: ClassVar[tuple[bool, str]] = (True, "any weight will do")
    """Whether the base may be left unquantized, and why."""

    def __init__(self, settings: S, seed: int, total_steps: int) -> None:
        super().__init__()
        self.settings, self.seed, self.total_steps = settings, seed, total_steps
        self.placed: dict[Site, L] = {}

    def layers(self, places: Places) -> dict[Site, L]:
        """Make the layers of the sites that the method adapts, on the device of the base."""
        raise NotImplementedError  # each method has its own

    def chosen(self, places: Places) -> dict[Site, FrozenLinear]:
        """Return the places whose role the settings name.

        Raises:
            SettingsError: there is none.
        """
        roles = self.settings.roles
        found = {s: frozen for s, frozen in places.items() if s.role in roles and isinstance(frozen, FrozenLinear)}
        if not found:
            there = ", ".join(sorted({site.role for site in places}))
            raise SettingsError(
                f"adapter.roles: the model has none of {', '.join(self.settings.roles)}; it has {there}."
            )
        return found

    def place(self, places: Places) -> Layers:
        """Make and keep the layers; called once."""
        return self.keep(self.layers(places)).placed

    def keep(self, layers: dict[Site, L]) -> Self:
        """Take these layers for the method's own; called once."""
        self.placed = layers
        self.at = nn.ModuleDict({site.name.replace(".", "/"): layer for site, layer in layers.items()})
        self.refresh()
        return self

    def groups(self) -> list[Group]:
        """Return all parameters with decay, learning-rate scale and masks, for the optimizer."""
        return [Group(list(self.parameters()))]

    def before_step(self, step: int) -> None:
        """Draw what is random in optimizer step `step` (from 0), into tensors that layers and masks already share."""

    def loss(self, forward: Forward, batch: Batch) -> Tensor:
        """Return the mean loss over the labelled rows of this part of the step; the loop weights the parts."""
        return forward(batch).cross_entropy(batch.labels_BT)

    def after_backward(self, step: int) -> None:
        """See the gradients of the whole step, before they are clipped."""

    def after_step(self, step: int) -> None:
        """Act on the parameters that the optimizer has just moved."""

    def refresh(self) -> None:
        """Rebuild what derives from parameters: after placing, each step and each load."""

    @property
    def points(self) -> list[int]:
        """Return what `at` may be, where one training gives several adapters."""
        return []

    def export(self, at: int | None = None) -> Layers:
        """Return the layers that are shipped and scored; they may share memory with the method's."""
        assert at is None, f"{type(self).__name__} has no points, got {at}"
        return self.placed

    def updates(self, at: int | None = None) -> dict[Site, Update]:
        """Return what merging does to every site it touches; of a mergeable method only."""
        found = {}
        for site, layer in self.export(at).items():
            update = layer.update()
            assert update is not None, (
                f"{type(self).__name__} says that it is mergeable, its layer at {site.name} is not"
            )
            found[site] = update
        return found

    def shipped(self, at: int | None = None) -> "Method[Any, Any]":
        """Return the method whose folder is shipped: itself, or a plain one with the layers of `export(at)`."""
        assert at is None, f"{type(self).__name__} has no points, got {at}"
        return self

    def insight(self) -> dict[str, Any]:
        """Return what is worth knowing about the method after training, as JSON: by default what its layers say."""
        found: dict[str, Any] = {}
        for site, layer in self.export().items():
            for key, value in layer.insight().items():
                found.setdefault(key, {})[site.name] = value
        return found

    def peft(self) -> dict[str, Any] | None:
        """Return the fields of PEFT's configuration that make it compute the same, or None where it cannot."""
        return None
