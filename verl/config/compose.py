"""Presets and command-line overrides in, one plain dict out. Hydra only composes; ``verl.config.build`` checks.

YAML holds presets, not every key, so an override may name a key that no preset mentions: it is passed to Hydra as one
to add, and whether it exists is decided against the dataclasses. Hydra is imported when it is first needed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from verl.config.nearest import nearest
from verl.errors import UserError, noted, refuse

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

CONFIG_DIR = Path(__file__).resolve().parents[2] / "configs"


def compose(
    preset: str | Mapping[str, Any], overrides: Sequence[str] = (), config_dir: Path = CONFIG_DIR
) -> dict[str, Any]:
    """A preset (a file of ``config_dir``, without its ending) with ``overrides`` in Hydra's grammar.

    In place of a preset's name, a whole configuration may be given, that of a run: a choice among presets
    (``data=files``) then takes the place of all that stood under its name.

    Raises UserError: no such preset or group choice (with the nearest one), an override that cannot be parsed, a value
    left open (``???``), an interpolation that leads nowhere.
    """
    from hydra import initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    parsed = parse(overrides)
    written: list[str] = []
    faults: list[str] = []
    for override in parsed:
        with noted(faults):
            written.append(_for_hydra(override, config_dir))
    refuse(faults)
    if isinstance(preset, str):
        name = preset
        _check_choice("config", name, _choices(config_dir))
    else:
        name = "given"
        chosen = {str(override.key_or_group) for override in parsed if (config_dir / override.key_or_group).is_dir()}
        ConfigStore.instance().store(name, {key: value for key, value in preset.items() if key not in chosen})
    try:
        with initialize_config_dir(str(config_dir), version_base="1.3"):
            config = _composed(name, written, config_dir)
        refuse(f"{key}: has no value; write {key}=..." for key in sorted(OmegaConf.missing_keys(config)))
        plain = OmegaConf.to_container(config, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_one_line(error)) from error
    if not isinstance(plain, dict):
        raise UserError(f"{config_dir / name}.yaml: must be a mapping of keys")
    return {str(key): value for key, value in plain.items()}


def parse(overrides: Sequence[str]) -> list[Override]:
    """Read overrides in Hydra's grammar. Raises UserError with one line for each that cannot be read."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser, parsed, faults = OverridesParser.create(), [], []
    for text in overrides:
        try:
            parsed.append(parser.parse_override(text))
        except HydraException:
            remedy = "quote a value that holds spaces, brackets or ~" if "=" in text else f"write {text}=VALUE"
            if text.startswith("-"):
                remedy = "the options are --help and -m, and keys are written without dashes"
            faults.append(f"{text}: cannot be read as an override (key=value); {remedy}")
    refuse(faults)
    return parsed


def expand_grid(overrides: Sequence[str]) -> list[list[str]]:
    """Each combination of the values that are swept (``seed=1,2``), in order; the last key varies fastest."""
    axes: list[list[str]] = []
    for text, override in zip(overrides, parse(overrides), strict=True):
        if override.is_sweep_override():
            axes.append([f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()])
        else:
            axes.append([text])
    return [list(combination) for combination in product(*axes)]


def quoted(text: str) -> str:
    """``text`` as a value in Hydra's grammar that is read back as it stands, whatever characters it has."""
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + (found[2] and r"\'"), text)
    return f"'{escaped}'"


def last_value(overrides: Sequence[str], key: str) -> str | None:
    """What ``key=`` names, where a command reads it itself: as it stands, or without the quotes around it."""
    named = [text for text in overrides if text.startswith(f"{key}=")]
    if not named:
        return None
    text = named[-1].partition("=")[2]
    return str(parse(named[-1:])[0].value()) if text[:1] in ("'", '"') else text


def to_yaml(data: Mapping[str, Any]) -> str:
    """YAML text with the keys in their order."""
    import yaml

    return yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True, width=120)


def from_yaml(path: Path) -> dict[str, Any]:
    """What ``to_yaml`` wrote into a file. Raises UserError if it holds anything else."""
    import yaml

    try:
        data = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is no YAML: {_one_line(error)}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: must be a mapping of keys")
    return data


def config_hash(resolved: Mapping[str, Any]) -> str:
    """12 hexadecimal digits that two configurations share exactly if they are equal.

    The order of keys does not matter; 1 and 1.0 differ.
    """
    text = json.dumps(resolved, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _for_hydra(override: Override, config_dir: Path) -> str:
    """The override as Hydra wants it: a group choice as it is (once checked), any other key as one that may be new."""
    text = str(override.input_line)
    if override.is_sweep_override():
        raise UserError(f"{text}: several values are a grid; write -m before it, or quote them to make them one")
    group = str(override.key_or_group)
    folder = config_dir / group
    if not folder.is_dir():
        return text if override.is_delete() or override.is_add() or override.is_force_add() else f"++{text}"
    choice = override.value()
    if isinstance(choice, str) and not override.is_delete():
        _check_choice(group, choice, _choices(folder))
    return text


def _composed(config_name: str, written: list[str], config_dir: Path) -> DictConfig:
    """What Hydra makes of it. A group that the preset does not choose (``hardware=gpu8``) comes last of all."""
    from hydra import compose as hydra_compose
    from hydra.errors import ConfigCompositionException

    try:
        return hydra_compose(config_name, written)
    except ConfigCompositionException as error:
        groups = [text for text in written if (config_dir / text.partition("=")[0]).is_dir()]
        lacking = [text for text in groups if f"'{text.partition('=')[0]}'" in str(error)]
        if not lacking:
            raise
    return _composed(config_name, [f"+{text}" if text in lacking else text for text in written], config_dir)


def _check_choice(group: str, choice: str, known: list[str]) -> None:
    if choice not in known:
        listing = ", ".join(known) or "none"
        raise UserError(f"{group}={choice}: no such preset{nearest(choice, known)}; there are: {listing}")


def _choices(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


def _one_line(error: Exception) -> str:
    """The first informative line of a Hydra message, without terminal colours."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "; ".join(lines[:2]) if lines else type(error).__name__
