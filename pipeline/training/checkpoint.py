"""Checkpoints: a run that is killed at any moment goes on with the same bits, and loses at most one interval.

A checkpoint is two files: `step-000050.safetensors` (method and optimizer) and, written after it, the record
`step-000050.json` with the first one's SHA-256. Only a record that reads whole and fits its tensors counts.
"""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor, nn

from pipeline.core import records
from pipeline.optimizers.base import Optimizer

KEPT = 2
"""The newest and one older: if the newest turns out damaged, the older one is used."""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoint folder of one run. `made_by` names settings and code; others' checkpoints are not resumed."""

    folder: Path
    made_by: dict[str, Any]

    def save(self, step: int, method: nn.Module, optimizer: Optimizer, progress: dict[str, Any]) -> None:
        """Write the state after `step` optimizer steps; `progress` is plain JSON and comes back from `resume`."""
        state = {f"method.{k}": v for k, v in method.state_dict().items()}
        state |= {f"optimizer.{k}": v for k, v in optimizer.state_dict().items()}
        tensors = self._tensors(step)
        # Cloned: tied weights share memory, which safetensors refuses.
        records.write_atomic(tensors, save({k: v.detach().cpu().clone() for k, v in state.items()}))
        result = {"step": step, "sha256": records.file_sha256(tensors), "progress": progress}
        records.write(self._record(step), stage="checkpoint", settings=self.made_by, result=result, about={})
        for old in self._steps()[KEPT:]:
            self._record(old).unlink()
            self._tensors(old).unlink(missing_ok=True)

    def resume(self, method: nn.Module, optimizer: Optimizer) -> tuple[int, dict[str, Any]]:
        """Load the newest whole checkpoint; return its step and progress, or (0, {}) if there is none.

        Every damaged checkpoint is named on stderr and passed over.

        Raises:
            RecordError: there are checkpoints, and all of them are damaged.
        """
        damaged = []
        for step in self._steps():
            try:
                record = records.read(self._record(step), "checkpoint")
                records.check_sha256(self._tensors(step), record.result["sha256"])
            except records.RecordError as error:
                damaged.append(str(error))
                print(f"checkpoint passed over: {error}", file=sys.stderr, flush=True)
                continue
            if record.settings != self.made_by:
                print(f"{self._record(step)}: made by other settings or code, removed", file=sys.stderr, flush=True)
                self.clear()  # left there, it would count as newer than those of the training that starts now
                return 0, {}
            self._load(step, method, optimizer)
            return step, record.result["progress"]
        if damaged:
            raise records.RecordError("\n".join([*damaged, f"No whole checkpoint is left in {self.folder}."]))
        return 0, {}

    def clear(self) -> None:
        """Remove the folder, records first: one that is left without its tensors would count as damaged."""
        for step in self._steps():
            self._record(step).unlink()
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def _load(self, step: int, method: nn.Module, optimizer: Optimizer) -> None:
        tensors = load(self._tensors(step).read_bytes())
        method.load_state_dict(_under("method.", tensors))
        optimizer.load_state_dict(_under("optimizer.", tensors))

    def _steps(self) -> list[int]:
        """Return the steps that have a record, newest first."""
        return sorted((int(path.stem.removeprefix("step-")) for path in self.folder.glob("step-*.json")), reverse=True)

    def _tensors(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}.safetensors"

    def _record(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}.json"


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
