"""Published models by name: their repository on the hub, and the shape that a plan needs without the weights. Light."""

import json
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from pipeline.core.hub import Repository
from pipeline.core.settings import SettingsError
from pipeline.models.source import FILES, Source, link


class Preset(Repository, Source):
    """A published model: from the hub, pinned, or at random in its shape, to measure what it costs without it."""

    kind: ClassVar[Literal["dataset", "model"]] = "model"

    source: Literal["hub", "random"]
    config: dict[str, Any] = Field(description="what of config.json a plan must know; the hub's own is held to it")
    dtype: Literal["fp32", "bf16", "fp16"] = Field(description="of random weights")
    seed: int = Field(ge=0, description="of random weights")

    @model_validator(mode="before")
    @classmethod
    def _named(cls, node: Any) -> Any:
        """Give a random model a name of its own, lest a table takes it for the published one."""
        if isinstance(node, dict) and node.get("source") == "random" and not str(node.get("name")).endswith("-random"):
            return node | {"name": f"{node.get('name')}-random"}
        return node

    @property
    def instead(self) -> str:
        return "\nOr set model.source=random for weights of this shape alone, to measure costs without the model."

    def wanted(self) -> tuple[str, ...]:
        return FILES if self.source == "hub" else ()

    def shape(self) -> dict[str, Any]:
        return self.config

    def prepare(self, folder: Path, device: str, made_by: dict[str, Any]) -> dict[str, Any]:
        """Link the files in the hub's cache, or draw weights."""
        told = {"source": self.source, "pretraining": None}
        if self.source == "random":
            from pipeline.models.random import draw  # noqa: PLC0415  (heavy, and only here)

            draw(self.config, self.dtype, self.seed, folder)
            return told
        self.present()
        link(self.repository, {name: self.verified(name) for name in self.chosen(self.sha256)}, folder)
        published = json.loads((folder / "config.json").read_bytes())
        if wrong := {
            key: published.get(key) for key, value in self.config.items() if published.get(key, value) != value
        }:
            raise SettingsError(
                f"model.config: {self.repository} at {self.revision[:8]} has {wrong}, and the preset says "
                f"{ {key: self.config[key] for key in wrong} }. Correct the preset."
            )
        return told | {"repository": self.repository, "revision": self.revision}
