"""All blocks of a decoder as one place, for methods that couple blocks instead of changing one layer."""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn

from pipeline.core.site import Site


class Stack(nn.ModuleList):
    """The blocks of a decoder. They run one after another, or as the adapter that sits on them all makes them run.

    A model goes through its blocks in a loop; with an adapter on the stack the loop meets one block, the adapter.
    """

    frozen: Any

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        super().__init__(blocks)
        self.__dict__.update(adapter=None, frozen=self)  # as in a Place; no submodules

    def __iter__(self) -> Iterator[Any]:
        """Yield the blocks as the model's own loop is to meet them."""
        adapter = self.__dict__["adapter"]
        return super().__iter__() if adapter is None else iter([partial(self._adapted, adapter)])

    def __getitem__(self, index: Any) -> Any:
        """Return a block, or for a slice a list of what the loop is to meet."""
        return list(self)[index] if isinstance(index, slice) else super().__getitem__(index)

    def _adapted(self, adapter: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Run the adapter on the blocks, each bound to what the model hands to every block; return as a block does."""
        made: list[Any] = []

        def bound(block: nn.Module, x: Tensor) -> Tensor:
            made[:] = [block(x, *args, **kwargs)]
            return made[0][0] if isinstance(made[0], tuple) else made[0]

        y = adapter(x, [partial(bound, block) for block in self.children()])
        return (y,) if isinstance(made[0], tuple) else y


def stacked(model: Any, sites: Iterable[Site]) -> dict[Site, Stack]:
    """Make the model's list of blocks a place; none where there are several lists, as in an encoder-decoder."""
    lists = {site.name.split(f".{site.layer}.")[0] for site in sites}
    if len(lists) != 1:
        return {}
    (name,), width = lists, model.config.hidden_size
    parent, _, leaf = name.rpartition(".")
    stack = Stack(model.get_submodule(name))
    setattr(model.get_submodule(parent), leaf, stack)
    return {Site(name, "stack", width, width, 0, bias=False): stack}
