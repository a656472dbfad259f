"""The settings of a run: what layers say, through one parser."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace, set_parsing_settings
from lightning import Fabric
from lightning.fabric.loggers import Logger

from cgfedrec.data import FederatedDataModule
from cgfedrec.data.reading import check_there
from cgfedrec.errors import InputError, check
from cgfedrec.loop import FederatedLoop
from cgfedrec.method import Recommender
from cgfedrec.protocol import Protocol
from cgfedrec.settings.environment import PREFIX
from cgfedrec.settings.here import look_here
from cgfedrec.settings.hooks import unheeded_data
from cgfedrec.settings.layers import DEFAULTS, UNLOGGED, Layer, leaves, same_class
from cgfedrec.settings.listed import add_lists, build_lists
from cgfedrec.settings.mistakes import no_mappings, out_of_bounds, problems
from cgfedrec.settings.options import ERRORS, class_path, completed, options_of, parser_of
from cgfedrec.settings.origins import with_origins
from cgfedrec.settings.sources import Said, layer_of
from cgfedrec.settings.variables import is_known, tell_of_variables, with_variables
from cgfedrec.texts import SETTINGS, packaged
from cgfedrec.wire.wire import Wire

# Without the first, a value of an argument that takes anything would be made into an object if it looks like a class.
# Without the second, null would be taken for an option that was not given, and so never checked.
set_parsing_settings(instantiate_subclass_spec_in_any=False, unset_sentinel=True)

COMPONENTS = ("fabric", "data", "protocol", "method", "wire", "loop", "logger")
_DESCRIPTION = """Train a federation. Options come from environment variables (ENV below), from the config, which
outranks them, and from the command line, which outranks both; their order does not count. The variable of any option is
CGFEDREC_FIT_ and its name in capitals, with __ for a dot: CGFEDREC_FIT_LOOP__ROUNDS. --method.help CGFedCo, --data.help
FederatedDataModule and --logger.help cgfedrec.run.loggers.WandbLogger tell the options of these parts; --print_config
prints them all."""


@cache
def parser(defaults: bool = True) -> ArgumentParser:
    """The parser of everything that a run can be told.

    Args:
        defaults: Whether the classes of `DEFAULTS` are its defaults. They must not be where another class may be
            named: jsonargparse would let that one take over their settings.
    """
    named: Mapping[str, object] = DEFAULTS
    if not defaults:
        named = dict.fromkeys(DEFAULTS)
    parser = ArgumentParser(
        prog="cgfedrec fit",
        description=_DESCRIPTION,
        default_env=defaults,
        env_prefix=PREFIX.removesuffix("_"),
        exit_on_error=False,
    )
    parser.add_argument("--config", action=ActionConfigFile, help="A YAML file of these options.")
    parser.add_argument(
        "--ckpt_path", type=str | None, default=None, help="Continue from this checkpoint, with its own config."
    )
    parser.add_argument(
        "--update_from",
        type=str | None,
        default=None,
        help="Add to the sums of this checkpoint what the data have more or less by now, with its own config.",
    )
    parser.add_argument(
        "--trust",
        type=str | None,
        default=None,
        help="Modules or classes, with commas between, that the checkpoint may name beside those of cgfedrec and "
        "torch's optimisers: they are imported, and so run.",
    )
    parser.add_argument(
        "--run_dir", type=str | None, default=None, help="Where the run goes; by default runs/<config>/<number>."
    )
    parser.add_argument("--seed_everything", type=int, default=0, help="Of everything random, from 0 to 2^63 - 1.")
    parser.add_class_arguments(Fabric, "fabric", skip={"callbacks", "loggers"}, instantiate=False)
    parser.add_subclass_arguments(FederatedDataModule, "data", default=named["data"])
    parser.add_class_arguments(
        Protocol, "protocol", help="How results are measured; --protocol strict or reference names it alone."
    )
    parser.add_subclass_arguments(Recommender, "method", default=named["method"])
    parser.add_class_arguments(Wire, "wire")
    parser.add_class_arguments(FederatedLoop, "loop")
    parser.add_argument(
        "--logger",
        type=Logger | None,
        default=named["logger"],
        help="Beside the CSV: Weights & Biases, another of Lightning's loggers, or null.",
    )
    add_lists(parser)
    parser.set_defaults({"fabric.accelerator": "cpu", "fabric.devices": 1})
    return parser


@contextmanager
def described(defaults: bool = True) -> Iterator[ArgumentParser]:
    """The parser of `parser`, with the texts below the fields of dataclasses, where methods document their settings.

    Only help shows these texts, and to read them takes a third of a second. So others do without them.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    for made_without in (parser, parser_of):
        made_without.cache_clear()
    try:
        yield parser(defaults)
    finally:
        set_parsing_settings(docstring_parse_attribute_docstrings=False)


def parse(given: Said, base: Mapping[str, object] | None = None) -> Namespace:
    """The settings of a run.

    Args:
        given: What is said of it.
        base: Settings of a checkpoint. They outrank the environment, and nothing else.

    Raises:
        InputError: naming every option that is wrong, and who gave it. What is out of bounds is named along with values
            of a wrong type, but in the parts that hold these.
    """
    look_here(given.imported())
    for request in given.asked:
        _print_help(*request)
    above = _above_variables(given, base)
    # A variable may set an option of a class that only another variable names. So all of them are heard before it is
    # known which options there are, and those of no option are left out after.
    known = options_of(parser(False), with_variables(given.variables, above))
    read = {name: layer for name, layer in given.variables.items() if is_known(layer, known)}
    spec = with_variables(read, above)
    tell_of_variables(given, read, known, above)
    wrong = list(no_mappings(spec, known, ("data", "method"), given.source))
    try:
        check(*(text for _, text in wrong))
        settings: Namespace = parser(False).parse_object(completed(spec, known), env=False)
    except (InputError, *ERRORS) as error:
        # The parser stops at the first problem. To name all of them, each option is tried by itself.
        wrong += problems(_but(spec, wrong), known, given.source)
        if not wrong:
            raise InputError(str(error)) from error
        beside = _beside(completed({**DEFAULTS, **UNLOGGED, **_but(spec, wrong)}, known))
        raise InputError([*(text for _, text in wrong), *beside, *_no_file(spec.get("data"))]) from error
    if beyond := list(out_of_bounds(settings)):
        raise InputError([*beyond, *_built(settings)[1], *_no_file(settings.data)])
    settings.config = given.files
    for name, flags in given.asked:
        if name == "--print_config":
            _print(settings, flags, lambda path: given.who(path) or ("the checkpoint" if base else None))
    return settings


def _no_file(data: object) -> list[str]:
    """The problem with the path of the data, if there are none: what reading them would tell, once all else is right.

    Args:
        data: The class and its arguments, in whatever form. A data module of somebody's own may read anything.
    """
    if not isinstance(data, dict | Namespace) or not same_class(class_path(data), DEFAULTS["data"]["class_path"]):
        return []
    arguments = data.get("init_args")
    path = arguments.get("path") if isinstance(arguments, dict | Namespace) else None
    if isinstance(path, str) and path:
        try:
            check_there(Path(path))
        except InputError as error:
            return error.problems
        except (OSError, ValueError):  # a name that no file can have is told where it is read
            pass
    return []


def _but(spec: Layer, wrong: Sequence[tuple[str, str]]) -> Layer:
    """The settings, without the groups in which something has been found wrong."""
    groups = {group for group, _ in wrong}
    return {group: value for group, value in spec.items() if group not in groups}


def _beside(spec: Layer) -> list[str]:
    """What is out of bounds in settings from which groups with something wrong have been left out, for defaults.

    These groups are not looked at: whether another setting of one is right may hang on what is wrong in it.
    """
    try:
        settings = parser(False).parse_object(spec, env=False)
    except ERRORS:
        return []
    return [*out_of_bounds(settings), *_built(settings)[1]]


def _above_variables(given: Said, base: Mapping[str, object] | None) -> list[Layer]:
    """The layers that outrank the environment; the arguments are those of `parse`."""
    below = [] if base is None else [layer_of(base, "ckpt_path")]
    return [*below, *(layer for _, layer in given.configs), given.options]


def _print_help(name: str, value: str) -> None:
    """Print what ``--help`` or one of its kind asks for, and exit."""
    if name == "--print_config":  # it prints settings, which are not known yet
        return
    if name in ("--help", "-h"):
        sys.stdout.write(packaged(SETTINGS))
        raise SystemExit(0)
    words = [name]
    if value:
        words.append(value)
    try:
        with described() as whole:
            whole.parse_args(words)
    except SystemExit:
        raise
    except ERRORS as error:
        raise InputError(f"{name}: {str(error).strip()}") from error
    raise SystemExit(0)


def _print(settings: Namespace, flags: str, origin: Callable[[Sequence[str]], str | None]) -> None:
    """Print the settings as YAML, with who says those that are no defaults, and exit."""
    known = {"skip_default", "skip_unset", ""}
    asked = set(flags.split(","))
    check(*(f"--print_config: no {flag!r}; there are skip_default and skip_unset" for flag in sorted(asked - known)))
    changed = yaml.safe_load(parser().dump(settings, skip_default=True))
    text = str(parser().dump(settings, skip_default="skip_default" in asked, skip_unset="skip_unset" in asked))
    sys.stdout.write(with_origins(text, {path for path, _ in leaves(changed)}, origin))
    raise SystemExit(0)


def dump(settings: Namespace) -> str:
    """The settings as YAML that a config may hold, without what belongs to this one run."""
    kept = settings.clone()
    for name in ("config", "ckpt_path", "update_from", "run_dir", "trust"):
        kept.pop(name, None)
    if isinstance(kept.get("logger"), Logger):  # an object of somebody's, which no config can name
        kept.logger = None
    return str(parser().dump(kept, skip_unset=False, skip_validation=True))


def instantiate(settings: Namespace) -> Namespace:
    """Build every component but Fabric, whose arguments stay.

    Returns:
        The components by their names, `COMPONENTS` and `cgfedrec.settings.layers.LISTS`.

    Raises:
        InputError: with the problems of all of them, and with a file of data that is missing besides.
    """
    built, wrong = _built(settings)
    if wrong:
        raise InputError([*wrong, *_no_file(settings.data)])
    return built


def _built(settings: Namespace) -> tuple[Namespace, list[str]]:
    """The components that can be built, and what is wrong with the others."""
    built, wrong = Namespace(), list[str]()
    # Each by itself: the parser would stop at the first one that cannot be built.
    for name in COMPONENTS:
        try:
            built[name] = parser().instantiate(Namespace({name: settings[name]}))[name]
        except InputError as error:
            wrong += error.problems
        except (*ERRORS, RuntimeError, ArithmeticError) as error:
            wrong.append(f"{name}: {error}")
    wrong += unheeded_data(built.data) if "data" in built else ()
    for name, made, problems_of in build_lists(settings):
        built[name] = made
        wrong += problems_of
    return built, wrong
