"""One run of a comparison, and how far it is."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import yaml

from cgfedrec.data.arguments import origin
from cgfedrec.errors import InputError
from cgfedrec.files import DamagedError, file_digest, read_json
from cgfedrec.protocol import Protocol
from cgfedrec.run.checkpoint import flat, read_checkpoint
from cgfedrec.run.folder import CONFIG
from cgfedrec.run.rolling import CHOOSING, CUTS
from cgfedrec.settings.layers import UNLOGGED
from cgfedrec.settings.own import changed_files

State = Literal["new", "started", "finished", "changed"]
"""Of a run's folder."""
Kind = Literal["federated", "control", "centralised"]
"""What a method is: whether clients collaborate, each is alone, or one place sees everything."""
OURS = ("config", "seed_everything", "ckpt_path", "update_from", "run_dir")
"""Options that the comparison itself sets for each run."""
OF_TRAINING = ("batch_size", "negatives")
"""Arguments of the data in which methods may differ: they change how a client trains, and nothing that is measured."""


@dataclass(frozen=True)
class Job:
    """One run: a method on a data set with a seed.

    Attributes:
        data, method: Their names.
        seed: Of everything random.
        directory: Where the run goes.
        config: The whole config, as the run will store it.
        fingerprint: Of the data as they are now; ``None`` where they follow from the config alone.
        code: Of one's own, as it is now (`cgfedrec.settings.own.code_of`).
    """

    data: str
    method: str
    seed: int
    directory: Path
    config: str
    fingerprint: str | None = None
    code: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Such as ``ml-100k/PFedRec/0``."""
        return f"{self.data}/{self.method}/{self.seed}"

    @property
    def checkpoint(self) -> Path:
        """From which it can be resumed, if it is there."""
        return self.directory / "checkpoints" / "last.ckpt"

    def state(self) -> State:
        """How far the run is; ``changed`` if the folder holds a run of another config, other data or other code.

        Damaged files count as if they were not there. A run with damaged results goes on from its checkpoint, and one
        whose checkpoint is damaged too is new. A rolling evaluation has no checkpoint: it goes on with its trainings.
        A comparison asks again and again, so what was read of a file is kept until the file changes.
        """
        ended, begun = (self.directory / "summary.json").exists(), self.checkpoint.exists()
        rolling = any((self.directory / name).is_dir() for name in (CUTS, CHOOSING))
        if not (ended or begun or rolling):
            return "new"
        if self.changed():
            return "changed"
        if ended and not self.damage():
            return "finished"
        if rolling or (begun and not self.checkpoint_damage()):
            return "started"
        return "new"

    def changed(self) -> str | None:
        """With what else the folder holds a run, settings, data or code, if it does."""
        if names := self.differences():
            return f"with other settings ({', '.join(names)})"
        if self.fingerprint is None and not self.code:
            return None
        there = self._there()
        if self.fingerprint is not None and there.get("data") not in (None, self.fingerprint):
            options: Any = _options(self.config) or {}
            name = origin(options.get("data.init_args.path"), options.get("data.class_path"))
            return f"on other data: what {name} holds has changed"
        if files := changed_files(there.get("code", {}), self.code):
            return f"by other code: what {', '.join(files)} holds has changed"
        return None

    def _there(self) -> Mapping[str, Any]:
        """The data and code of the run in the folder; neither if what would say it is damaged, gone or too old."""
        with suppress(OSError, DamagedError):
            return self.summary()
        return _checkpoint_now(self.checkpoint)[0]

    def differences(self) -> list[str]:
        """The dotted names of options in which the run in the folder differs; how a run is logged does not count."""
        there, here = self._stored(), _options(self.config)
        if there is None or here is None:
            return []
        names = sorted(name for name in there.keys() | here.keys() if there.get(name) != here.get(name))
        return [name for name in names if name.split(".")[0] not in UNLOGGED]

    def _stored(self) -> Mapping[str, object] | None:
        """The options of the run in the folder; ``None`` if their file is damaged or gone, as `damage` then says."""
        with suppress(OSError, UnicodeDecodeError):
            return _options((self.directory / CONFIG).read_text())
        return None

    def summary(self) -> dict[str, Any]:
        """What the finished run wrote in the end. Raises `DamagedError`, naming the file, if that was changed since."""
        return read_json(self.directory / "summary.json")

    def damage(self) -> str | None:
        """The problem with the results of the run, if one of its files was damaged since it was written."""
        if not (self.directory / "summary.json").exists():
            return None
        if self._stored() is None:
            return f"{self.directory / CONFIG}: is damaged or missing"
        try:
            for name, digest in dict(self.summary()["files"]).items():
                path = self.directory / str(name)
                if not path.is_file() or _digest_now(path) != digest:
                    return f"{path}: is damaged or missing: its checksum does not agree with summary.json"
        except (DamagedError, KeyError, TypeError, ValueError) as error:
            return str(error)
        return None

    def checkpoint_damage(self) -> str | None:
        """The problem with the checkpoint from which the run would go on, if there is one and it is damaged."""
        return _checkpoint_now(self.checkpoint)[1]


@dataclass(frozen=True)
class Facts:
    """How a data set is measured, the same for every method.

    Attributes:
        path: Of its file; in words where there is none.
        users, items, interactions: How many there are of each, those that were dropped left out.
        fingerprint: Of what was read and held out with the first seed; at cuts in time, of the last one.
        held_out: How many items are ranked in a test; at all cuts together, if there are several.
        split: Its name.
        min_interactions: Users with fewer were dropped.
        monitor: The validation metric that chooses the best round.
        protocol: How results are measured.
    """

    path: str
    users: int
    items: int
    interactions: int
    fingerprint: str
    held_out: int
    split: str
    min_interactions: int
    monitor: str
    protocol: Protocol


@lru_cache(maxsize=1024)
def _options(text: str) -> Mapping[str, object] | None:
    """Every option of a config by its dotted name, or ``None`` if the text is no config.

    Kept, since to parse YAML takes longer than anything else that is asked of a run.
    """
    with suppress(yaml.YAMLError):
        config = yaml.safe_load(text)
        if isinstance(config, dict):
            return dict(flat(config))
    return None


def _digest_now(path: Path) -> str:
    """The checksum of a file as it is now."""
    return _digest(path, *_marks(path))


def _checkpoint_now(path: Path) -> tuple[Mapping[str, Any], str | None]:
    """The data and code of a checkpoint as it is now, and what is wrong with it; no file has neither."""
    if not path.exists():
        return {}, None
    return _checkpoint(path, *_marks(path))


def _marks(path: Path) -> tuple[int, int, int]:
    """What tells a file from another one in its place."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


@lru_cache(maxsize=1024)
def _checkpoint(path: Path, inode: int, changed: int, size: int) -> tuple[Mapping[str, Any], str | None]:
    """What `_checkpoint_now` gives, read anew once anything tells that it is another file."""
    try:
        state = read_checkpoint(path)
        return {"data": state["fingerprint"], "code": state["code"]}, None
    except InputError as error:
        return {}, str(error).removeprefix("ckpt_path: ")


@lru_cache(maxsize=1024)
def _digest(path: Path, inode: int, changed: int, size: int) -> str:
    """The checksum of a file, read anew once anything tells that it is another one."""
    return file_digest(path)
