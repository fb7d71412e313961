"""`python -m pipeline STAGE --config JSON --input name=path ... --output name=path ...`, or a command on results.

Every line that Snakemake prints with -p can be pasted into a shell.
Commands: pin, prefetch, table, choose, export, learning-rates, sensitivity, runs, explain, diff, gc, sync.
"""

import argparse
import os
import sys
import time
from pathlib import Path

COMMANDS = {
    "table": ("pipeline.aggregation.command", "main"),
    "choose": ("pipeline.aggregation.choose", "main"),
    "export": ("pipeline.merging.export", "main"),
    "learning-rates": ("pipeline.aggregation.learning_rates", "main"),
    **{name: ("pipeline.sweeps.pins", name) for name in ("pin", "prefetch")},
    "sensitivity": ("pipeline.evaluation.sensitivity", "main"),
    **{name: ("pipeline.sweeps.command", name) for name in ("runs", "explain", "diff", "gc")},
    "sync": ("pipeline.tracking.sync", "main"),
}
STAGES = sorted(file.stem for file in (Path(__file__).parent / "stages").glob("[a-z]*.py"))


def main(argv: list[str]) -> int:
    """Run one command, or one stage: in a process forked from the preloaded one where there is one."""
    if argv and argv[0] in COMMANDS:
        return command(*argv)
    if address := os.environ.get("PIPELINE_PRELOADED"):
        from pipeline.core.preload import submit

        return submit(address, argv)
    return run(argv)


def command(name: str, *argv: str) -> int:
    """Run one command; what is wrong with its arguments or the results is one message."""
    from pipeline.core.records import RecordError
    from pipeline.core.settings import SettingsError, imported

    module, function = COMMANDS[name]
    try:
        return getattr(imported(module), function)(list(argv))
    except (SettingsError, RecordError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1


def run(argv: list[str]) -> int:
    """Run one stage in this process; what is wrong with its files or settings is one message."""
    import json

    from pipeline.core.leases import lease
    from pipeline.core.records import RecordError
    from pipeline.core.settings import SettingsError, canonical, imported
    from pipeline.sweeps import closure

    given = _parser().parse_args(argv)
    about = {"started": time.time(), "code": given.code, "upstream": given.upstream}
    inputs, outputs = ({name: Path(path) for name, path in pairs} for pairs in (given.input, given.output))
    try:
        settings = json.loads(given.config)
        if given.code not in ("", now := closure.code(given.stage, canonical(settings))):
            raise SettingsError(f"the code is {now}, and the plan was for {given.code}: start Snakemake again.")
        with lease(given.gpus):
            imported(f"pipeline.stages.{given.stage}").run(settings, inputs, outputs, about)
    except (SettingsError, RecordError, OSError) as error:
        print(f"{given.stage}: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--config", required=True, help="the stage's settings, as JSON")
    for way in ("--input", "--output"):
        parser.add_argument(way, nargs="*", default=[], type=_pair, metavar="NAME=PATH")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs to lease for the stage")
    parser.add_argument("--code", default="", help="digest of the code, for the record; refused if it is another")
    parser.add_argument("--upstream", default="", help="digest of all earlier steps, for the record")
    return parser


def _pair(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"write name=path, got {text!r}")
    return name, path


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
