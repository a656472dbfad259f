"""Recommender: what an exported folder recommends for a history."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cgfedrec.errors import InputError, check, no_count
from cgfedrec.files import DamagedError
from cgfedrec.serving.container import Arrays, packed_texts, read_container, unpacked_texts, write_container
from cgfedrec.serving.filters import FilterReader
from cgfedrec.serving.neighbours import NeighbourReader
from cgfedrec.serving.readers import Entries, Reader
from cgfedrec.serving.top import parts_of

FILE = "recommender.safetensors"
"""The one file of an export: who replaces it replaces all of the export in one step."""
KIND = "recommender"
HISTORY, POPULARITY = "history", "popularity"
"""What a list comes from."""
READERS: Mapping[str, type[Reader]] = {one.kind: one for one in (NeighbourReader, FilterReader)}
"""By kind."""
Id = int | str
"""Of an item, as in the data that it was trained on. An id may be given as its text too: ``7`` or ``"7"``."""


@dataclass(frozen=True)
class Recommended:
    """What is recommended to one person.

    Args:
        items: Ids, the best first; fewer than asked for where the catalogue ends.
        scores: Of each. Only their order matters.
        titles: Of each, ``None`` where there is none.
        source: ``history``, or ``popularity`` where the history has no item that is known.
        unknown: Ids that were given and that the catalogue does not have.
    """

    items: list[Id]
    scores: list[float]
    titles: list[str | None]
    source: str
    unknown: list[Id]


@dataclass(frozen=True)
class Recommendations:
    """What is recommended to many people, as arrays with a row for each.

    Args:
        users: As they were given.
        items: `[users, top_k]`: the numbers of items, the best first; -1 where the catalogue ends.
        scores: `[users, top_k]`, float32; -inf where there is no item.
        sources: Of each user's list, as of `Recommended`.
        unknown: Ids that the catalogue does not have, over all histories.
    """

    users: list[Any]
    items: NDArray[np.int64]
    scores: NDArray[np.float32]
    sources: list[str]
    unknown: list[Id]


class Recommender:
    """Recommends for histories, from an exported folder. It holds no person's data, and keeps none that it is given.

    Args:
        ids: Of all items, in the order of their numbers.
        titles: Of each, or ``None`` where there is none.
        reader: Scores items.
        ordered: Whether the order of a history counts.
        about: What is told of it: the method, its settings, how it reads.
    """

    def __init__(
        self,
        ids: Sequence[Id],
        titles: Sequence[str | None],
        reader: Reader,
        ordered: bool,
        about: Mapping[str, Any],
    ) -> None:
        self.ids, self.titles, self.reader, self.ordered, self.about = ids, titles, reader, ordered, dict(about)
        self.version = ""
        numbers: dict[Id, int] = {str(one): number for number, one in enumerate(ids)}
        # Whole numbers also as they are: to write each as text takes longer than to find it.
        self._numbers: dict[Id, int] = {**numbers, **dict(zip(ids, range(len(ids)), strict=True))}

    @property
    def num_items(self) -> int:
        """Of the catalogue."""
        return len(self.ids)

    @classmethod
    def load(cls, folder: str | Path) -> Recommender:
        """Open what ``cgfedrec export`` wrote. It is data: reading it executes nothing, from whoever it comes.

        Raises:
            InputError: if the folder holds no export, or one that is damaged or of another format.
        """
        path = Path(folder) / FILE
        if not path.is_file():
            raise InputError(f"{folder}: holds no {FILE}; cgfedrec export --ckpt_path FILE --output {folder} writes it")
        header, arrays, version = read_container(path, KIND)
        try:
            found = cls._of(header, arrays)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
            raise DamagedError(f"{path}: is no export that can be used: {error}") from error
        found.version = version
        return found

    @classmethod
    def _of(cls, header: Mapping[str, Any], arrays: Arrays) -> Recommender:
        reader = READERS[header["reader"]].of(header["parameters"], arrays)
        ids: list[Any] = arrays["ids"].tolist() if "ids" in arrays else unpacked_texts("ids", arrays)
        titles = unpacked_texts("titles", arrays)
        if not (len(ids) == len(titles) == reader.num_items and all(isinstance(one, int | str) for one in ids)):
            raise ValueError("ids, titles and scores are of different items")
        found = cls(ids, titles, reader, bool(header["ordered"]), header["about"])
        if len({str(one) for one in ids}) != len(ids):
            raise ValueError("an id stands there twice")
        return found

    def save(self, folder: Path) -> str:
        """Write it into a folder in one atomic step. Whoever has an older one open goes on with that.

        Returns:
            Its version.
        """
        ids: Arrays
        if all(isinstance(one, int) for one in self.ids):
            ids = {"ids": np.array(self.ids, np.int64)}
        else:
            ids = packed_texts("ids", [str(one) for one in self.ids])
        reader = self.reader
        header = {
            "reader": reader.kind,
            "parameters": reader.parameters(),
            "ordered": self.ordered,
            "about": self.about,
        }
        arrays = {**reader.arrays(), **ids, **packed_texts("titles", self.titles)}
        self.version = write_container(folder / FILE, KIND, header, arrays)
        return self.version

    def recommend(
        self,
        history: Iterable[Id],
        top_k: int = 10,
        exclude: Iterable[Id] = (),
        timestamps: Sequence[float] | None = None,
    ) -> Recommended:
        """The best items for a history, without these and without what is excluded.

        Args:
            history: Item ids, the oldest first. Of one that stands there twice, the first place counts.
            top_k: How many items; fewer where the catalogue ends.
            exclude: Ids that are not to be recommended either.
            timestamps: When each item of the history was, in place of their order. Of two at the same time, the one
                that stands first counts as the later one, as in files of interactions.

        Raises:
            InputError: for a ``top_k`` that is no count, what is no list of ids, and times that are not one an item.
        """
        given, excluded = _listed("history", history), _listed("exclude", exclude)
        check(no_count("top_k", top_k), _no_times(given, timestamps))
        if timestamps is not None:
            given = _oldest_first(given, timestamps)
        unknown: dict[Id, None] = {}
        numbers = self._known(given, unknown)
        hidden = list(dict.fromkeys([*numbers, *self._known(excluded, unknown)]))
        items, scores = self._best([numbers], [hidden], top_k)
        found = int(np.isfinite(scores[0]).sum())
        chosen = items[0, :found].tolist()
        return Recommended(
            [self.ids[item] for item in chosen],
            scores[0, :found].tolist(),
            [self.titles[item] for item in chosen],
            HISTORY if numbers else POPULARITY,
            list(unknown),
        )

    def recommend_all(self, histories: Mapping[Any, Iterable[Id]], top_k: int = 10) -> Recommendations:
        """The best items for many people at once, each by their own history, as `recommend` gives them.

        All lists are equally long. Where the catalogue ends before ``top_k``, numbers are -1 and scores -inf, which
        `recommend` leaves out: -1 names no item, though ``ids[-1]`` is one.

        Args:
            histories: Item ids of each person, the oldest first.
            top_k: As of `recommend`.

        Raises:
            InputError: for a ``top_k`` that is no count, and for a history that is no list of ids.
        """
        check(no_count("top_k", top_k))
        unknown: dict[Id, None] = {}
        listed = (_listed(f"history of {user!r}", history) for user, history in histories.items())
        numbers = [self._known(history, unknown) for history in listed]
        items, scores = self._best(numbers, numbers, top_k)
        sources = [HISTORY if one else POPULARITY for one in numbers]
        items = np.where(np.isfinite(scores), items, -1)
        return Recommendations(list(histories), items, scores, sources, list(unknown))

    def _known(self, given: list[Id], unknown: dict[Id, None]) -> list[int]:
        """The numbers of those items that there are, each once, as they come; the others are added to ``unknown``."""
        numbers = dict.fromkeys(map(self._numbers.get, given))
        if None not in numbers:
            return list(numbers)  # type: ignore[arg-type]
        found = {one: self._numbers.get(str(one)) for one in given}
        unknown.update(dict.fromkeys(one for one, number in found.items() if number is None))
        return list(dict.fromkeys(number for number in found.values() if number is not None))

    def _best(
        self, histories: Sequence[list[int]], hidden: Sequence[list[int]], top_k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Numbers and scores of the best items for each of some histories, `[users, top_k]` each."""
        k = min(top_k, self.num_items)
        with_one = np.array([bool(one) for one in histories], bool)
        keys = np.empty((len(histories), k), np.int64)
        for chosen in (True, False):
            rows = np.flatnonzero(with_one == chosen).tolist()
            if not rows:
                continue
            own = kept_out = self._entries([histories[row] for row in rows])
            if hidden is not histories:
                kept_out = self._entries([hidden[row] for row in rows])
            if chosen:
                keys[rows] = self.reader.best(own, kept_out, len(rows), k)
            else:
                keys[rows] = self.reader.by_popularity.best(kept_out, len(rows), k)
        scores, items = parts_of(keys)
        return items, scores

    def _entries(self, lists: Sequence[list[int]]) -> Entries:
        """Items of some users, the oldest first, as entries."""
        lengths = np.array([len(one) for one in lists], np.int64)
        users = np.repeat(np.arange(len(lists)), lengths)
        items = np.array([item for one in lists for item in one], np.int64)
        ages = np.zeros(len(items), np.int64)
        if self.ordered:
            ages = np.repeat(np.cumsum(lengths), lengths) - 1 - np.arange(len(items))
        order = np.argsort(users * self.num_items + items, kind="stable")
        return Entries(users, items[order], ages[order])


def _listed(name: str, given: Iterable[Id]) -> list[Id]:
    """Ids as a list. Raises `InputError` for what is none: a text would be a list of its letters."""
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        meant = f"; give [{given!r}]" if isinstance(given, str | int) else ""
        raise InputError(f"{name}: {given!r} is no list of ids{meant}")
    found = list(given)
    kinds = {kind for kind in set(map(type, found)) if kind is bool or not issubclass(kind, str | int | np.integer)}
    if kinds:
        wrong = next(one for one in found if type(one) in kinds)
        raise InputError(f"{name}: {wrong!r} is no id; ids are whole numbers or text")
    return found


def _no_times(history: Sequence[Id], timestamps: Sequence[float] | None) -> str | None:
    """What is wrong with the times of a history."""
    if timestamps is None:
        return None
    if len(timestamps) != len(history):
        return f"timestamps: are {len(timestamps)} for a history of {len(history)} items; give one for each"
    # A whole number may be larger than any float.
    good = (isinstance(one, int) or (isinstance(one, float | np.number) and math.isfinite(one)) for one in timestamps)
    if not all(good):
        return "timestamps: are not all finite numbers"
    return None


def _oldest_first(history: Sequence[Id], timestamps: Sequence[float]) -> list[Id]:
    """A history in the order of time; of an item that stands there twice, the earliest counts."""
    first: dict[str, int] = {}
    for place, item in enumerate(history):
        if timestamps[place] < timestamps[first.setdefault(str(item), place)]:
            first[str(item)] = place
    # Equal times: what stands first is the later one, so that it comes behind the others here.
    places = sorted(first.values(), key=lambda place: (timestamps[place], -place))
    return [history[place] for place in places]
