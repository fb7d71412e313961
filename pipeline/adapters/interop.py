"""Reads PEFT's own adapters: which method here computes what an `adapter_config.json` says, and with what settings.

A field that would change what is computed and has no counterpart here is an error by name; PEFT itself drops what it
does not know with a warning. Weights are filled by `files.fill`, for the names of the tensors are PEFT's anyway.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pipeline.adapters.adalora import AdaLoRA
from pipeline.adapters.base import AdapterSettings
from pipeline.adapters.boft import BOFT
from pipeline.adapters.coft import COFT
from pipeline.adapters.dora import DoRA
from pipeline.adapters.ia3 import IA3, ON_INPUT
from pipeline.adapters.lora import LoRA
from pipeline.adapters.oft import OFT
from pipeline.adapters.rslora import RsLoRA
from pipeline.adapters.weight_oft import WeightOFT
from pipeline.core.settings import SettingsError
from pipeline.core.site import Site

Config = Mapping[str, Any]

WITHOUT_EFFECT = {
    "auto_mapping", "base_model_name_or_path", "boft_dropout", "ensure_weight_tying", "fan_in_fan_out",
    "inference_mode", "init_ia3_weights", "init_lora_weights", "init_weights", "lora_dropout", "megatron_core",
    "module_dropout", "oft_dropout", "peft_type", "peft_version", "qalora_group_size", "revision", "runtime_config",
    "target_modules", "task_type",
}  # fmt: skip
"""Fields that say where an adapter comes from, how it started, or what happens in training alone."""


def settings_of(config: Config, sites: Iterable[Site]) -> tuple[AdapterSettings, int]:
    """Return the settings that compute what PEFT does by `config`, and the number of steps that they speak of.

    Args:
        config: contents of adapter_config.json.
        sites: the places of the model.

    Raises:
        SettingsError: PEFT's method, its targets or one of its fields has no counterpart.
    """
    kind = config.get("peft_type")
    if kind not in KINDS:
        raise SettingsError(f"adapter_config.json: peft_type must be one of {', '.join(KINDS)}, got {kind!r}.")
    of, read = KINDS[kind]
    for key, value in config.items():
        if value not in (None, False, "none", {}, []) and key not in WITHOUT_EFFECT | read:
            raise SettingsError(f"adapter_config.json: {key}={value!r} has no counterpart here.")
    targets = _targets(config["target_modules"], sites)
    return of(config, targets), config.get("total_step") or 1


def _targets(wanted: Any, sites: Iterable[Site]) -> list[Site]:
    """Return the sites that PEFT would adapt; a method here takes all sites of a role, or none of them."""
    linear = [site for site in sites if site.linear and site.rows is None]

    def fits(site: Site) -> bool:
        if wanted == "all-linear":
            return True
        if isinstance(wanted, str):
            return re.fullmatch(wanted, site.name) is not None
        return any(site.name == name or site.name.endswith(f".{name}") for name in wanted)

    found = [site for site in linear if fits(site)]
    roles = {site.role for site in found}
    left = [site.name for site in linear if site.role in roles and site not in found]
    if not found or left:
        raise SettingsError(
            f"adapter_config.json: target_modules must be all layers of some roles of this model, got {wanted!r}, "
            f"which {f'leaves out {left[0]}' if left else 'names none of its layers'}."
        )
    return found


def _roles(targets: list[Site]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(site.role for site in targets))


def _lora(config: Config, targets: list[Site]) -> AdapterSettings:
    if config.get("use_dora") and config.get("use_rslora"):
        raise SettingsError("adapter_config.json: use_dora with use_rslora has no counterpart here.")
    kind = DoRA if config.get("use_dora") else RsLoRA if config.get("use_rslora") else LoRA
    return kind(rank=config["r"], alpha=float(config["lora_alpha"]), roles=_roles(targets))


def _ia3(config: Config, targets: list[Site]) -> AdapterSettings:
    on_input = set(_targets(config["feedforward_modules"], targets)) if config["feedforward_modules"] else set()
    if on_input != {site for site in targets if site.role == ON_INPUT}:
        raise SettingsError(
            f"adapter_config.json: feedforward_modules must be the targets of role {ON_INPUT}, whose input is scaled, "
            f"got {config['feedforward_modules']!r}."
        )
    return IA3(roles=_roles(targets))


def _oft(config: Config, targets: list[Site]) -> AdapterSettings:
    series, roles = config.get("use_cayley_neumann", True), _roles(targets)
    if config.get("r"):
        if series or config.get("block_share") or config.get("coft"):
            raise SettingsError("adapter_config.json: r (a number of blocks) goes with the exact transform alone here.")
        return WeightOFT(blocks=config["r"], roles=roles)
    # PEFT's n is our k + 2; its 3 is its 4, and below that its series has lost its last power.
    count = config.get("num_cayley_neumann_terms", 5)
    if series and count < 3:  # noqa: PLR2004
        raise SettingsError(f"adapter_config.json: num_cayley_neumann_terms must be 3 or more, got {count}.")
    own = {
        "block_size": config["oft_block_size"],
        "terms": max(count - 2, 2) if series else None,
        "shared": config.get("block_share", False),
        "roles": roles,
    }
    return COFT(epsilon=config["eps"], **own) if config.get("coft") else OFT(**own)


def _boft(config: Config, targets: list[Site]) -> AdapterSettings:
    if config.get("boft_n_butterfly_factor", 1) != 1 or not config.get("boft_block_size"):
        raise SettingsError(
            "adapter_config.json: BOFT must have boft_block_size and one factor, for without its CUDA extension PEFT "
            f"makes one whatever the file says; got {config.get('boft_n_butterfly_factor')}."
        )
    return BOFT(block_size=config["boft_block_size"], factors=1, rescaled=True, dropout=0.0, roles=_roles(targets))


def _adalora(config: Config, targets: list[Site]) -> AdapterSettings:
    total = config["total_step"]
    return AdaLoRA(
        rank=config["target_r"], init_rank=config["init_r"], alpha=float(config["lora_alpha"]),
        gamma=config["orth_reg_weight"], regularizer="code", warm=config["tinit"] / total,
        cool=config["tfinal"] / total, every=config["deltaT"], beta=config["beta1"], roles=_roles(targets),
    )  # fmt: skip


KINDS: dict[str, tuple[Callable[[Config, list[Site]], AdapterSettings], set[str]]] = {
    "LORA": (_lora, {"r", "lora_alpha", "use_rslora", "use_dora"}),
    "IA3": (_ia3, {"feedforward_modules"}),
    "OFT": (
        _oft,
        {"r", "oft_block_size", "use_cayley_neumann", "num_cayley_neumann_terms", "block_share", "coft", "eps"},
    ),
    "BOFT": (_boft, {"boft_block_size", "boft_n_butterfly_factor"}),
    "ADALORA": (
        _adalora,
        {
            "r",
            "target_r",
            "init_r",
            "tinit",
            "tfinal",
            "deltaT",
            "beta1",
            "beta2",
            "orth_reg_weight",
            "total_step",
            "lora_alpha",
        },
    ),
}
"""PEFT's type -> how its settings are read, and from which fields."""
