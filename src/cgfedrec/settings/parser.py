"""The settings of a run: what layers say, through one parser."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace, set_parsing_settings
from lightning import Fabric
from lightning.fabric.loggers import Logger

from cgfedrec.data import FederatedDataModule
from cgfedrec.errors import InputError, Notice, check, nearest
from cgfedrec.loop import FederatedLoop
from cgfedrec.method import Recommender
from cgfedrec.protocol import Protocol
from cgfedrec.settings.environment import PREFIX
from cgfedrec.settings.here import look_here
from cgfedrec.settings.hooks import unheeded_data
from cgfedrec.settings.layers import CLASSES, Layer, leaves, merged, short
from cgfedrec.settings.listed import add_lists, build_lists
from cgfedrec.settings.mistakes import no_mappings, out_of_bounds, problems
from cgfedrec.settings.options import ERRORS, Option, completed, groups_of, options_of, parser_of
from cgfedrec.settings.origins import with_origins
from cgfedrec.settings.sources import Said, layer_of, option_of
from cgfedrec.texts import SETTINGS, packaged
from cgfedrec.wire.wire import Wire

# Without the first, a value of an argument that takes anything would be made into an object if it looks like a class.
# Without the second, null would be taken for an option that was not given, and so never checked.
set_parsing_settings(instantiate_subclass_spec_in_any=False, unset_sentinel=True)

COMPONENTS = ("fabric", "data", "protocol", "method", "wire", "loop", "logger")
DEFAULTS = {
    "data": {"class_path": "cgfedrec.data.FederatedDataModule"},
    "method": {"class_path": "cgfedrec.methods.CGFedCo"},
    "logger": {"class_path": "cgfedrec.run.loggers.WandbLogger"},
}


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


def _with_variables(variables: Mapping[str, Layer], above: Sequence[Layer]) -> Layer:
    """All that is said of a run: variables of the environment, and the layers that outrank them."""
    spec = merged(DEFAULTS, *variables.values(), *above)
    # A null that a later layer has undone has taken the class with it.
    for group in CLASSES:
        chosen = spec[group]
        if isinstance(chosen, dict):
            spec[group] = {"class_path": DEFAULTS[group]["class_path"], **chosen}
    return spec


def parse(given: Said, base: Mapping[str, object] | None = None) -> Namespace:
    """The settings of a run.

    Args:
        given: What is said of it.
        base: Settings of a checkpoint. They outrank the environment, and nothing else.

    Raises:
        InputError: naming every option that is wrong, and who gave it.
    """
    look_here(given.imported())
    for request in given.asked:
        _print_help(*request)
    above = _above_variables(given, base)
    # A variable may set an option of a class that only another variable names. So all of them are heard before it is
    # known which options there are, and those of no option are left out after.
    known = options_of(parser(False), _with_variables(given.variables, above))
    read = {name: layer for name, layer in given.variables.items() if _is_known(layer, known)}
    spec = _with_variables(read, above)
    _tell_of_variables(given, read, known, above)
    check(*no_mappings(spec, known, ("data", "method"), given.source))
    try:
        settings: Namespace = parser(False).parse_object(completed(spec, known), env=False)
    except ERRORS as error:
        # The parser stops at the first problem. To name all of them, each option is tried by itself.
        raise InputError(list(problems(spec, known, given.source)) or str(error)) from error
    check(*out_of_bounds(settings))
    settings.config = given.files
    for name, flags in given.asked:
        if name == "--print_config":
            _print(settings, flags, lambda path: given.who(path) or ("the checkpoint" if base else None))
    return settings


def _above_variables(given: Said, base: Mapping[str, object] | None) -> list[Layer]:
    """The layers that outrank the environment; the arguments are those of `parse`."""
    below = [] if base is None else [layer_of(base, "ckpt_path")]
    return [*below, *(layer for _, layer in given.configs), given.options]


def _is_known(layer: Layer, known: Mapping[str, Option]) -> bool:
    """Whether all that a layer says is of options that there are."""
    groups = groups_of(known)
    for path, _ in leaves(layer):
        names = [short(path[: end + 1]) for end, part in enumerate(path) if part != "class_path"]
        # The value of an option may be a mapping, such as one of choices: what it holds are no options.
        taken_whole = any(name in known and name not in groups for name in names)
        if not taken_whole and names[-1] not in known and names[-1] not in groups:
            return False
    return True


def _tell_of_variables(
    given: Said, read: Mapping[str, Layer], known: Mapping[str, Option], above: Sequence[Layer]
) -> None:
    """Warn of variables that are of no option, and of those that something else puts out of use.

    The command line may outrank a variable without a word: whoever types an option means just that.

    Args:
        given: What is said.
        read: Its variables that are of an option.
        known: Of `options_of`.
        above: The layers that outrank the variables.
    """
    spoken = {short(path) for path, _ in leaves(given.options)}
    for name, layer in given.variables.items():
        if name not in read:
            option = option_of(name)
            _tell(f"{name} is not read: there is no option {option}{nearest(option, known)}")
            continue
        others = {other: read[other] for other in read if other != name}
        changes_nothing = _with_variables(others, above) == _with_variables(read, above)
        if changes_nothing and not {short(path) for path, _ in leaves(layer)} <= spoken:
            _tell(f"{name} has no effect here: a config or a checkpoint says otherwise, or another class is named")
    for name in given.ignored:
        _tell(f"{name} has no effect here: other configs are named")


def _tell(text: str) -> None:
    warnings.warn(text, Notice, stacklevel=4)


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
        InputError: with the problems of all of them.
    """
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
    check(*wrong)
    return built
