from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from mpsnet_cli.batch.clips import clip_extensions, common_folder, find_clips, name_clips
from mpsnet_cli.errors import InputError


@pytest.fixture(autouse=True)
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def found(*inputs: str, recursive: bool = False) -> list[str]:
    warnings: list[str] = []
    clips = find_clips(map(Path, inputs), recursive=recursive, warn=warnings.append)
    assert not warnings
    return [clip.as_posix() for clip in clips]


def names(inputs: Iterable[str], clips: Iterable[str]) -> dict[str, str]:
    named = name_clips([Path(clip) for clip in clips], common_folder(map(Path, inputs)))
    return {clip.as_posix(): name for clip, name in named.items()}


def test_extensions_are_those_of_videos() -> None:
    known = clip_extensions()
    assert {"mp4", "mov", "m4v", "mkv", "webm", "avi", "mpg", "ts", "m2ts", "mts", "flv", "wmv",
            "ogv", "vob", "3gp", "mxf", "dv", "y4m", "h264", "hevc"} <= known  # fmt: skip
    assert not known & {"jpg", "png", "gif", "heic", "avif", "mp3", "m4a", "wav", "wma", "mka",
                        "srt", "ass", "mks", "txt", "json", "npz", "obj", ""}  # fmt: skip


def test_folders_give_their_videos_in_order() -> None:
    touch("in/b.MP4", "in/a.mkv", "in/note.txt", "in/.hidden.mp4", "in/picture.png", "in/sub/c.mov")
    touch("in/.sub/d.mp4")
    assert found("in") == ["in/a.mkv", "in/b.MP4"]
    assert found("in", recursive=True) == ["in/a.mkv", "in/b.MP4", "in/sub/c.mov"]


def test_files_are_clips_whatever_they_are_called() -> None:
    touch("clip.dat", ".hidden.mp4")
    assert found("clip.dat", ".hidden.mp4", "missing.mp4") == [
        "clip.dat",
        ".hidden.mp4",
        "missing.mp4",
    ]


def test_our_own_results_are_no_clips() -> None:
    touch("in/a.mp4", "in/out/a/clip.json", "in/out/a/overlay.mp4", "in/out/a/exports/x.mp4")
    touch("in/out/.b.part/result/overlay.mp4")
    assert found("in", recursive=True) == ["in/a.mp4"]
    assert found("in/out/a", "in/a.mp4") == ["in/a.mp4"]
    assert found("in/**/*.mp4") == ["in/a.mp4"]


def test_globs(tree: Path) -> None:
    touch("in/a.mp4", "in/a.txt", "in/b.dat", "in/sub/c.mp4", "in/sub/.h.mp4", "in/[1].mp4")
    assert found("in/*") == ["in/[1].mp4", "in/a.mp4"]
    assert found("in/*.dat") == ["in/b.dat"]  # it says itself what it wants
    assert found("in/**/*.mp4") == ["in/[1].mp4", "in/a.mp4", "in/sub/c.mp4"]
    assert found("in/[1].mp4") == ["in/[1].mp4"]  # there is a file of that name
    assert found(str(tree / "in" / "?.mp4")) == [(tree / "in" / "a.mp4").as_posix()]


def test_a_glob_without_matches_is_told_of() -> None:
    warnings: list[str] = []
    assert find_clips([Path("no*.mp4")], recursive=False, warn=warnings.append) == []
    assert warnings == ["No clip is called no*.mp4."]


def test_lists(tree: Path) -> None:
    touch("videos/a.mp4", "videos/more/b.mp4")
    lines = ["# clips", "", "  a.mp4  ", "more", "more/*.mp4", str(tree / "videos" / "a.mp4")]
    Path("videos/list.TXT").write_text("\ufeff" + "\r\n".join(lines), encoding="utf-8")
    assert found("videos/list.TXT") == ["videos/a.mp4", "videos/more/b.mp4"]
    with pytest.raises(InputError, match=r"list nowhere\.txt cannot be read"):
        found("nowhere.txt")


@pytest.mark.skipif(os.name != "posix", reason="names are text elsewhere")
def test_names_that_are_no_text() -> None:
    name = os.fsdecode(b"caf\xe9.mp4")
    touch(f"in/{name}")
    Path("list.txt").write_bytes(b"in/caf\xe9.mp4\n")
    assert found("list.txt") == found("in") == [f"in/{name}"]
    assert names(["in"], found("in")) == {f"in/{name}": os.fsdecode(b"caf\xe9")}


def test_each_clip_counts_once(tree: Path) -> None:
    touch("in/a.mp4", "in/b.mp4")
    assert found("in/b.mp4", "in", "./in/../in/b.mp4", str(tree / "in" / "a.mp4")) == [
        "in/b.mp4",
        "in/a.mp4",
    ]


@pytest.mark.skipif(os.name != "posix", reason="links need rights elsewhere")
def test_links_and_circles_of_them(tree: Path) -> None:
    touch("elsewhere/a.mp4", "in/b.mp4")
    Path("in/link").symlink_to(tree / "elsewhere", target_is_directory=True)
    Path("in/back").symlink_to(tree / "in", target_is_directory=True)
    Path("in/gone.mp4").symlink_to(tree / "gone.mp4")
    clips = found("in", recursive=True)
    assert clips == ["in/b.mp4", "in/gone.mp4", "in/link/a.mp4"]
    assert names(["in"], clips)["in/link/a.mp4"] == "link/a"


def test_a_folder_that_may_not_be_read_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    touch("in/a.mp4", "in/shut/b.mp4")
    scandir, shut = os.scandir, str(Path("in/shut"))

    def guarded(folder: str) -> Any:
        if folder == shut:  # permissions would not stop root
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", guarded)
    warnings: list[str] = []
    clips = find_clips([Path("in")], recursive=True, warn=warnings.append)
    assert clips == [Path("in/a.mp4")]
    assert warnings == [f"The folder {shut} is left out: Permission denied."]


def test_names_mirror_the_tree() -> None:
    touch("in/a/x.mp4", "in/b/x.mov", "in/x.avi")
    assert names(["in"], found("in", recursive=True)) == {
        "in/x.avi": "x",
        "in/a/x.mp4": "a/x",
        "in/b/x.mov": "b/x",
    }
    assert names(["in/a/x.mp4", "in/b/x.mov"], ["in/a/x.mp4", "in/b/x.mov"]) == {
        "in/a/x.mp4": "a/x",
        "in/b/x.mov": "b/x",
    }
    assert names(["in/a/x.mp4"], ["in/a/x.mp4"]) == {"in/a/x.mp4": "x"}
    assert names(["in/**/*.m*"], ["in/a/x.mp4"]) == {"in/a/x.mp4": "a/x"}


def test_names_do_not_depend_on_which_clips_are_there() -> None:
    touch("in/a/x.mp4")
    assert names(["in"], ["in/a/x.mp4"]) == {"in/a/x.mp4": "a/x"}


@pytest.mark.parametrize(
    ("clips", "expected"),
    [
        (["x.mp4", "x.mov", "y.mp4"], ["x.mp4", "x.mov", "y"]),
        (["x.mp4", "X.mov"], ["x.mp4", "X.mov"]),  # one name where case does not count
        (["a.mp4", "a/b.mp4"], ["a.mp4", "a/b"]),  # no result lies in another
        (["x.mp4.mov", "x.mp4", "x.mov"], ["x.mp4.mov", "x.mp4", "x.mov"]),
        (["report.json.mp4", "report.html.mp4"], ["report.json.mp4", "report.html.mp4"]),
        (["..mp4"], ["..mp4"]),
        (["clip"], ["clip"]),
    ],
)
def test_names_never_collide(clips: list[str], expected: list[str]) -> None:
    assert list(names(["."], clips).values()) == expected


def test_names_stay_when_others_land(tree: Path) -> None:
    first = name_clips([Path("x.mp4")], tree)
    assert first == {Path("x.mp4"): "x"}
    assert name_clips([Path("x.mov"), Path("x.mp4")], tree, named=first) == {
        Path("x.mp4"): "x",
        Path("x.mov"): "x.mov",
    }


def test_no_name_leads_out(tree: Path) -> None:
    touch("in/x.mp4", "above.mp4")
    inputs = ["in/../above.mp4", "in/x.mp4"]
    assert names(inputs, found(*inputs)) == {"in/../above.mp4": "above", "in/x.mp4": "in/x"}
    (tree / "in" / "sub").mkdir()
    os.chdir("in")
    with pytest.raises(InputError, match="without a way around"):
        names(["*/../../*.mp4"], found("*/../../*.mp4"))
