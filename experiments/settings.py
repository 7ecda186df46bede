"""Settings at the edge: from config files and overrides to a checked `RunSpec`, and to disk."""

import dataclasses
import difflib
import json
import logging as std_logging
import pathlib
import re
import runpy
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import config_dict, config_flags

from deepseek_jax.core import config as core_config
from deepseek_jax.core.contrastive_spec import ContrastiveRunSpec
from deepseek_jax.core.policy_spec import GrpoRunSpec, PpoRunSpec
from deepseek_jax.core.preference_spec import PreferenceRunSpec
from deepseek_jax.core.run_spec import RunSpec
from deepseek_jax.core.stage_spec import ProblemsRunSpec, RewardRunSpec, TaskEvalSpec
from deepseek_jax.core.steering_spec import SteeringRunSpec
from experiments import presets

FILE_NAME = "config.json"
StageSpec = (
    RunSpec
    | ContrastiveRunSpec
    | ProblemsRunSpec
    | RewardRunSpec
    | PreferenceRunSpec
    | PpoRunSpec
    | GrpoRunSpec
    | SteeringRunSpec
)

flags.disclaim_key_flags()  # `--help` shows the flags with the program, not with this file.


def freeze(settings: config_dict.ConfigDict | Mapping[str, Any]) -> Any:
    """The checked, typed settings of a run: the spec of its `stage`, `RunSpec` if it has none.

    Args:
      settings: what a config file returns, overrides applied, or the same as nested dicts.

    Raises:
      ValueError: an unknown setting (with the nearest known one), a missing one, or a rule of
        a spec that does not hold.
      TypeError: a value whose type is not exactly that of its field.
    """
    values = dict(settings.to_dict() if hasattr(settings, "to_dict") else settings)
    spec_class = _spec_class(values)
    for name, kind in _nodes(spec_class).items():
        if name in values and isinstance(values[name], Mapping):
            values[name] = core_config.from_config(kind, values[name], where=name)
    return core_config.from_config(spec_class, values, where="config")


def _spec_class(values: Mapping[str, Any]) -> type:
    """Which kind of run settings are for."""
    if "stage" not in values:
        return RunSpec
    match values["stage"]:
        case "contrastive":
            return ContrastiveRunSpec
        case "problems":
            return ProblemsRunSpec
        case "reward":
            return RewardRunSpec
        case "preferences":
            return PreferenceRunSpec
        case "ppo":
            return PpoRunSpec
        case "grpo":
            return GrpoRunSpec
        case "steering":
            return SteeringRunSpec
        case other:
            raise ValueError(
                f"stage={other!r} is not one of ['contrastive', 'problems', 'reward', "
                "'preferences', 'ppo', 'grpo', 'steering']; a run on text has none"
            )


def _nodes(spec_class: type) -> dict[str, type]:
    """The nodes of a kind of run, by name."""
    return {
        name: kind
        for name, kind in typing.get_type_hints(spec_class).items()
        if isinstance(kind, type) and dataclasses.is_dataclass(kind)
    }


def load_config(name: str) -> config_dict.ConfigDict:
    """The settings of a config file, `FILE` or `FILE:VARIANT`, open to changes.

    Raises:
      FileNotFoundError: there is no such file.
      UnknownVariantError: the file has no such variant.
    """
    path, _, variant = name.partition(":")
    _require_config_file(path)
    return runpy.run_path(path)["get_config"](variant)


def to_dict(run_spec: StageSpec) -> dict[str, Any]:
    """The settings as nested dicts; `freeze` is the way back."""
    return dataclasses.asdict(run_spec)


def load_run_spec(workdir: pathlib.Path) -> Any:
    """The settings that the run in a directory was started with.

    Raises:
      FileNotFoundError: the directory holds no run.
      ValueError: the file is not JSON, or not the settings of a run.
      TypeError: a value of a wrong type.
    """
    path = pathlib.Path(workdir) / FILE_NAME
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected the settings of a run")
    try:
        settings = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected the settings of a run as JSON: {error}") from error
    if not isinstance(settings, dict):
        raise TypeError(f"{path}: expected an object of settings, got {type(settings).__name__}")
    try:
        return freeze(settings)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{path}: {error}") from error


def config_flag() -> Callable[[], Any]:
    """Defines `--config`, required; returns what reads it once flags are parsed."""
    holder = config_flags.DEFINE_config_file(
        "config", help_string="Config file, FILE or FILE:VARIANT.", lock_config=True
    )
    flags.mark_flag_as_required(holder)
    return lambda: freeze(holder.value)


def workdir_flag() -> Callable[[], pathlib.Path]:
    """Defines `--workdir`, required; returns what reads it once flags are parsed."""
    holder = flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
    return lambda: pathlib.Path(holder.value).absolute()


def step_flag() -> Callable[[], int | None]:
    """Defines `--step`, the checkpoint to open; the newest if it is not given."""
    holder = flags.DEFINE_integer("step", None, "Checkpoint to open; the newest by default.")
    return lambda: holder.value


def run_app(main: Callable[..., None], *arguments: Callable[[], Any]) -> None:
    """Starts a program whose user sees one line, and exit code 2, for a bad setting.

    Only reading flags and settings is covered: an error inside `main` keeps its traceback.

    Args:
      main: the program; gets the arguments' values.
      arguments: each reads a value once flags are parsed, e.g. what `config_flag` returned,
        and raises ValueError, TypeError or OSError if the user got it wrong.
    """

    def start(argv: Sequence[str]) -> None:
        del argv
        logging.set_verbosity(logging.WARNING)  # orbax tells every step of every save
        std_logging.getLogger("deepseek_jax").setLevel(std_logging.INFO)
        try:
            values = [read() for read in arguments]
        except (ValueError, TypeError, OSError) as error:
            _refuse(error)
        main(*values)

    app.run(start, flags_parser=_parse_flags)


def check_overrides(argv: Sequence[str]) -> None:
    """Checks the names in `--config.NODE.NAME` arguments before ml_collections looks at them.

    Raises:
      ValueError: an unknown setting, with the nearest known one.
    """
    classes = typing.get_args(StageSpec)
    nodes = [(name, kind) for each in classes for name, kind in _nodes(each).items()]
    nodes.append(("eval", TaskEvalSpec))
    names = [f"{name}.{field.name}" for name, kind in nodes for field in dataclasses.fields(kind)]
    fields = {field.name for each in classes for field in dataclasses.fields(each)}
    known = fields | set(names)
    by_last_part = {name.rpartition(".")[2]: name for name in names}
    for argument in argv:
        override = re.match(r"--?(?:no)?config\.([^=]*)", argument)
        if override and override[1] not in known:
            near = difflib.get_close_matches(override[1], sorted(known), n=1)
            last = override[1].rpartition(".")[2]
            near = near or [
                by_last_part[name] for name in difflib.get_close_matches(last, by_last_part, n=1)
            ]
            hint = (
                f"did you mean {near[0]}?"
                if near
                else f"known nodes: {sorted({name for name, _ in nodes})}"
            )
            raise ValueError(f"unknown setting {override[1]}; {hint}")


def _parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses the command line; refuses what the user got wrong in one line."""
    try:
        check_overrides(argv)
        config = re.search(r"^--?config[=\n]([^:\n]*)", "\n".join(argv), re.MULTILINE)
        if config:
            _require_config_file(config[1])
        rest = flags.FLAGS(argv)
    except (ValueError, OSError, flags.Error, presets.UnknownVariantError) as error:
        _refuse(error)
    if len(rest) > 1:
        _refuse(
            ValueError(f"unexpected arguments {rest[1:]}; settings are --config.NODE.NAME=VALUE")
        )
    return rest


def _require_config_file(path: str) -> None:
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"config file {path!r}: no such file")


def _refuse(error: Exception) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2)
