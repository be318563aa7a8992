"""Clips and results that lie behind URLs: fetched before the work on them, delivered after it.

Any URL that fsspec knows will do: s3://, gs://, az://, sftp://, file://, … A result is uploaded
whole, its manifest last, so that a folder with a manifest is a finished result there too. What the
batch itself needs of results, manifests and strips, it mirrors in a folder of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
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
SOURCE = "source"  # in a manifest: which clip it was made of, if that came from a URL

Work = Callable[["Unit", Callable[[Any], None]], Outcome]


def url_of(path: Path) -> str | None:
    """Return the URL that was taken for a path, which loses a slash of it; None for a path."""
    text = path.as_posix()
    if not (found := SCHEME.match(text)):
        return None
    slashes = "///" if found[1] in ("file", "local") else "//"
    return f"{found[1]}:{slashes}{text[found.end() :]}"


def mirror_of(url: str) -> Path:
    """Name the folder that mirrors what is needed of the results behind a URL."""
    return user_cache_path("mpsnet-cli") / "batch" / _short(url)


def find(url: str, *, recursive: bool, is_clip: Callable[[str], bool]) -> Iterator[Path]:
    """Yield the clips that a URL means, as the paths that `url_of` takes: see `find_clips`."""
    with _errors(url):
        files, place = _filesystem(url)
        if "*" in place or "?" in place:
            members = [name for name in files.glob(place) if is_clip(name)]
        elif files.isdir(place):
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
                yield Path(files.unstrip_protocol(name))


def size_of(url: str) -> int:
    """Return how many bytes there are. Raises InputError where there is no such file."""
    with _errors(url):
        files, place = _filesystem(url)
        return int(files.info(place)["size"] or 0)


def source_of(url: str) -> dict[str, str]:
    """Say what a clip is without reading it, so that it need not be read to know it again."""
    with _errors(url):
        files, place = _filesystem(url)
        return {"url": url, "key": str(files.ukey(place))}


def upload(file: Path, url: str) -> None:
    """Put a file at a URL."""
    with _errors(url, OutputError):
        files, place = _filesystem(url)
        files.makedirs(str(PurePosixPath(place).parent), exist_ok=True)
        files.put_file(str(file), place)


def mirror(url: str, folder: Path) -> None:
    """Let a folder hold of a result behind a URL its manifest and strip, or nothing."""
    shutil.rmtree(folder, ignore_errors=True)
    with _errors(url):
        files, place = _filesystem(url)
        for name in (MANIFEST, STRIP):
            if files.exists(f"{place}/{name}"):
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
    try:
        if source:
            local = replace(local, clip=place / unit.clip.name)
            _fetch(source, local.clip)
        if unit.url:
            local = replace(local, folder=place / "out" / unit.folder.name)
            _take_up(unit.url, local)
        before = _read(local.folder)
        outcome = work(local, tell)
        if outcome.manifest and source and _read(local.folder) != before:
            outcome = replace(outcome, manifest=_say_source(local.folder, source))
        if outcome.manifest and unit.url:
            if _read(local.folder) != before or unit.formats:
                _deliver(local.folder, unit.url)
            shutil.rmtree(local.folder, ignore_errors=True)
    finally:
        if source:
            local.clip.unlink(missing_ok=True)
    said = outcome.sentence and outcome.sentence.replace(str(local.clip), source or "")
    return replace(
        outcome,
        clip=unit.clip,
        folder=outcome.folder and unit.folder,
        sentence=said if source else outcome.sentence,
    )


def _take_up(url: str, unit: Unit) -> None:
    """Bring what is behind a URL already to where `run_clip` looks for it."""
    if unit.existing == "replace":
        shutil.rmtree(unit.folder, ignore_errors=True)
        return
    mirror(url, unit.folder)
    if unit.formats and unit.folder.exists():
        shutil.rmtree(unit.folder)
        files, place = _filesystem(url)
        with _errors(url):
            files.get(place, str(unit.folder), recursive=True)


def _fetch(url: str, clip: Path) -> None:
    clip.parent.mkdir(parents=True, exist_ok=True)
    with _errors(url):
        files, place = _filesystem(url)
        files.get_file(place, str(clip))


def _deliver(folder: Path, url: str) -> None:
    """Upload a result; it has a manifest there as long as it is whole."""
    with _errors(url, OutputError):
        files, place = _filesystem(url)
        if files.exists(f"{place}/{MANIFEST}"):
            files.rm_file(f"{place}/{MANIFEST}")
        if files.exists(place):
            files.rm(place, recursive=True)
        names = [
            path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
        ]
        for name in sorted(names, key=lambda name: name == MANIFEST):
            files.makedirs(str(PurePosixPath(place, name).parent), exist_ok=True)
            files.put_file(str(folder / name), f"{place}/{name}")


def _read(folder: Path) -> bytes | None:
    path = folder / MANIFEST
    return path.read_bytes() if path.is_file() else None


def _say_source(folder: Path, url: str) -> dict[str, Any]:
    """Write the clip's URL into a manifest, and return that."""
    path = folder / MANIFEST
    manifest: dict[str, Any] = json.loads(path.read_text())
    manifest["input"]["path"] = url
    manifest[SOURCE] = source_of(url)
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


def _short(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _filesystem(url: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError as error:
        raise InputError(f"{url} needs fsspec: pip install 'mpsnet-cli[ray]'.") from error
    files, place = fsspec.core.url_to_fs(url)
    return files, place


@contextmanager
def _errors(url: str, kind: type[MpsnetError] = InputError) -> Iterator[None]:
    """Tell in one sentence what is wrong with a URL: each of fsspec's systems raises its own."""
    try:
        yield
    except MpsnetError:
        raise
    except FileNotFoundError as error:
        raise kind(f"There is no {url}: check the name.") from error
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise kind(f"{url} cannot be used: {reason[0] if reason else error!r}.") from error
