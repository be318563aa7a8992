"""Which clips the inputs of a batch mean, and what each of them is called."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import takewhile
from pathlib import Path, PurePath, PurePosixPath

from av.format import ContainerFormat

from mpsnet_cli.batch import storage
from mpsnet_cli.batch.report import REPORT_HTML, REPORT_JSON
from mpsnet_cli.errors import InputError
from mpsnet_cli.export.result import MANIFEST
from mpsnet_cli.job import folder_name
from mpsnet_cli.video.info import CONTAINERS

LIST = ".txt"  # a file of this kind lists inputs
LOCK = ".batch.lock"
RESERVED = {REPORT_JSON, REPORT_HTML, LOCK}  # names of ours in the folder of all results

MUXERS = "vob,ogv,mpeg1video,mpeg2video"  # names that only ffmpeg's writers have for CONTAINERS
PICTURES = {"apng", "avif", "gif", "heic", "heif", "mpo"}
SOUNDS = {"isma", "m4a", "m4b", "mka", "ra", "wma"}
TEXTS = {"ism", "mks"}  # playlists, subtitles

Warn = Callable[[str], None]


@cache
def clip_extensions() -> frozenset[str]:
    """Return the extensions, lower case and without dot, of the videos that `probe` opens."""
    names = f"{CONTAINERS},{MUXERS}".split(",")
    known = set().union(*(ContainerFormat(name).extensions for name in names))
    return frozenset(known - PICTURES - SOUNDS - TEXTS)


def find_clips(inputs: Iterable[Path], *, recursive: bool, warn: Warn) -> list[Path]:
    """Return the clips that files, folders, globs and lists mean, each once.

    A folder's are those of its files that are called like videos, with `recursive` below it too;
    its hidden files and our own results are none. A file that is given itself is a clip whatever it
    is called, even if it is missing. A list's lines are inputs relative to its folder; empty ones
    and those that begin with # are none. Raises InputError for a list that cannot be read.
    """
    found: dict[str, Path] = {}
    for source in _sources(inputs):
        for path in _clips_of(source, recursive, warn):
            found.setdefault(_absolute(path), path)
    return list(found.values())


def common_folder(inputs: Iterable[Path]) -> Path:
    """Return the deepest folder that all inputs lie in; a folder that is given lies in itself.

    It does not depend on which clips are there. Raises InputError where there is none.
    """
    homes = [_absolute(_home(source)) for source in _sources(inputs)]
    try:
        return Path(os.path.commonpath(homes)) if homes else Path.cwd()
    except ValueError as error:
        raise InputError(
            "The inputs lie on different drives: start a batch for those of each."
        ) from error


def name_clips(
    clips: Sequence[Path], base: Path, *, named: Mapping[Path, str] | None = None
) -> dict[Path, str]:
    """Name each clip after its path below `base`: plain parts with "/" between them.

    The extension is left out, unless two results would then be in one folder, or one within the
    other. Names that were given before (`named`) stay as they are.
    """
    given = dict(named or {})
    whole = {clip: _below(base, clip) for clip in clips if clip not in given}
    short = {clip: path.with_name(folder_name(clip)) for clip, path in whole.items()}
    names = {**given, **{clip: path.as_posix() for clip, path in short.items()}}
    while True:
        taken = Counter(name.casefold() for name in names.values()) + Counter(RESERVED)
        around = {parent.as_posix() for name in taken for parent in PurePosixPath(name).parents}
        clashing = [
            clip
            for clip, path in whole.items()
            if names[clip] != path.as_posix()
            and (taken[names[clip].casefold()] > 1 or names[clip].casefold() in around)
        ]
        if not clashing:
            return names
        names |= {clip: whole[clip].as_posix() for clip in clashing}


def _sources(inputs: Iterable[Path]) -> Iterator[Path]:
    """Yield the inputs, with what lists say in the place of these."""
    for given in inputs:
        if given.suffix.lower() != LIST or given.is_dir():
            yield given
            continue
        try:
            # As names of files are read, so that those that are no text arrive too.
            lines = given.read_text("utf-8-sig", errors="surrogateescape").splitlines()
        except OSError as error:
            raise InputError(
                f"The list {given} cannot be read ({error.strerror}): check the name."
            ) from error
        words = (line.strip() for line in lines)
        for word in words:
            if word and not word.startswith("#"):
                path = Path(word)
                yield path if storage.url_of(path) else given.parent / path


def _is_glob(source: Path) -> bool:
    return glob.has_magic(str(source)) and not source.exists()


def _home(source: Path) -> Path:
    """Return the folder that names are relative to, were there no other input."""
    if _is_glob(source):
        plain = takewhile(lambda part: not glob.has_magic(part), source.parts)
        return Path(*plain)
    if storage.url_of(source):
        return source.parent if _is_called_a_clip(source.name) else source
    return source if source.is_dir() else source.parent


def _clips_of(source: Path, recursive: bool, warn: Warn) -> Iterator[Path]:
    if url := storage.url_of(source):
        clips = list(storage.find(url, recursive=recursive, is_clip=_is_called_a_clip))
        if not clips:
            warn(f"There is no clip at {storage.shown(source)}.")
        yield from clips
    elif source.is_dir():
        yield from _members(source, recursive, warn)
    elif _is_glob(source):
        yield from _matches(source, warn)
    else:
        yield source


def _members(folder: Path, recursive: bool, warn: Warn) -> Iterator[Path]:
    def tell(error: OSError) -> None:
        warn(f"The folder {error.filename} is left out: {error.strerror}.")

    seen = set()
    for place, folders, files in os.walk(folder, onerror=tell, followlinks=True):
        real = os.path.realpath(place)
        if real in seen or MANIFEST in files:  # a circle of links, or a result of ours
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(f for f in folders if not f.startswith(".")) if recursive else []
        yield from (
            Path(place, file)
            for file in sorted(files)
            if _is_called_a_clip(file) and not file.startswith(".")
        )


def _matches(pattern: Path, warn: Warn) -> Iterator[Path]:
    is_result = cache(lambda folder: (folder / MANIFEST).exists())
    # With an extension of its own, a pattern says itself what is a clip.
    says = bool(pattern.suffix) and not glob.has_magic(pattern.suffix)
    matches = [
        path
        for path in map(Path, sorted(glob.glob(str(pattern), recursive=True)))  # noqa: PTH207
        if (says or _is_called_a_clip(path.name))
        and not path.is_dir()
        and not any(map(is_result, path.parents))
    ]
    if not matches:
        warn(f"No clip is called {pattern}.")
    yield from matches


def _is_called_a_clip(name: str) -> bool:
    return PurePath(name).suffix.lower().removeprefix(".") in clip_extensions()


def _absolute(path: Path) -> str:
    """Make a path absolute and plain, links as they are: clips are called what the user sees."""
    return os.path.normpath(path.absolute())


def _below(base: Path, clip: Path) -> PurePath:
    """Return where a clip lies in a folder, in plain parts."""
    path = PurePath(os.path.relpath(_absolute(clip), base))
    if ".." in path.parts:
        raise InputError(f"{clip} does not lie in {base}: give it without a way around.")
    return path if path.parts else PurePath(clip.name)  # as of a URL taken for a folder's
