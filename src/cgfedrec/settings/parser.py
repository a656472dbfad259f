"""The settings of a run: what layers say, through one parser."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace, set_parsing_settings
from lightning import Fabric
from lightning.fabric.loggers import Logger

from cgfedrec.data import FederatedDataModule
from cgfedrec.errors import InputError, Notice, check, nearest
from cgfedrec.loop import FederatedLoop
from cgfedrec.method import Recommender
from cgfedrec.protocol import Protocol
from cgfedrec.settings.environment import PREFIX
from cgfedrec.settings.layers import CONTROLLED, Layer, leaves, merged, short
from cgfedrec.settings.options import ERRORS, Option, completed, groups_of, no_mappings, options_of, problems, shown
from cgfedrec.settings.sources import Said, layer_of, option_of
from cgfedrec.settings.trust import settings_of
from cgfedrec.settings.yamlfile import read_yaml_file
from cgfedrec.wire.wire import Wire

# Without the first, a value of an argument that takes anything would be made into an object if it looks like a class.
# Without the second, null would be taken for an option that was not given, and so never checked.
# The third reads the text below a field of a dataclass, which is where methods document their settings.
set_parsing_settings(
    instantiate_subclass_spec_in_any=False, unset_sentinel=True, docstring_parse_attribute_docstrings=True
)

COMPONENTS = ("fabric", "data", "protocol", "method", "wire", "loop", "logger")
DEFAULTS: Layer = {
    "data": {"class_path": "cgfedrec.data.FederatedDataModule"},
    "method": {"class_path": CONTROLLED},
    "logger": {"class_path": "cgfedrec.run.loggers.WandbLogger"},
}


def quickstart() -> Path:
    """The config that a run without any uses: in the package once installed, in `configs/` of the repository else."""
    package = Path(__file__).parents[1]
    installed = package / "quickstart.yaml"
    return installed if installed.exists() else package.parents[1] / "configs" / "quickstart.yaml"


_DESCRIPTION = """Train a federation. Options come from environment variables (ENV below), from the config, which
outranks them, and from the command line, which outranks both; their order does not count. The variable of any option is
CGFEDREC_FIT_ and its name in capitals, with __ for a dot: CGFEDREC_FIT_METHOD__DIM. --method.help CGFedRec, --data.help
FederatedDataModule and --logger.help WandbLogger tell the options of these parts; --print_config prints them all."""


@cache
def parser(defaults: bool = True) -> ArgumentParser:
    """The parser of everything that a run can be told.

    Args:
        defaults: Whether it names the classes of `DEFAULTS`. It must not where others may be named: it would let them
            take over settings.
    """
    named = DEFAULTS if defaults else dict.fromkeys(DEFAULTS)
    parser = ArgumentParser(
        prog="cgfedrec fit",
        description=_DESCRIPTION,
        default_env=defaults,
        env_prefix=PREFIX.removesuffix("_"),
        exit_on_error=False,
    )
    parser.add_argument(
        "--config", action=ActionConfigFile, help="A YAML file of these options; by default the quickstart."
    )
    parser.add_argument(
        "--ckpt_path", type=str | None, default=None, help="Continue from this checkpoint, with its own config."
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
    parser.set_defaults({"fabric.accelerator": "cpu", "fabric.devices": 1})
    return parser


def parse(given: Said, base: Mapping[str, Any] | None = None, on_quickstart: bool | None = None) -> Namespace:
    """The settings of a run.

    Args:
        given: What is said of it.
        base: Settings that outrank the environment and nothing else: those of a checkpoint.
        on_quickstart: Whether the quickstart's config lies below all that is said; by default where no config is
            named. It never does below ``base``.

    Raises:
        InputError: naming every option that is wrong, and who gave it.
    """
    for request in given.asked:
        _print_help(*request)
    named = not given.configs if on_quickstart is None else on_quickstart
    below = [layer_of(read_yaml_file(quickstart()), "quickstart")] if named and base is None else []
    above = [*([] if base is None else [layer_of(base, "ckpt_path")]), *(layer for _, layer in given.configs)]

    def whole(variables: Mapping[str, Layer]) -> Layer:
        spec = merged(DEFAULTS, *below, *variables.values(), *above, given.options)
        for group, default in DEFAULTS.items():  # a null that has been undone has taken the class with it
            if isinstance(spec[group], dict):
                spec[group] = {**default, **spec[group]}
        return spec

    known = options_of(parser(False), whole(given.variables))
    read = {name: layer for name, layer in given.variables.items() if _is_known(layer, known)}
    spec = whole(read)
    _tell_of_variables(given, read, known, whole)
    check(
        *(
            f"{short(path)}: {problem}{given.source(path)}"
            for path, problem in no_mappings(spec, known, ("data", "method"))
        )
    )
    try:
        settings: Namespace = parser(False).parse_object(completed(spec, known), env=False)
    except ERRORS as error:
        raise InputError(list(problems(spec, known, given.source)) or str(error)) from error
    seed = settings.seed_everything
    check(
        None if 0 <= seed < 2**63 else f"seed_everything: {seed} is not from 0 to 2^63 - 1",
        *(f"{name}: is empty" for name in ("ckpt_path", "run_dir") if settings[name] == ""),
    )
    settings.config = given.files
    for name, flags in given.asked:
        if name == "--print_config":
            _print(settings, flags)
    return settings


def settings_in(text: str, given: Said) -> dict[str, Any]:
    """The settings of a checkpoint, which may name classes of its own only where this call names them too.

    Raises:
        InputError: naming every setting that it may not hold. Nothing has been imported then.
    """
    trusted = [str(layer["trust"]) for _, layer in given.layers if layer.get("trust")]
    return settings_of(text, given.named(), [name.strip() for names in trusted for name in names.split(",")])


def checkpoint_in(given: Said) -> Path | None:
    """The checkpoint that is named; its config is the base of all that is said, and so must be known before."""
    path = given.value("ckpt_path")
    if path is None or path == "null":
        return None
    check(None if isinstance(path, str) and path else f"ckpt_path: must be the path of a file, not {shown(path)}")
    return Path(path)


def refuse_of_fit(given: Said, verb: str) -> None:
    """Refuse what only ``fit`` can heed, or say of a variable that it has no effect.

    Raises:
        InputError: naming the options.
    """
    for variable, layer in given.variables.items():
        if layer.keys() & {"ckpt_path", "run_dir"}:
            _tell(f"{variable} has no effect on {verb}")
    layers = [*given.configs, ("", given.options)]
    check(
        *(
            f"{name}: {verb} cannot heed it{f' ({source})' if source else ''}"
            for name in ("ckpt_path", "run_dir")
            for source, layer in layers
            if layer.get(name) is not None
        )
    )


def _is_known(layer: Layer, known: Mapping[str, Option]) -> bool:
    """Whether all that a layer says is of options that there are."""
    groups = groups_of(known)
    for path, _ in leaves(layer):
        names = [short(path[: end + 1]) for end, part in enumerate(path) if part != "class_path"]
        taken_whole = any(name in known and name not in groups for name in names)
        if not taken_whole and names[-1] not in known and names[-1] not in groups:
            return False
    return True


def _tell_of_variables(
    given: Said, read: Mapping[str, Layer], known: Mapping[str, Option], whole: Callable[[Mapping[str, Layer]], Layer]
) -> None:
    """Warn of variables that are no option's, and of those that something else puts out of use."""
    spoken = {short(path) for path, _ in leaves(given.options)}
    for name, layer in given.variables.items():
        option, others = option_of(name), {other: read[other] for other in read if other != name}
        if name not in read:
            _tell(f"{name} is not read: there is no option {option}{nearest(option, known)}")
        elif whole(others) == whole(read) and not {short(path) for path, _ in leaves(layer)} <= spoken:
            _tell(f"{name} has no effect here: a config or a checkpoint says otherwise, or another class is named")
    for name in given.ignored:
        _tell(f"{name} has no effect here: other configs are named")


def _tell(text: str) -> None:
    warnings.warn(text, Notice, stacklevel=4)


def _print_help(name: str, value: str) -> None:
    """Print what ``--help`` or one of its kind asks for, and exit."""
    if name == "--print_config":
        return
    try:
        parser().parse_args([name, *([value] if value else [])])
    except ERRORS as error:
        raise InputError(f"{name}: {str(error).strip()}") from error
    raise SystemExit(0)


def _print(settings: Namespace, flags: str) -> None:
    """Print the settings as YAML, and exit."""
    known = {"skip_default", "skip_unset", ""}
    asked = set(flags.split(","))
    check(*(f"--print_config: no {flag!r}; there are skip_default and skip_unset" for flag in sorted(asked - known)))
    sys.stdout.write(
        str(parser().dump(settings, skip_default="skip_default" in asked, skip_unset="skip_unset" in asked))
    )
    raise SystemExit(0)


def dump(settings: Namespace) -> str:
    """The settings as YAML that a config may hold; without what belongs to this one run."""
    kept = settings.clone()
    for name in ("config", "ckpt_path", "run_dir", "trust"):
        kept.pop(name, None)
    return str(parser().dump(kept, skip_unset=False, skip_validation=True))


def instantiate(settings: Namespace) -> Namespace:
    """Build every component but Fabric, whose arguments stay. Raises `InputError` with the problems of all of them."""
    built, problems = Namespace(), list[str]()
    for name in COMPONENTS:
        try:
            built[name] = parser().instantiate(Namespace({name: settings[name]}))[name]
        except InputError as error:
            problems += error.problems
        except (*ERRORS, RuntimeError, ArithmeticError) as error:
            problems.append(f"{name}: {error}")
    check(*problems)
    return built
