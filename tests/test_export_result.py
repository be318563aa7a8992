from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stages import make_motions, make_result

from mpsnet_cli.errors import InputError, NoPeopleFound
from mpsnet_cli.export.result import frames_text, holes, read_result, select
from mpsnet_cli.motion import Motion
from mpsnet_cli.progress import Reporter


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make_result(
        tmp_path / "out" / "clip",
        make_motions(people=3)[::-1],
        arguments={"start": 1.5},
        video={"first_time": 0.08},
    )


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "clip.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_a_folder_is_read(clip: Path) -> None:
    result = read_result(clip)
    assert [motion.track_id for motion in result.motions] == [1, 2, 3]
    assert (result.name, result.folder) == ("clip", clip)
    assert (result.origin, result.start) == (0.08, 1.5)
    assert result.video is None
    np.testing.assert_array_equal(result.motions[1].pose, make_motions()[1].pose)


def test_the_folder_may_be_the_present_one(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clip)
    assert read_result(Path()).name == "clip"
    assert read_result(Path("person_02.npz")).name == "clip_person_02"


def test_one_person_of_a_folder_brings_the_clip_along(clip: Path) -> None:
    result = read_result(clip / "person_02.npz")
    assert [motion.track_id for motion in result.motions] == [2]
    assert (result.name, result.folder, result.start) == ("clip_person_02", clip, 1.5)


@pytest.mark.parametrize("broken", [False, True])
def test_a_single_file_is_enough(tmp_path: Path, broken: bool) -> None:
    if broken:
        (tmp_path / "clip.json").write_text('{"format": "of someone else"}')
    motion = make_motions()[1]
    moved = replace(motion, times=motion.times + 2)
    moved.save(tmp_path / "dance.npz")
    result = read_result(tmp_path / "dance.npz")
    assert (result.name, result.folder, result.video) == ("dance", tmp_path, None)
    assert result.origin == pytest.approx(2)  # the frames before the person's count


def test_an_older_result_knows_no_first_time(clip: Path) -> None:
    edit(clip, lambda manifest: manifest["video"].pop("first_time"))
    assert read_result(clip).origin == pytest.approx(0)


def test_the_clip_is_found_where_it_was_or_beside(clip: Path, tmp_path: Path) -> None:
    beside = clip.parent / "walk.mp4"
    beside.write_bytes(b"video")
    assert read_result(clip).video == str(beside.resolve())
    beside.write_bytes(b"another one")
    assert read_result(clip).video is None
    (there := tmp_path / "there.mp4").write_bytes(b"video")
    edit(clip, lambda manifest: manifest["input"].update(path=str(there)))
    assert read_result(clip).video == str(there.resolve())
    edit(clip, lambda manifest: manifest["input"].update(path="a\0b"))
    assert read_result(clip).video is None


def test_nobody(tmp_path: Path) -> None:
    with pytest.raises(NoPeopleFound, match=r"Nobody was found in .*clip"):
        read_result(make_result(tmp_path / "clip", []))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda m: m.update(format="mpsnet-clip/7"), r"mpsnet-clip/7.*reads mpsnet-clip/1: run"),
        (lambda m: m.pop("format"), "is no manifest of a result"),
        (lambda m: m["people"][0].update(file="../person_01.npz"), "not the name of an .npz"),
        (lambda m: m["people"][0].update(file="/etc/passwd"), "not the name of an .npz"),
        (lambda m: m["people"][0].update(file="..\\x.npz"), "not the name of an .npz"),
        (lambda m: m["people"][0].update(file=7), "people.file is 7"),
        (lambda m: m["people"].append("me"), "TypeError"),
        (lambda m: m.update(people=3), "TypeError"),
        (lambda m: m.update(video=[]), "AttributeError"),
        (lambda m: m["video"].update(first_time=float("nan")), "first_time is nan"),
        (lambda m: m["arguments"].update(start="now"), "arguments.start is 'now'"),
        (lambda m: m.pop("input"), "KeyError"),
        (lambda m: m["people"].append(m["people"][0]), "have the id 3"),
        (lambda m: m["people"][0].update(file="person_09.npz"), "person_09.npz"),
    ],
)
def test_a_manifest_that_is_not_ours(
    clip: Path, change: Callable[[dict[str, Any]], object], sentence: str
) -> None:
    edit(clip, change)
    with pytest.raises(InputError, match=sentence):
        read_result(clip)


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, "\udcff"])
def test_a_manifest_that_is_no_json_object(clip: Path, text: str) -> None:
    (clip / "clip.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match="is no manifest of a result"):
        read_result(clip)


def test_no_result_at_all(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no finished result, it has no clip\.json"):
        read_result(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        read_result(tmp_path / "nowhere")
    (file := tmp_path / "clip.mp4").write_bytes(b"video")
    with pytest.raises(InputError, match=r"not an \.npz"):
        read_result(file)


def test_a_link_out_of_the_folder(clip: Path, tmp_path: Path) -> None:
    outside = (clip / "person_01.npz").rename(tmp_path / "outside.npz")
    (clip / "person_01.npz").symlink_to(outside)
    with pytest.raises(InputError, match="outside of its folder"):
        read_result(clip)


def nan_at(name: str, *rows: int) -> Callable[[Motion], Motion]:
    def spoil(motion: Motion) -> Motion:
        values = np.array(getattr(motion, name))
        values[list(rows)] = np.nan
        return replace(motion, **{name: values})

    return spoil


def changed(**changes: Any) -> Callable[[Motion], Motion]:
    return lambda motion: replace(motion, **changes)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (nan_at("transl", 3, 4, 5, 9), "transl is not a number in frame 3–5, 9"),
        (nan_at("pose", 0), "pose is not a number in frame 0"),
        (nan_at("betas", 0), r"betas is \[nan, "),
        (changed(times=np.zeros(20)), "its frames are not in ascending"),
        (changed(times=np.linspace(0, 1e9, 20)), "it lasts 1e.09 s"),
        (changed(pose=np.full((20, 72), "x")), "pose is of <U1"),
        (changed(frame_ids=np.linspace(0, 1, 20)), "frame_ids is of float64"),
        (changed(fps=0.0), "fps is 0"),
        (changed(fps="25"), "fps is '25'"),
        (changed(focal_length=float("inf")), "focal_length is inf"),
        (changed(image_size=np.array([0.0, 5])), "image_size is"),
        (changed(principal_point=np.array([np.nan, 5])), "principal_point is"),
        (changed(track_id=-1), "track_id is -1"),
        (changed(gender="../x"), "gender is '../x'"),
        (changed(trained=1), "trained is 1"),
        (changed(weights=5), "weights is 5"),
    ],
)
def test_a_motion_that_cannot_be(
    tmp_path: Path, spoil: Callable[[Motion], Motion], sentence: str
) -> None:
    spoil(make_motions(people=1)[0]).save(tmp_path / "p.npz")
    with pytest.raises(InputError, match=f"p.npz cannot be exported: {sentence}"):
        read_result(tmp_path / "p.npz")


def test_a_motion_without_frames(tmp_path: Path) -> None:
    result = make_motions(people=1, frames=1)
    result[0].save(tmp_path / "p.npz")
    arrays = dict(np.load(tmp_path / "p.npz"))
    for name, array in arrays.items():
        if array.shape[:1] == (1,):
            arrays[name] = array[:0]
    np.savez(tmp_path / "p.npz", **arrays)
    with pytest.raises(InputError, match="it has no frames"):
        read_result(tmp_path / "p.npz")


@pytest.mark.parametrize("change", [{"focal_length": 900.0}, {"body": "smpl-male"}, {"fps": 24.0}])
def test_people_of_different_runs(tmp_path: Path, change: dict[str, Any]) -> None:
    first, second = make_motions()
    folder = make_result(tmp_path / "clip", [first, replace(second, **change)])
    with pytest.raises(InputError, match=f"differ in {next(iter(change))}"):
        read_result(folder)


def test_people_and_seconds_are_chosen(clip: Path) -> None:
    result = replace(read_result(clip), origin=0.0, start=0.0)
    some = select(result, people=[3, 1], start=0.2, end=0.4, report=Reporter())
    assert [motion.track_id for motion in some.motions] == [1, 3]
    assert some.start == 0.2
    for motion in some.motions:
        assert motion.frame_ids.tolist() == [5, 6, 7, 8, 9]
    assert select(result, report=Reporter()).motions == result.motions


def test_who_is_not_there_then_is_told_of(clip: Path) -> None:
    report = Reporter()
    result = select(replace(read_result(clip), origin=0.0), end=0.2, report=report)
    assert [motion.track_id for motion in result.motions] == [1, 3]
    assert report.warnings == ["Person 2 is not there at that time and is left out."]


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [
        ({"people": [1, 7, 9]}, r"no person 7, 9 in clip: its people are 1, 2, 3\."),
        ({"start": 5.0}, "None of the people is there from 5 s on: give another"),
        ({"start": 5.0, "end": 6.0}, "from 5 s on up to 6 s"),
        ({"start": 1.0, "end": 1.0}, "Nothing lies from 1 s to 1 s"),
    ],
)
def test_a_choice_that_leaves_nobody(clip: Path, choice: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        select(read_result(clip), **choice, report=Reporter())


def test_holes_and_their_text() -> None:
    assert holes(np.array([2, 3, 5, 6, 10])) == [(4, 4), (7, 9)]
    assert frames_text([(4, 4), (7, 9)]) == "4, 7–9"
    assert frames_text([(n, n) for n in range(8)]) == "0, 1, 2, 3, 4 and 3 more places"
