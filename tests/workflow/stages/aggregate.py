"""Stands in for the stage of the same name: refuses whatever is not exactly what the plan expects."""

from pathlib import Path

from pipeline.core import provenance, records
from pipeline.core.settings import deciding, digest


def run(settings, inputs, outputs, about):
    plan = records.read(inputs["sweep"], "plan").result
    results, lines = inputs["sweep"].parents[2], []
    for subject in plan["runs"] + plan["bases"]:
        for one in [*subject["tasks"].values(), *subject["records"].values()]:
            found = records.read(results / one["path"])
            said = {"settings": digest(deciding(found.settings), 16)} | {
                key: found.about[key] for key in ("code", "upstream")
            }
            assert said == {key: one[key] for key in said}, f"{one['path']}: {said} is not {one}"
        lines.append(f"| {subject['name']} | {found.status} | {','.join(subject['kept'])} |")
    for name in ("rows", "layers", "tex", "csv", "md", "txt"):
        Path(outputs[name]).write_text("\n".join(lines) + "\n")
    about = provenance.about(about.pop("started"), **about)
    records.write(outputs["record"], stage="aggregate", settings=settings, result={"lines": lines}, about=about)
