"""Clips and results that lie behind URLs: fetched before the work on them, delivered after it.

Any URL that fsspec knows will do: s3://, gs://, az://, sftp://, file://, … A result is uploaded
whole, its manifest last, so that a folder with a manifest is a finished result there too. What the
batch itself needs of results, manifests and strips, it mirrors in a folder of its own.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING, Any

from platformdirs import user_cache_path

from mpsnet_cli.batch.fault import Fault
from mpsnet_cli.batch.outcome import Outcome
from mpsnet_cli.batch.strip import STRIP
from mpsnet_cli.errors import InputError, MpsnetError, OutputError
from mpsnet_cli.export.result import MANIFEST

if TYPE_CHECKING:
    from mpsnet_cli.batch.unit import Unit

SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):/+(?=[^/])")  # a single letter is a drive of Windows
PASSWORD = re.compile(r"(?<=://)([^/:@]*):[^/@]*(?=@)")
HIDING = str.maketrans("#?", "\uf8fe\uf8ff")  # for private use: in no name
SOURCE = "source"  # in a manifest: which clip it was made of, if that came from a URL
# What fsspec's systems call that by which one version of a file is told from another, surest first
VERSIONS = ("ETag", "etag", "md5Hash", "mtime", "Last-Modified", "LastModified", "last_modified")

Work = Callable[["Unit", Callable[[Any], None]], Outcome]


def url_of(path: Path) -> str | None:
    """Return the URL that was taken for a path, which loses a slash of it; None for a path."""
    text = path.as_posix()
    if not (found := SCHEME.match(text)):
        return None
    slashes = "///" if found[1] in ("file", "local") else "//"
    return f"{found[1]}:{slashes}{text[found.end() :]}"


def shown(path: Path) -> str:
    """Write a path as the user did, or the URL that was taken for it, but no password."""
    url = url_of(path)
    return _public(url) if url else str(path)


def mirror_of(url: str) -> Path:
    """Name the folder that mirrors what is needed of the results behind a URL."""
    return user_cache_path("mpsnet-cli") / "batch" / _short(url)


def find(url: str, *, recursive: bool, is_clip: Callable[[str], bool]) -> Iterator[Path]:
    """Yield the clips that a URL means, as the paths that `url_of` takes: see `find_clips`."""
    with _errors(url):
        files, place = _filesystem(url)
        if glob.has_magic(place) and not files.exists(place):
            members = [name for name in files.glob(place) if is_clip(name)]
            manifests = {str(PurePosixPath(name).with_name(MANIFEST)) for name in members}
            members += filter(files.exists, manifests)
        elif not is_clip(place) and files.isdir(place):  # over HTTP, isdir reads what it asks about
            members = files.find(place, maxdepth=None if recursive else 1)
        else:
            yield Path(url)
            return
        results = {PurePosixPath(name).parent for name in members if name.endswith(f"/{MANIFEST}")}
        for name in sorted(members):
            path = PurePosixPath(name)
            below = path.relative_to(place).parts if path.is_relative_to(place) else path.parts[-1:]
            if (
                is_clip(name)
                and not any(part.startswith(".") for part in below)
                and not results & {*path.parents}
            ):
                # Names of files may come without their host, and no system puts it back.
                front = url.removesuffix(place)
                yield Path(files.unstrip_protocol(name) if front == url else front + name)


def source_of(url: str) -> dict[str, Any]:
    """Say what a clip is without reading it, so that it need not be read to know it again.

    Raises InputError where there is no such file.
    """
    with _errors(url):
        files, place = _filesystem(url)
        info = files.info(place)
        version = next((str(info[name]) for name in VERSIONS if info.get(name)), None)
        return {"url": _public(url), "bytes": info.get("size"), "version": version}


def upload(file: Path, url: str) -> None:
    """Put a file at a URL."""
    with _errors(url, OutputError):
        files, place = _filesystem(url)
        _put(files, {file: place})


def mirror(url: str, folder: Path) -> None:
    """Let a folder hold of a result behind a URL its manifest and strip, or nothing."""
    shutil.rmtree(folder, ignore_errors=True)
    with _errors(url):
        files, place = _filesystem(url)
        files.invalidate_cache(place)  # of when clips were looked for, perhaps
        for name in (MANIFEST, STRIP):
            if not files.exists(f"{place}/{name}"):
                return
            folder.mkdir(parents=True, exist_ok=True)
            files.get_file(f"{place}/{name}", str(folder / name))


def staged(work: Work) -> Work:
    """Let a worker's work be on local copies of whatever lies behind URLs."""

    def do(unit: Unit, tell: Callable[[Any], None]) -> Outcome:
        source = url_of(unit.clip)
        if not (source or unit.url):
            return work(unit, tell)
        try:
            return _do(unit, source, work, tell)
        except Exception as error:
            fault = Fault.of(error)
            return Outcome(unit.clip, unit.name, "failed", fault.sentence, None, None, 0.0, 1,
                           fault.traceback)  # fmt: skip

    return do


def _do(unit: Unit, source: str | None, work: Work, tell: Callable[[Any], None]) -> Outcome:
    # Named after what it is for, so that the work is gone on with if it is begun here again.
    place = _scratch() / _short(f"{unit.clip} {unit.url}")
    local = replace(unit, url=None)
    if source:
        local = replace(local, clip=place / unit.clip.name)
    if unit.url:
        local = replace(local, folder=place / "out" / unit.folder.name)
    try:
        if source:
            facts = source_of(source)  # of no later version than the one that is fetched
            _fetch(source, local.clip)
        if unit.url:
            _take_up(unit.url, local)
        before = _read(local.folder)
        outcome = work(local, tell)
        if outcome.manifest and source and _read(local.folder) != before:
            outcome = replace(outcome, manifest=_say_source(local.folder, facts))
        if outcome.manifest and unit.url and (_read(local.folder) != before or unit.formats):
            _deliver(local.folder, unit.url)
    finally:
        if source:
            local.clip.unlink(missing_ok=True)
        if unit.url:
            shutil.rmtree(local.folder, ignore_errors=True)
        for folder in (place / "out", place):
            with suppress(OSError):  # it keeps what to go on with
                folder.rmdir()
    sentence = outcome.sentence
    if sentence and source:
        sentence = sentence.replace(str(local.clip), _public(source))
    if sentence and unit.url:
        sentence = sentence.replace(str(local.folder), _public(unit.url))
    return replace(
        outcome,
        clip=unit.clip,
        folder=outcome.folder and unit.folder,
        sentence=sentence,
    )


def _take_up(url: str, unit: Unit) -> None:
    """Bring what is behind a URL already to where `run_clip` looks for it."""
    mirror(url, unit.folder)
    if unit.formats and unit.folder.exists():
        with _errors(url):
            files, place = _filesystem(url)
            for name in files.find(place):
                path = PurePosixPath(name).relative_to(place)
                if ".." not in path.parts:  # as names in stores of objects may hold
                    (unit.folder / path).parent.mkdir(parents=True, exist_ok=True)
                    files.get_file(name, str(unit.folder / path))


def _fetch(url: str, clip: Path) -> None:
    clip.parent.mkdir(parents=True, exist_ok=True)
    with _errors(url):
        files, place = _filesystem(url)
        files.get_file(place, str(clip))


def _deliver(folder: Path, url: str) -> None:
    """Upload a result; it has a manifest there as long as it is whole."""
    with _errors(url, OutputError):
        files, place = _filesystem(url)
        files.invalidate_cache(place)
        paths = [path for path in folder.rglob("*") if path.is_file()]
        places = {path: f"{place}/{path.relative_to(folder).as_posix()}" for path in paths}
        last = {folder / MANIFEST: places.pop(folder / MANIFEST)}
        if files.exists(f"{place}/{MANIFEST}"):  # or else what is there may not be ours
            files.rm_file(f"{place}/{MANIFEST}")
            for name in {*files.find(place)} - {*places.values()}:
                files.rm_file(name)  # as `rm` takes "[" and "?" for patterns
        _put(files, places)
        _put(files, last)


def _put(files: Any, places: dict[Path, str]) -> None:
    """Upload files, and make the folders that they are to lie in."""
    for folder in {str(PurePosixPath(place).parent) for place in places.values()}:
        if PurePath(folder).root:  # or else it begins with a bucket, which would be made too
            files.makedirs(folder, exist_ok=True)
    files.put([str(path) for path in places], [*places.values()])


def _read(folder: Path) -> bytes | None:
    path = folder / MANIFEST
    return path.read_bytes() if path.is_file() else None


def _say_source(folder: Path, source: dict[str, Any]) -> dict[str, Any]:
    """Write into a manifest which clip it is of, and return that."""
    path = folder / MANIFEST
    manifest: dict[str, Any] = json.loads(path.read_text())
    manifest["input"]["path"] = source["url"]
    manifest[SOURCE] = source
    part = path.with_name(f".{MANIFEST}.part")
    part.write_text(json.dumps(manifest, indent=1))
    part.replace(path)
    return manifest


def _scratch() -> Path:
    """Return a folder on this machine that is this user's alone."""
    user = str(os.getuid()) if hasattr(os, "getuid") else ""
    folder = Path(tempfile.gettempdir()) / f"mpsnet-cli{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
        raise OutputError(f"{folder} is another user's: set TMPDIR to a folder of your own.")
    return folder


def _public(url: str) -> str:
    return PASSWORD.sub(r"\1", url)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _filesystem(url: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError as error:
        raise InputError(f"{url} needs fsspec: pip install 'mpsnet-cli[ray]'.") from error
    if url.startswith("http"):
        files, place = fsspec.core.url_to_fs(url)
        return files, place
    # In a name these are what they are; but fsspec would end some systems' names there.
    files, place = fsspec.core.url_to_fs(url.translate(HIDING))
    return files, place.translate({new: old for old, new in HIDING.items()})


@contextmanager
def _errors(url: str, kind: type[MpsnetError] = InputError) -> Iterator[None]:
    """Tell in one sentence what is wrong with a URL: each of fsspec's systems raises its own."""
    try:
        yield
    except MpsnetError:
        raise
    except Exception as error:
        what = _public(url)
        if isinstance(error, FileNotFoundError) and kind is InputError:
            raise kind(f"There is no {what}: check the name.") from error
        reason = (str(error).strip() or repr(error)).splitlines()[0].rstrip(".")
        use = "used" if kind is InputError else "written"
        raise kind(f"{what} cannot be {use}: {reason}.") from error
