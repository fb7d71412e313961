"""What the stand-in stages share: a record of what went in, in milliseconds, and failure on request."""

import os
from pathlib import Path
from typing import Any

from pipeline.core import provenance, records
from pipeline.core.settings import digest


def record(stage: str, settings: dict[str, Any], inputs: dict[str, Path], outputs: dict, about: dict) -> None:
    """Write a record whose result is the digest of settings and inputs; a failed input is passed on."""
    told = os.environ.get("PRETEND", "")  # "fail:<part of the path>", "diverge:<...>" or "edit:<module>"
    what, _, where = told.partition(":")
    here = bool(where) and where in str(outputs["record"])
    if here and what == "fail":
        raise SystemExit("pretended failure")
    if what == "edit" and stage == "finetune":
        Path(where).write_text(Path(where).read_text() + "\nEDITED = 1\n")
    before = [records.read(path) for name, path in sorted(inputs.items()) if path.suffix == ".json"]
    status = "diverged" if here and what == "diverge" else next((r.status for r in before if r.status != "ok"), "ok")
    result = {"made_of": digest([settings, [one.result for one in before]], 16)}
    made = [outputs["items"]] if "items" in outputs else []
    if stage == "finetune" and status == "ok":
        made = [outputs["record"].parent / "adapter"]
    for path in made:
        path.write_text(f"{outputs['record']}\n")
    about = provenance.about(about.pop("started"), files=records.sizes(outputs["record"], made), **about)
    records.write(outputs["record"], stage=stage, settings=settings, result=result, about=about, status=status)
