"""A place in a model where an adapter may sit."""

from dataclasses import dataclass

LINEAR_ROLES = ("q", "k", "v", "o", "gate", "up", "down")
ROLES = (*LINEAR_ROLES, "norm", "stack")


@dataclass(frozen=True)
class Site:
    """One linear layer (or norm, or the whole stack of blocks) by name and role.

    `name` is the module's path, unique also for a slice of a fused projection ("h.0.attn.c_attn:q").
    `role` is one of ROLES; a plain MLP has up and down and no gate.
    `rows` are the indices of this site's outputs in a fused projection: a slice would not do, because some
    architectures interleave heads.
    """

    name: str
    role: str
    in_features: int
    out_features: int
    layer: int
    bias: bool
    rows: tuple[int, ...] | None = None
