"""A place in a model where an adapter may sit."""

from dataclasses import dataclass, field

LINEAR_ROLES = ("q", "k", "v", "o", "gate", "up", "down")
"""All linear layers of a block, each once."""
ROLES = (*LINEAR_ROLES, "qkv", "linear", "norm", "stack")


@dataclass(frozen=True)
class Site:
    """One linear layer (or norm, or the whole stack of blocks) by name and role.

    `name` is the module's path, unique also for a slice of a fused projection ("h.0.attn.c_attn:q").
    `role` is one of ROLES; a plain MLP has up and down and no gate. A fused projection is a place as a whole (qkv) and
    by its slices (q, k, v). A layer that the user named in a model of no known architecture is called linear.
    `rows` are the indices of this site's outputs in a fused projection: a slice would not do, because some
    architectures interleave heads.
    `transposed` says that the module keeps its weight as (I, O), as GPT-2's Conv1D does.
    """

    name: str
    role: str
    in_features: int
    out_features: int
    layer: int
    bias: bool
    rows: tuple[int, ...] | None = field(default=None, hash=False, repr=False)
    transposed: bool = False

    @property
    def linear(self) -> bool:
        """Say whether the site is a linear layer, or a slice of one."""
        return self.role not in ("norm", "stack")

    @property
    def module(self) -> str:
        """Return the path of the module that the site is, or is a slice of."""
        return self.name.partition(":")[0]
