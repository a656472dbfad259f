"""The settings of a run: from files, options, environment variables and Python, through one parser."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from itertools import pairwise
from pathlib import Path
from pkgutil import resolve_name
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

import yaml
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, Namespace, set_parsing_settings
from lightning import Fabric
from lightning.fabric.loggers import Logger

import cgfedrec.centralized
import cgfedrec.methods
from cgfedrec.centralized.reference import Reference
from cgfedrec.data import FederatedDataModule
from cgfedrec.errors import InputError, check
from cgfedrec.loop import FederatedLoop
from cgfedrec.method import Recommender
from cgfedrec.protocol import Protocol
from cgfedrec.trust import import_paths, meta_keys, settings_of

# Without this, a value of an argument that takes anything would be made into an object if it looks like a class.
set_parsing_settings(instantiate_subclass_spec_in_any=False)

Config = str | os.PathLike[str] | Mapping[str, Any]
COMPONENTS = ("fabric", "data", "protocol", "method", "loop", "logger")
DEFAULT_METHOD = "cgfedrec.methods.CGFedRec"
CONTROL = "Local"
_ENVIRONMENT = "CGFEDREC_FIT"


def quickstart() -> Path:
    """The config that a run without any uses: in the package once installed, in `configs/` of the repository else."""
    here = Path(__file__).parent
    installed = here / "quickstart.yaml"
    return installed if installed.exists() else here.parents[1] / "configs" / "quickstart.yaml"


_DESCRIPTION = """Train a federation. Options come from environment variables (ENV below), from the config, which
outranks them, and from the command line, which outranks both. --method.help CGFedRec, --data.help FederatedDataModule,
--protocol.help and --logger.help WandbLogger tell the options of these parts; --print_config prints them all."""


@cache
def parser(method: str | None = DEFAULT_METHOD) -> ArgumentParser:
    """The parser of everything that a run can be told.

    Args:
        method: The class where none is named. It must be none where one is: that one would take over its settings.
    """
    parser = ArgumentParser(
        prog="cgfedrec fit",
        description=_DESCRIPTION,
        default_env=True,
        env_prefix=_ENVIRONMENT,
        exit_on_error=False,
    )
    parser.add_argument(
        "--config", action=ActionConfigFile, help="A YAML file of these options; by default the quickstart."
    )
    parser.add_argument("--ckpt_path", type=str | None, help="Continue from this checkpoint, with its own config.")
    parser.add_argument(
        "--trust",
        type=str | None,
        help="Modules or classes, with commas between, that the checkpoint may name beside those of cgfedrec and "
        "torch's optimisers: they are imported, and so run.",
    )
    parser.add_argument("--run_dir", type=str | None, help="Where the run goes; by default runs/<config>/<number>.")
    parser.add_argument("--seed_everything", type=int, default=0, help="Of everything random.")
    parser.add_class_arguments(Fabric, "fabric", skip={"callbacks", "loggers"}, instantiate=False)
    parser.add_subclass_arguments(
        FederatedDataModule, "data", default={"class_path": "cgfedrec.data.FederatedDataModule"}
    )
    parser.add_argument(
        "--protocol",
        type=Protocol | Literal["strict", "reference"],
        default=Protocol(),
        help="How results are measured: strict, reference, or options of its own.",
    )
    parser.add_subclass_arguments(Recommender, "method", default={"class_path": method} if method else None)
    parser.add_class_arguments(FederatedLoop, "loop")
    parser.add_argument(
        "--logger",
        type=Logger | None,
        default={"class_path": "cgfedrec.logging.WandbLogger"},
        help="Beside the CSV: Weights & Biases, another of Lightning's loggers, or null.",
    )
    parser.set_defaults({"fabric.accelerator": "cpu", "fabric.devices": 1})
    return parser


def parse(options: Sequence[str], base: Config | None = None, on_defaults: bool = False) -> Namespace:
    """Parse the options of a run.

    Args:
        options: As on the command line.
        base: The config that they override where they name none; by default the quickstart.
        on_defaults: Override it even where they name one.

    Raises:
        InputError: naming the option that is wrong.
    """
    configs = _values(options, "config")
    below = as_options([base or quickstart()]) if on_defaults or not configs else []
    whole = parser(None) if _name_a_method([*below[1:], *configs], options) else parser()
    first = below if base else []
    files = [config for config in configs if is_file(config)]
    check(
        *(problem for file in files for problem in duplicate_keys(Path(file))),
        *(problem for config in configs for problem in meta_keys(_source(config), _keys(config))),
        *(problem for option, value in _given(options) for problem in meta_keys(option, _plain(value))),
    )
    another = _name_another_method([*below[1:], *configs], options)
    if another is not None:
        options = [*options[:another], "--config", yaml.safe_dump({"method": None}), *options[another:]]
    try:
        with _without_method(below[1:] if not base else [], another is not None) as whole.default_config_files:
            settings = whole.parse_args([*first, *options])
    except (ArgumentError, yaml.YAMLError, UnicodeDecodeError, TypeError, ValueError) as error:
        methods = *cgfedrec.methods.__all__, *cgfedrec.centralized.__all__
        hint = f"; methods here: {', '.join(methods)}" if 'key "method"' in str(error) else ""
        where = f" (config: {', '.join(files)})" if files else ""
        raise InputError(f"{error}{hint}{where}") from error
    seed = settings.seed_everything
    check(None if 0 <= seed < 2**63 else f"seed_everything: {seed} is not from 0 to 2^63 - 1")
    return settings


def settings_in(text: str, options: Sequence[str]) -> dict[str, Any]:
    """The settings of a checkpoint, which may name classes of its own only where these options name them too.

    Raises:
        InputError: naming every setting that it may not hold. Nothing has been imported then.
    """
    configs = [_keys(config) for config in _values(options, "config")]
    trusted = [*_values(options, "trust"), *(str(config["trust"]) for config in configs if config.get("trust"))]
    named = set[str]().union(
        *map(import_paths, configs), *(import_paths(_plain(value)) for _, value in _given(options))
    )
    return settings_of(text, named, [name.strip() for names in trusted for name in names.split(",")])


def checkpoint_in(options: Sequence[str]) -> Path | None:
    """The checkpoint that options name; its config is the base of the others, and so must be known before them."""
    named = _values(options, "ckpt_path")
    for config in [] if named else _values(options, "config"):
        if path := _keys(config).get("ckpt_path"):
            named = [path]
    return Path(named[-1]) if named else None


def _name_a_method(configs: Sequence[str], options: Sequence[str]) -> bool:
    """Whether the first that says anything about the method says which it is."""
    said = [method for config in configs if (method := _keys(config).get("method"))]
    return (isinstance(said[0], str) or "class_path" in said[0]) if said else bool(_values(options, "method"))


def _name_another_method(configs: Sequence[str], options: Sequence[str]) -> int | None:
    """Where options begin to name another method than configs do, which must not take over that one's settings.

    The control may, being the same client without its server.
    """
    at = next((place for place, option in enumerate(options) if option.split("=")[0] == "--method"), None)
    if at is None:
        return None
    before = [DEFAULT_METHOD.rpartition(".")[2], *filter(None, map(_method_class, configs))]
    name = _values(options, "method")[-1].rpartition(".")[2]
    return None if name in (before[-1], CONTROL) else at


@contextmanager
def _without_method(files: Sequence[str], strip: bool) -> Iterator[list[str]]:
    """The default configs, without what they say of a method if that is to be stripped."""
    if not (strip and files):
        yield list(files)
        return
    with TemporaryDirectory() as folder:
        stripped = Path(folder) / "defaults.yaml"
        stripped.write_text(yaml.safe_dump({**_keys(files[0]), "method": None}))
        yield [str(stripped)]


def _method_class(config: str) -> str:
    """The name of the class of the method that a config names, if it does."""
    method = _keys(config).get("method") or ""
    return str(method.get("class_path", "") if isinstance(method, dict) else method).rpartition(".")[2]


def _keys(config: str) -> dict[str, Any]:
    """What a config, a file or YAML itself, says; nothing where it cannot be read."""
    with suppress(yaml.YAMLError, OSError, UnicodeDecodeError):  # the parser says what is wrong
        keys = yaml.safe_load(Path(config).read_text() if is_file(config) else config)
        if isinstance(keys, dict):
            return keys
    return {}


def is_file(config: str) -> bool:
    """Whether a config is the path of one, and not YAML itself."""
    return Path(config).suffix in (".yaml", ".yml")


def _given(options: Sequence[str]) -> list[tuple[str, str]]:
    """Every option that the command line or the environment gives, and its value."""
    pairs = [(option, value) for option, value in pairwise(options) if option.startswith("--") and "=" not in option]
    pairs += [(name, value) for name, _, value in (one.partition("=") for one in options) if name.startswith("--")]
    return pairs + [(name, value) for name, value in os.environ.items() if name.startswith(f"{_ENVIRONMENT}_")]


def _plain(value: str) -> Any:
    """An option's value as the parser would read it."""
    with suppress(yaml.YAMLError, ValueError, RecursionError):
        return yaml.safe_load(value)
    return value


def _source(config: str) -> str:
    """How to call a config in a message."""
    return config if is_file(config) else "config"


def _values(options: Sequence[str], name: str) -> list[str]:
    """What the options, or else the environment, give for ``name``."""
    given = [option.split("=", 1)[1] for option in options if option.startswith(f"--{name}=")]
    given += [value for option, value in pairwise(options) if option == f"--{name}"]
    environment = os.environ.get(f"{_ENVIRONMENT}_{name.upper()}")
    return given or ([environment] if environment else [])


def duplicate_keys(path: Path) -> list[str]:
    """Keys that a YAML file gives twice, of which the parser would silently take one."""
    try:
        pending = [yaml.compose(path.read_text())]
    except (yaml.YAMLError, OSError, UnicodeDecodeError):
        return []  # the parser says what is wrong
    problems = []
    while pending:
        node = pending.pop()
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                if str(key.value) in seen:
                    problems.append(f"{path}, line {key.start_mark.line + 1}: {key.value} stands twice")
                seen.add(str(key.value))
                pending.append(value)
            node.value = []  # an alias may lead back here
    return problems


def as_options(configs: Sequence[Config]) -> list[str]:
    """Config files and mappings as options of the command line, later ones overriding earlier ones."""
    return [
        text
        for config in configs
        for text in ("--config", yaml.safe_dump(dict(config)) if isinstance(config, Mapping) else str(config))
    ]


def dump(settings: Namespace) -> str:
    """The settings as YAML that `parse` takes back; without what belongs to this one run."""
    kept = settings.clone()
    for name in ("config", "ckpt_path", "run_dir", "trust"):
        kept.pop(name, None)
    return str(parser().dump(kept, skip_unset=False, skip_validation=True))


def is_reference(settings: Namespace) -> bool:
    """Whether the method is a `Reference`, which sees everyone's data, and no federated one."""
    method: object = resolve_name(settings.method.class_path)
    return isinstance(method, type) and issubclass(method, Reference)


def instantiate(settings: Namespace) -> Namespace:
    """Build every component but Fabric, whose arguments stay. Raises `InputError` with the problems of all of them."""
    built, problems = Namespace(), list[str]()
    for name in COMPONENTS:
        try:
            built[name] = parser().instantiate(Namespace({name: settings[name]}))[name]
        except InputError as error:
            problems += error.problems
        except (ArgumentError, ValueError, TypeError, RuntimeError, ImportError) as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise InputError(problems)
    if isinstance(built.protocol, str):
        built.protocol = Protocol(cast(Any, built.protocol))
    return built
