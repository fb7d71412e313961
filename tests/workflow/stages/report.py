"""Stands in for the stage of the same name."""

from pipeline.aggregation.files import made
from pipeline.core import provenance, records


def run(settings, inputs, outputs, about):
    outputs["html"].write_text("<html></html>")
    files = records.sizes(outputs["record"], made(outputs["html"].parent))
    about = provenance.about(about.pop("started"), files=files, **about)
    records.write(outputs["record"], stage="report", settings=settings, result={}, about=about)
