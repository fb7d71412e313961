"""Makes one model's folder: built, or linked from a local one."""

from pathlib import Path
from typing import Any

from pipeline.core import provenance, records
from pipeline.core.machine import ready
from pipeline.core.settings import build
from pipeline.models.source import Source, manifest_files
from pipeline.models.weights import Weights
from pipeline.training.checkpoint import Checkpoints


def run(settings: dict[str, Any], inputs: dict[str, Path], outputs: dict[str, Path], about: dict[str, Any]) -> None:
    """Write `<record's folder>/model/` and the manifest `outputs["record"]`."""
    assert not inputs
    hardware, record = settings["hardware"], outputs["record"]
    device = ready(hardware["device"], hardware["threads"])
    source = build(settings["model"], "model")
    assert isinstance(source, Source)
    folder = record.parent / "model"
    made_by = {"settings": settings} | {key: about[key] for key in ("code", "upstream") if key in about}
    with records.writing(folder) as unfinished:
        result = source.prepare(unfinished, str(device), made_by)
    weights = Weights(folder)
    result |= {
        "name": source.name,
        "files": manifest_files(folder),
        "parameters": sum(weights.elements(name) for name in weights.names()),
    }
    _check_unchanged(settings.get("files", {}), source, result["files"])
    made = records.sizes(record, [folder / name for name in result["files"]])
    about = provenance.about(about.pop("started"), device=provenance.device_name(str(device)), files=made, **about)
    records.write(record, stage="prepare_model", settings=settings, result=result, about=about)
    Checkpoints(record.parent / "checkpoints", {}).clear()


def _check_unchanged(planned: dict[str, str], source: Source, made: dict[str, str]) -> None:
    """Refuse local files that are not the ones that the plan has seen, by their hashes; `made` has some already."""
    seen = {Path(path).name: sha256 for path, sha256 in planned.items()}
    found = {file.name: made.get(file.name) or records.file_sha256(file) for file in source.files()} if seen else {}
    if changed := sorted(name for name in seen | found if seen.get(name) != found.get(name)):
        raise records.RecordError(
            f"model: {', '.join(changed)} changed, came or went after the run was planned. Run the workflow again."
        )
