"""Public data sets: where each lives, its checksum, its licence, and how to read it."""

from __future__ import annotations

import hashlib
import shutil
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shlex import quote

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from cgfedrec.errors import InputError, RunError, check
from cgfedrec.files import no_folder, room_for, sync_folder, write_atomically

TIMEOUT = 30
"""Seconds without an answer after which a download ends."""
CHUNK = 1 << 16
"""Bytes that are read at a time."""
_GROUPLENS = "https://files.grouplens.org/datasets"
_RESEARCH = (
    "research use, no redistribution, no commercial use without permission, with acknowledgement: the README inside"
)
_LAYOUT = "--data.format.layout movielens-"


@dataclass(frozen=True)
class Entry:
    """A public data set: a zip archive somewhere."""

    url: str
    checksum: str
    """Algorithm and hexadecimal digest of the archive, ``md5:...`` or ``sha256:...``."""
    ratings: str
    """The file of interactions in the archive."""
    options: str
    """How `cgfedrec fit` reads it."""
    licence: str = f"GroupLens: {_RESEARCH}"


CATALOG = {
    "ml-100k": Entry(
        f"{_GROUPLENS}/movielens/ml-100k.zip", "md5:0e33842e24a9c977be4e0107933c0723", "u.data", f"{_LAYOUT}100k"
    ),
    "ml-1m": Entry(
        f"{_GROUPLENS}/movielens/ml-1m.zip", "md5:c4d9eecfca2ab87c1945afe126590906", "ratings.dat", f"{_LAYOUT}1m"
    ),
    "ml-10m": Entry(
        f"{_GROUPLENS}/movielens/ml-10m.zip", "md5:ce571fd55effeba0271552578f2648bd", "ratings.dat", f"{_LAYOUT}1m"
    ),
    "ml-20m": Entry(
        f"{_GROUPLENS}/movielens/ml-20m.zip", "md5:cd245b17a1ae2cc31bb14903e1204af3", "ratings.csv", f"{_LAYOUT}csv"
    ),
    "ml-25m": Entry(
        f"{_GROUPLENS}/movielens/ml-25m.zip", "md5:6b51fb2759a8657d3bfcbfc42b592ada", "ratings.csv", f"{_LAYOUT}csv"
    ),
    # its home says that this one changes; the checksum is of the archive of October 2026
    "ml-latest-small": Entry(
        f"{_GROUPLENS}/movielens/ml-latest-small.zip",
        "sha256:696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436",
        "ratings.csv",
        f"{_LAYOUT}csv",
    ),
}


def download(name: str, directory: Path, console: Console, url: str | None = None) -> Path:
    """Fetch a data set into ``directory / name``, going on where an earlier attempt broke off.

    Args:
        name: In `CATALOG`.
        directory: Holds a folder for each data set.
        console: Where licence, progress and the next command are shown.
        url: Take the archive from elsewhere.

    Returns:
        The file of interactions.

    Raises:
        InputError: if there is no such data set.
        RunError: if it cannot be fetched, or is not what its checksum says.
    """
    if name not in CATALOG:
        raise InputError(f"name: no data set {name!r}; there are {', '.join(CATALOG)}")
    entry, target = CATALOG[name], directory / name
    ratings = target / entry.ratings
    by_hand = target / name / entry.ratings  # where an archive that is unpacked as it is has them
    if by_hand.exists() and not ratings.exists():
        ratings = by_hand
    console.print(f"{name}: {entry.licence}", soft_wrap=True, highlight=False)
    archive = directory / f"{name}.zip.part"
    if not ratings.exists():
        if target.exists() and any(target.iterdir()):
            raise InputError(f"--dir: {target} is there, but holds no {entry.ratings}; move it away")
        check(no_folder("--dir", directory))
        directory.mkdir(parents=True, exist_ok=True)
        _fetch(url or entry.url, archive, target, console)
        _verify(archive, entry.checksum)
        _extract(archive, target, entry.ratings)
    archive.unlink(missing_ok=True)
    console.print(
        f"train on it with:\n  cgfedrec fit --data.init_args.path {quote(str(ratings))} {entry.options}",
        soft_wrap=True,
        highlight=False,
    )
    return ratings


def _fetch(url: str, archive: Path, target: Path, console: Console) -> None:
    """Fetch what is still missing of an archive. Raises `RunError`, and leaves what has come so far."""
    if not url.startswith(("http://", "https://")):
        raise InputError(f"--url: {url!r} must begin with http:// or https://")
    request, done = urllib.request.Request(url), 0
    if archive.exists():
        done = archive.stat().st_size
    if done:
        request.add_header("Range", f"bytes={done}-")
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    try:
        with (
            urllib.request.urlopen(request, timeout=TIMEOUT) as response,
            Progress(*columns, console=console) as progress,
        ):
            mode, total = "ab", None
            if response.status != 206:  # it knows no ranges, and sends all of it
                mode, done = "wb", 0
            length = int(response.headers.get("Content-Length", 0))
            if length:
                total = done + length
            task = progress.add_task(archive.stem, total=total, completed=done)
            with room_for(archive), archive.open(mode) as file:
                while chunk := response.read(CHUNK):
                    file.write(chunk)
                    progress.advance(task, len(chunk))
            if total and archive.stat().st_size < total:
                raise ConnectionError("the connection ended early")
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is left to fetch
            return
        raise RunError(f"{url}: {error}") from error
    except (urllib.error.URLError, OSError) as error:
        raise RunError(
            f"{url}: {getattr(error, 'reason', error)}. The same command goes on where this one ended. Without a "
            f"network: fetch the archive elsewhere, save it as {archive}, and run this again; or unpack it to {target}"
        ) from error


def _verify(archive: Path, checksum: str) -> None:
    """Set an archive aside that is not what its checksum says, so that the next attempt begins anew."""
    algorithm, expected = checksum.split(":")
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if found != expected:
        rejected = archive.with_suffix(".rejected")
        archive.replace(rejected)
        raise RunError(f"{rejected}: {algorithm} {found}, expected {expected}; not used. Run the command again")


def _extract(archive: Path, target: Path, ratings: str) -> None:
    """Unpack flat into ``target``, in one step, whatever folder the archive has."""
    staging = target.with_name(f".{target.name}.part")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            if not member.is_dir():
                with file.open(member) as source:  # its bare name: an archive cannot write outside its folder
                    write_atomically(staging / Path(member.filename).name, partial(shutil.copyfileobj, source))
    if not (staging / ratings).exists():
        shutil.rmtree(staging)
        raise RunError(f"{archive}: holds no {ratings}")
    staging.replace(target)
    sync_folder(target.parent)
