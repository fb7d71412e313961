"""Stands in for the stage of the same name."""


def run(settings, inputs, outputs, about):
    outputs["html"].write_text("<html></html>")
