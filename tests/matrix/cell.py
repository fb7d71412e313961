"""One cell of the matrix: an adapter on a format on an architecture, from its first step to what ships.

| step | what is held |
|---|---|
| train | the loss falls; the base is what it was |
| reload | saved and loaded into a fresh method, it computes the same bit for bit |
| each merged state | it is what its name says; merged into the base's own weight it computes what was trained |
| absorb | what ships in the base's own codes computes what was trained; else why there are new codes |
| peft | PEFT computes the same from the file; else why there is no file (on unquantized bases) |

An outcome is `ok`, `refused: why`, or `defect: what`.
"""

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline.adapters import files
from pipeline.adapters.base import Method
from pipeline.core.settings import SettingsError
from pipeline.merging.report import report
from pipeline.models.adapt import adapt
from pipeline.models.load import Base
from pipeline.models.states import OWN_CODES, STATES, entered, labels
from pipeline.quantization.none import Dense
from tests.adapters import tiny
from tests.matrix import bases

OK, REFUSED, DEFECT = "ok", "refused: ", "defect: "
STEPS = ("train", "reload", *STATES[2:], "absorb", "peft")
CLOSE = 2e-5
"""Of the largest logit: what is the same but for round-off."""
ROUNDED = 0.05
"""The same where a format rounds inputs, which a merged dense weight does not."""
WORST = 0.2
"""Error of a requantized weight, relative to what it was to be; on these weights FP4's own is 0.13."""

Outcomes = dict[str, str]


class DefectError(AssertionError):
    """What a cell must not do."""


def tried(adapter: Path, format_: Path, architecture: str) -> Outcomes:
    """Return what came of every step that the cell has."""
    settings = bases.aimed(tiny.settings(adapter), architecture)
    base = bases.base(architecture, tiny.settings(format_))
    try:
        tiny.take(settings, base)
        method = adapt(base, settings, 0, tiny.TOTAL_STEPS)
    except SettingsError as error:
        return {"train": f"{REFUSED}{_reason(error, settings.method(0, tiny.TOTAL_STEPS), base)}"}
    found = {"train": _outcome(lambda: _train(base, method))}
    trained = {at: tiny.logits_at(base, method, at) for at in tiny.points(method)}
    with tempfile.TemporaryDirectory() as made:
        files.save(method, Path(made), base_name=architecture)
        found["reload"] = _outcome(lambda: _reload(base, method, Path(made), trained))
        if isinstance(base.format, Dense):
            found["peft"] = _outcome(lambda: _peft(method, Path(made), architecture, trained))
    return found | _merged(base, method, trained)


def _outcome(step: Callable[[], str | None]) -> str:
    try:
        reason = step()
    except DefectError as error:
        return f"{DEFECT}{error}"
    except Exception as error:  # whatever it is, the cell has a hole
        return f"{DEFECT}{type(error).__name__}: {error}"
    return OK if reason is None else f"{REFUSED}{reason}"


def _hold(holds: bool, what: str) -> None:
    if not holds:
        raise DefectError(what)


def _reason(error: SettingsError, method: Method[Any, Any], base: Base) -> str:
    """Return the method's own words where the format is the matter, else the message."""
    allowed, why = method.unquantized_base if isinstance(base.format, Dense) else method.quantized_base
    return re.sub(r"\S+\.\d+\.\S+", "…", str(error)) if allowed else why  # one reason, whatever the site


def _train(base: Base, method: Method[Any, Any]) -> None:
    base.detach()
    before = tiny.logits(base)
    base.attach(method.placed)
    losses = tiny.train(base, method, tiny.optimizer(method), range(tiny.TOTAL_STEPS))
    _hold(sum(losses[-2:]) < sum(losses[:2]), f"the loss did not fall: {losses[0]:.3f} to {losses[-1]:.3f}")
    base.detach()
    _hold(torch.equal(tiny.logits(base), before), "training moved the base")


def _reload(base: Base, method: Method[Any, Any], folder: Path, trained: dict[int | None, torch.Tensor]) -> None:
    again = adapt(base, *files.made_of(folder))
    files.load(again, folder)
    for at, logits in trained.items():
        _hold(torch.equal(tiny.logits_at(base, again.eval(), at), logits), "a loaded adapter computes something else")


def _peft(
    method: Method[Any, Any], folder: Path, architecture: str, trained: dict[int | None, torch.Tensor]
) -> str | None:
    if (reason := files.not_in_peft(method)) is not None:
        _hold(not (folder / files.CONFIG).exists(), "there is a file for PEFT, which cannot hold it")
        return reason
    import peft  # noqa: PLC0415  (seconds)

    theirs = peft.PeftModel.from_pretrained(bases.model(architecture), folder).eval()
    with torch.no_grad():
        got = theirs(input_ids=tiny.parts(step=1)[0].ids_BT).logits
    _same(got, trained[max((at for at in trained if at), default=None)], CLOSE, "PEFT computes something else")
    return None


def _merged(base: Base, method: Method[Any, Any], trained: dict[int | None, torch.Tensor]) -> Outcomes:
    """Return the outcome of every merged state that such a base has, and whether codes stay."""
    states = STATES[2:3] if isinstance(base.format, Dense) else STATES[2:]
    found = {state: _outcome(lambda state=state: _state(base, method, state, trained)) for state in states}
    if not isinstance(base.format, Dense) and method.mergeable[0]:
        found["absorb"] = _outcome(lambda: _absorbed(base, method, trained))
    return found


def _state(base: Base, method: Method[Any, Any], state: str, trained: dict[int | None, torch.Tensor]) -> str | None:
    wanted, skipped = labels([state], method, base.format)
    if skipped:
        return skipped[state].removeprefix("cannot be merged: ")
    base.detach()
    before, told = tiny.logits(base), report(base, method, [state])["states"]
    own = state == "merged-dequantized" or isinstance(base.format, Dense)
    for label in wanted:
        with entered(base, method, label) as digest:
            merged = tiny.logits(base)
        _hold(digest == told[str(label)]["digest"], f"{label}: the report tells of other weights")
        _hold(told[str(label)]["error"] <= (WORST if state.startswith("requantized") else 1e-6), f"{label}: is not it")
        if own:
            _same(merged, trained[label.at], _bound(base), f"{label}: merged is not trained")
    _hold(torch.equal(tiny.logits(base), before), f"{state}: the base is not what it was")
    return None


def _absorbed(base: Base, method: Method[Any, Any], trained: dict[int | None, torch.Tensor]) -> str | None:
    wanted, _ = labels([OWN_CODES], method, base.format)
    told, reasons = report(base, method, [OWN_CODES])["states"], {}
    for label in wanted:
        reasons |= told[str(label)]["requantized"]
        if told[str(label)]["exact"] == 1:
            with entered(base, method, label):
                _same(tiny.logits(base), trained[label.at], _bound(base), f"{label}: exact is not what was trained")
    return "; ".join(sorted(reasons)) or None


def _bound(base: Base) -> float:
    return ROUNDED if "int8" in base.format.name else CLOSE


def _same(got: torch.Tensor, expected: torch.Tensor, bound: float, what: str) -> None:
    difference = float((got - expected).abs().max() / expected.abs().max())
    _hold(difference <= bound, f"{what}: apart by {difference:.1e} of the largest logit")
