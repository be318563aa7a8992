"""Clips and results in a bucket: what fsspec does with a real server of S3's protocol."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mpsnet_cli.batch import storage
from mpsnet_cli.batch.clips import find_clips
from mpsnet_cli.batch.outcome import Outcome
from mpsnet_cli.batch.unit import Unit
from mpsnet_cli.errors import InputError, MpsnetError, OutputError
from mpsnet_cli.job import Arguments

s3fs = pytest.importorskip("s3fs", reason="needs s3fs")
moto = pytest.importorskip("moto.server", reason="needs moto[server]", exc_type=ImportError)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # moto's and botocore's
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # connections of theirs
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

seconds = itertools.count(1)  # so that no two manifests are the same
ODD = "sub/b #1 %20 ü?[x].mp4"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bucket with three clips; temporary files of ours go to the folder tmp."""
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
    }.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem()
    files.mkdir("bucket")
    for name in ("a.mp4", ODD, "Größe 100%.MOV"):
        files.pipe_file(f"bucket/in/{name}", name.encode())
    yield files
    files.rm("bucket", recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()


def scratch(folder: Path) -> list[str]:
    """List what is left of our temporary files."""
    return sorted(str(path.relative_to(folder)) for path in (folder / "tmp").glob("*/**/*"))


def found(*urls: str, recursive: bool = False) -> tuple[list[str], list[str]]:
    """Return the clips' URLs and the warnings."""
    warnings: list[str] = []
    clips = find_clips(map(Path, urls), recursive=recursive, warn=warnings.append)
    return [str(storage.url_of(clip)) for clip in clips], warnings


def unit_of(name: str, folder: Path, **options: Any) -> Unit:
    stem = name.rpartition(".")[0]
    return Unit(
        Path(f"s3://bucket/in/{name}"),
        stem,
        folder / "mirror" / stem,
        Arguments(),
        url=f"s3://bucket/out/{stem}",
        **options,
    )


def make_result(*names: str) -> Callable[[Unit, Any], Outcome]:
    """Return work that makes a result of files of these names, unless there is one."""

    def work(unit: Unit, _: Any) -> Outcome:
        assert unit.clip.is_file()
        manifest = unit.folder / "clip.json"
        if not manifest.exists() or unit.existing == "replace":
            for path in (unit.folder / name for name in names):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(unit.clip.read_bytes())
            facts = {"input": {"path": str(unit.clip)}, "seconds": next(seconds)}
            manifest.write_text(json.dumps(facts))
        facts = json.loads(manifest.read_text())
        return Outcome(unit.clip, unit.name, "done", None, unit.folder, facts)

    return work


def do(unit: Unit, *names: str) -> Outcome:
    return storage.staged(make_result(*names))(unit, lambda _: None)


def test_clips_are_found_in_a_bucket(bucket: Any) -> None:
    for name in (".hidden.mp4", "notes.md", "made/clip.json", "made/overlay.mp4"):
        bucket.pipe_file(f"bucket/in/{name}", b"x")
    flat = ["s3://bucket/in/Größe 100%.MOV", "s3://bucket/in/a.mp4"]
    odd = f"s3://bucket/in/{ODD}"
    assert found("s3://bucket/in") == (flat, [])
    assert found("s3://bucket/in/", recursive=True) == ([*flat, odd], [])
    assert found("s3://bucket", recursive=True) == ([*flat, odd], [])
    assert found("s3://bucket/in/**/*.mp4") == ([flat[1], odd], [])
    assert found(odd) == ([odd], [])  # "?" and "[" of a name that there is mean themselves
    nothing = "s3://bucket/in/*.avi"
    assert found(nothing) == ([], [f"There is no clip at {nothing}."])


def test_a_result_is_delivered_and_known_again(bucket: Any, tmp_path: Path) -> None:
    unit = unit_of(ODD, tmp_path)
    source = f"s3://bucket/in/{ODD}"
    found("s3://bucket", recursive=True)  # so that a listing is kept from before
    listed = storage.source_of(source)
    outcome = do(unit, "person_01.npz", "meshes/000000.obj")
    assert (outcome.clip, outcome.folder, outcome.status) == (unit.clip, unit.folder, "done")
    place = unit.url.removeprefix("s3://")  # type: ignore[union-attr]
    names = ["clip.json", "meshes/000000.obj", "person_01.npz"]
    assert bucket.find(place) == [f"{place}/{name}" for name in names]
    assert bucket.cat_file(f"{place}/person_01.npz") == ODD.encode()
    manifest = json.loads(bucket.cat_file(f"{place}/clip.json"))
    assert manifest == outcome.manifest
    assert manifest["input"]["path"] == source
    assert scratch(tmp_path) == []
    storage.mirror(str(unit.url), unit.folder)
    assert json.loads((unit.folder / "clip.json").read_text()) == manifest
    # What a listing says of a clip and what its head says differ, but not in what it is known by.
    bucket.invalidate_cache()
    assert manifest["source"] == storage.source_of(source) == listed
    before = bucket.info(f"{place}/clip.json", refresh=True)["LastModified"]
    assert do(unit, "other.npz").manifest == manifest
    assert bucket.info(f"{place}/clip.json", refresh=True)["LastModified"] == before
    bucket.pipe_file(f"bucket/in/{ODD}", ODD[::-1].encode())  # as long as before
    bucket.invalidate_cache()
    assert storage.source_of(source) != listed


def test_a_new_result_takes_the_place_of_an_old_one_alone(bucket: Any, tmp_path: Path) -> None:
    others = ["bucket/out/sub/b #1 %20 üxx/clip.json", "bucket/out/sub/b #1 %20 ü?[x].txt"]
    strange = "bucket/out/a/mine.txt"
    for name in (*others, strange):
        bucket.pipe_file(name, b"x")
    do(unit_of(ODD, tmp_path), "person_01.npz", "person_02.npz")
    do(unit_of(ODD, tmp_path, existing="replace"), "person_01.npz")
    place = "bucket/out/sub/b #1 %20 ü?[x]"
    assert bucket.find(place, refresh=True) == [f"{place}/clip.json", f"{place}/person_01.npz"]
    assert all(map(bucket.exists, others))
    do(unit_of("a.mp4", tmp_path), "person_01.npz")
    assert bucket.exists(strange)


def test_exports_are_added_to_a_result(bucket: Any, tmp_path: Path) -> None:
    do(unit_of("a.mp4", tmp_path), "person_01.npz")
    bucket.pipe_file("bucket/out/a/../escaped.txt", b"x")
    seen = []

    def export(unit: Unit, tell: Any) -> Outcome:
        seen.extend(sorted(path.name for path in unit.folder.parent.rglob("*")))
        (unit.folder / "a.glb").write_bytes(b"glb")
        return make_result()(unit, tell)

    storage.staged(export)(unit_of("a.mp4", tmp_path, formats=("glb",)), lambda _: None)
    assert seen == ["a", "clip.json", "person_01.npz"]
    assert bucket.cat_file("bucket/out/a/a.glb") == b"glb"


def test_a_failed_upload_leaves_no_manifest(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = unit_of("a.mp4", tmp_path, existing="replace")
    do(unit, "person_01.npz", "strip.jpg")
    put = s3fs.S3FileSystem._put_file

    async def fail(self: Any, source: str, place: str, **options: Any) -> None:
        if place.endswith(".npz"):
            raise PermissionError("Access denied.")
        await put(self, source, place, **options)

    with monkeypatch.context() as patch:
        patch.setattr(s3fs.S3FileSystem, "_put_file", fail)
        outcome = do(unit, "person_01.npz", "strip.jpg")
    assert (outcome.status, outcome.manifest) == ("failed", None)
    assert outcome.sentence == "s3://bucket/out/a cannot be written: Access denied."
    assert not bucket.exists("bucket/out/a/clip.json")
    assert scratch(tmp_path) == []
    storage.mirror(str(unit.url), unit.folder)
    assert not unit.folder.exists()
    assert do(unit, "person_01.npz").status == "done"
    assert bucket.exists("bucket/out/a/clip.json")


def test_what_is_not_there_gets_one_sentence(bucket: Any, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("x")
    with pytest.raises(OutputError, match=r"^s3://none/out/report.html cannot be written: .*\.$"):
        storage.upload(tmp_path / "report.html", "s3://none/out/report.html")
    assert not bucket.exists("none"), "it was made, and who pays for it?"
    for url in ("s3://bucket/in/none.mp4", "s3://none/in/a.mp4"):
        with pytest.raises(InputError, match=f"^There is no {url}: check the name.$"):
            storage.source_of(url)
    outcome = do(unit_of("none.mp4", tmp_path), "person_01.npz")
    assert outcome.sentence == "There is no s3://bucket/in/none.mp4: check the name."
    assert scratch(tmp_path) == []


@pytest.mark.usefixtures("bucket")
def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(MpsnetError, match=r"^s3://bucket/in cannot be used: Could not connect"):
        found("s3://bucket/in")
