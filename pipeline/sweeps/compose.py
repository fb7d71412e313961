"""Composes conf/ with Hydra, once per choice of files (0.1 s each), into plain nodes; and sets single keys in them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline.core.settings import SettingsError, canonical, nearest, parse
from pipeline.sweeps.nodes import Node, flat
from pipeline.sweeps.settings import CHOICES, SIZES, Request, Sweep, split

CONF = Path(__file__).resolve().parents[2] / "conf"
GROUPS = (*CHOICES, "task", "evaluation", "tracker", "hardware", "report", "sweep")
PLAIN = ("seed", "data_root")
"""Settings that lie in no group."""
MISSING = "???"


@dataclass(frozen=True)
class Override:
    """One `key=value` of the user."""

    key: str
    value: Any
    text: str

    @property
    def group(self) -> str:
        """The group that the key lies in."""
        return self.key.partition(".")[0]

    @property
    def path(self) -> list[str]:
        """The rest of the key; empty where the value chooses a file of the group."""
        return self.key.split(".")[1:]


def asked(config: Mapping[str, Any]) -> Request:
    """Check the keys of `snakemake --config`."""
    known = list(Request.model_fields)
    for key, value in config.items():
        if key in GROUPS and key not in known:
            chosen(key, value)
        if key not in known:
            raise SettingsError(
                f"{key}: --config {key}={value} is not known.{nearest(key, known)} Allowed: {', '.join(known)}. "
                f"A setting goes into --config overrides='{key}={value}'."
            )
    return parse(Request, {"sweep": "default", **config, "overrides": split(config.get("overrides") or ())})


def files(group: str) -> list[str]:
    """Return the names that `group` may choose from: the files of conf/<group>/."""
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def chosen(group: str, name: object, key: str = "") -> str:
    """Return `name` if conf/<group>/<name>.yaml exists, else say what does."""
    known, name = files(group), str(name)
    if name not in known:
        raise SettingsError(
            f"{key or group}: there is no {group} {name!r}.{nearest(name, known)} Allowed: {', '.join(known)}."
        )
    return name


@cache
def composed(choices: tuple[tuple[str, str], ...]) -> Node:
    """Compose conf/config.yaml with `choices` (Hydra's group -> file); interpolations stay as they are written."""
    if not GlobalHydra.instance().is_initialized():  # once: it looks for plugins in all that is installed
        initialize_config_dir(str(CONF), version_base="1.3", job_name="sweep")
    try:
        config = compose("config", overrides=[f"{group}={name}" for group, name in choices])
        node = OmegaConf.to_container(config, resolve=False)
    except (HydraException, OmegaConfBaseException) as error:
        raise SettingsError(f"conf/: {error}") from None
    assert isinstance(node, dict)
    return {str(key): value for key, value in node.items()}


def tasks(names: list[str], data_root: str | None = None) -> Node:
    """Return the nodes of the tasks `names`, each composed under `task.<name>`."""
    nodes = composed(tuple((f"+task@task.{name}", name) for name in names))["task"]
    return resolved(nodes, data_root)


def data_root(overrides: list[Override]) -> str | None:
    """Return the folder of local data: the user's override, else what conf/config.yaml says."""
    given = [override.value for override in overrides if override.key == "data_root"]
    found = given[-1] if given else resolved({"here": composed(())["data_root"]})["here"]
    if found is not None and not (isinstance(found, str) and Path(found).expanduser().is_dir()):
        raise SettingsError(f"data_root: must be a folder, or null to read the hub's cache, got {found!r}.")
    return found and str(Path(found).expanduser())


def resolved(config: Node, data_root: str | None = None) -> Node:
    """Return `config` without interpolations. Most have none, and OmegaConf costs milliseconds a run."""
    if "${" not in canonical(config):
        return config
    try:
        plain = OmegaConf.to_container(OmegaConf.create(config | {"data_root": data_root}), resolve=True)
    except OmegaConfBaseException as error:
        raise SettingsError(str(error)) from None
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items() if key != "data_root"}


def parsed(texts: tuple[str, ...]) -> list[Override]:
    """Read the user's overrides by Hydra's grammar; each must give one value to one key."""
    parser = OverridesParser.create()
    found: list[Override] = []
    for text in texts:
        try:
            one = parser.parse_override(text)
        except HydraException as error:
            raise SettingsError(f"{text}: cannot be read ({str(error).splitlines()[0]}). Write key=value.") from None
        key = one.key_or_group
        if one.is_sweep_override():
            raise SettingsError(f"{key}: got several values, {text!r}. A grid goes into sweep.axes={{{key}: [...]}}.")
        if one.type is None or one.type.name != "CHANGE":
            raise SettingsError(f"{key}: got {text!r}. Write key=value without + or ~.")
        _known_group(key)
        _finite(key, one.value())
        found.append(Override(key, one.value(), text))
    return found


def _finite(key: str, value: object) -> None:
    """Refuse numbers that no setting can mean, at any depth."""
    if isinstance(value, float) and not math.isfinite(value):
        raise SettingsError(f"{key}: must be a finite number, got {value}.")
    for inner in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        _finite(key, inner)


def _known_group(key: str) -> None:
    """Refuse a key that lies in no group, and name the setting that may be meant."""
    group = key.partition(".")[0]
    if group in GROUPS or key in PLAIN:
        return
    known = [*GROUPS, *PLAIN]
    if group in Sweep.model_fields:
        hint = f" Did you mean 'sweep.{group}'?"
    else:
        found = [full for full in flat(composed(())) if full.endswith(f".{key}")]
        hint = f" Did you mean '{min(found, key=len)}'?" if found else nearest(group, known)
    raise SettingsError(f"{key}: there is no such setting.{hint} Allowed: {', '.join(known)}, and the keys in them.")


def not_swept(overrides: list[Override], sweep: Sweep) -> None:
    """Refuse a plain value for a swept axis: the grid would replace it without a word."""
    paths = {axis: axis for axis in (*CHOICES, "task", "seed")}
    paths |= {key: axis for axis, key in SIZES.items() if getattr(sweep, axis)}
    paths |= {key: f'axes={{"{key}"}}' for key in sweep.axes}
    for override in overrides:
        if override.key == "sweep":
            chosen("sweep", override.value)
            raise SettingsError(f"sweep: choose it by --config sweep={override.value}.")
        if (axis := paths.get(override.key)) is None:
            continue
        if axis in (*CHOICES, "task"):
            chosen(axis, override.value)
        now = sweep.axes.get(override.key) or getattr(sweep, axis)
        kind = {"seed": "integers from 0", **dict.fromkeys(SIZES, "integers from 1")}.get(axis, "")
        raise SettingsError(
            f"{override.key}: got {override.value!r}, but it is an axis of sweep {sweep.name!r}, now {now}"
            f"{f'; allowed: {kind}' if kind else ''}. Say sweep.{axis}=[...] instead."
        )
