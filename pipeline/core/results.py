"""Finds a run in a results folder, and what it stands on."""

from pathlib import Path

from pipeline.core import records
from pipeline.core.records import RecordError
from pipeline.core.settings import SettingsError, nearest


def find_run(results: Path, name: str) -> Path:
    """Return the one run folder whose name begins with `name`.

    Raises:
        SettingsError: there is none, or there are several.
    """
    known = sorted(path.name for path in (results / "runs").glob("*") if path.is_dir())
    found = [folder for folder in known if folder.startswith(Path(name).name)]
    if Path(name).name in found:
        found = [Path(name).name]
    if len(found) == 1:
        return results / "runs" / found[0]
    if found:
        raise SettingsError(f"{name}: several runs begin so. Say one of: {', '.join(found)}.")
    raise SettingsError(f"{name}: there is no such run in {results}/runs.{nearest(name, known)}")


def plans(results: Path) -> dict[str, Path]:
    """Return the plan of every table, by the table's name."""
    return {path.parent.name: path for path in sorted(results.glob("tables/*/sweep.json"))}


def stands_on(run: Path) -> tuple[Path, Path]:
    """Return the manifests of the model and of the quantized base of a run, as a plan says that names the run.

    Raises:
        RecordError: no plan beside the run names it.
    """
    results = run.parents[1]
    for path in plans(results).values():
        for one in records.read(path, "plan").result["runs"]:
            if one["folder"] == f"runs/{run.name}":
                model, base = (results / one["records"][stage]["path"] for stage in ("prepare_model", "quantize_base"))
                return model, base
    raise RecordError(
        f"{run}: no plan in {results}/tables names this run, so its base is not known. Start its sweep again; what is "
        "finished stays as it is."
    )
