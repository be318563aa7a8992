from __future__ import annotations

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import av
import numpy as np
import pytest
import trimesh
from clips import make_clip, truncate
from fake_model import FakeModel
from filelock import FileLock

from mpsnet_cli import job
from mpsnet_cli.body import load_body
from mpsnet_cli.errors import InputError, OutputError
from mpsnet_cli.job import Arguments, Existing, folder_name, read_manifest, run_clip, state_of
from mpsnet_cli.motion import Motion
from mpsnet_cli.packaged import file_sha256
from mpsnet_cli.progress import Reporter
from mpsnet_cli.tracking import full_frame_track
from mpsnet_cli.video import probe

FULL = Arguments(boxes="full", renderer="cpu")
BODY = load_body("free-1")


def run(
    path: Path,
    out: Path,
    arguments: Arguments = FULL,
    *,
    existing: Existing = "same",
    report: Reporter | None = None,
) -> tuple[Path, dict[str, Any], Reporter]:
    report = report or Reporter()
    folder, manifest = run_clip(
        probe(path),
        out / folder_name(path),
        arguments,
        model=FakeModel(),  # type: ignore[arg-type]
        body=BODY,
        existing=existing,
        report=report,
    )
    return folder, manifest, report


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make_clip(tmp_path / "clip.mp4", frames=12, size=(96, 128), audio="aac")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def test_a_result_is_complete(clip: Path, out: Path) -> None:
    folder, manifest, _ = run(clip, out)
    assert folder == out / "clip"
    meshes = {f"meshes/person_01/{index:06d}.obj" for index in range(12)}
    assert files(out) == {
        f"clip/{name}" for name in ("clip.json", "person_01.npz", "overlay.mp4", *meshes)
    }
    assert manifest == json.loads((folder / "clip.json").read_text())
    assert manifest["complete"]
    assert manifest["frames"] == 12
    assert manifest["people"] == [
        {
            "id": 1,
            "file": "person_01.npz",
            "meshes": "meshes/person_01",
            "frames": 12,
            "first_frame": 0,
            "last_frame": 11,
            "interpolated": 0,
            "mean_score": 1.0,
        }
    ]
    motion = Motion.load(folder / "person_01.npz")
    mesh = trimesh.load(folder / "meshes" / "person_01" / "000005.obj", process=False)
    vertices = BODY(motion.pose[5:6], motion.posed_betas[5:6])[0][0] + motion.transl[5]
    assert np.abs(mesh.vertices * [1, -1, -1] - vertices).max() < 1e-4
    with av.open(str(folder / "overlay.mp4")) as container:
        assert len(list(container.decode(video=0))) == 12
        assert container.streams.audio


def test_the_detector_is_found_once_and_named(
    clip: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file := tmp_path / "person-starter.pt").write_bytes(b"weights")
    used = []

    def find(name: str | None, *, report: Reporter) -> Path:
        used.append(name)
        report.warn("The starter stands in.")
        return file

    monkeypatch.setattr(job, "find_detector", find)
    monkeypatch.setattr(job, "Detector", lambda path, **_: used.append(path))
    monkeypatch.setattr(job, "find_people", lambda *_, **__: [full_frame_track(probe(clip))])
    _, manifest, _ = run(clip, out, Arguments(overlay=False, meshes=False, renderer="cpu"))
    assert used == [None, file]
    assert manifest["detector"] == {"name": file.name, "sha256": file_sha256(file)}
    assert manifest["warnings"] == ["The starter stands in."]
    assert manifest["arguments"]["detector"] is None


def test_parts_can_be_left_out(clip: Path, out: Path) -> None:
    folder, manifest, _ = run(clip, out, replace(FULL, overlay=False, mesh_every=5, end=0.3))
    names = {f"meshes/person_01/{index:06d}.obj" for index in (0, 5)}
    assert files(folder) == {"clip.json", "person_01.npz", *names}
    assert manifest["overlay"] is None
    assert manifest["frames"] == 8
    folder, _, _ = run(clip, out, replace(FULL, meshes=False), existing="replace")
    assert files(folder) == {"clip.json", "person_01.npz", "overlay.mp4"}


def test_a_finished_result_is_left_alone(
    clip: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, first, _ = run(clip, out)
    monkeypatch.setattr(job, "reconstruct", None)  # calling it would fail
    clip.touch()
    (out / ".clip.part").mkdir()
    (out / ".clip.part" / "motions").touch()  # as a kill at the very end would leave it
    assert state_of(out / "clip", first) == "partial"
    _, again, report = run(clip, out)
    assert again == first
    assert state_of(out / "clip", first) == "done"
    assert not (out / ".clip.part").exists()
    assert "finished already" in report.warnings[0]


def test_a_different_job_needs_overwrite(clip: Path, out: Path) -> None:
    run(clip, out)
    before = files(out)
    with pytest.raises(OutputError, match=r"another arguments.*--overwrite"):
        run(clip, out, replace(FULL, smooth=0.5))
    assert files(out) == before
    _, manifest, _ = run(clip, out, replace(FULL, smooth=0.5, meshes=False), existing="replace")
    assert manifest["arguments"]["smooth"] == 0.5
    assert files(out) == {"clip/clip.json", "clip/person_01.npz", "clip/overlay.mp4"}
    make_clip(clip, frames=3)
    with pytest.raises(OutputError, match="another input"):
        run(clip, out, replace(FULL, smooth=0.5, meshes=False))
    assert run(clip, out, existing="any")[1] == manifest


@pytest.mark.parametrize("existing", get_args(Existing))
def test_a_folder_of_someone_else_is_never_touched(
    clip: Path, out: Path, existing: Existing
) -> None:
    (out / "clip").mkdir(parents=True)
    (out / "clip" / "thesis.txt").write_text("years of work")
    with pytest.raises(OutputError, match="no sound result of this version"):
        run(clip, out, existing=existing)
    assert files(out) == {"clip/thesis.txt"}


@pytest.mark.parametrize(
    "damage",
    [
        {"people": "many"},
        {"people": [{"id": 1}]},
        {"video": {"fps": "fast"}},
        {"seconds": None},
        {"warnings": [3]},
        {"frames_per_second": []},
        {"format": "mpsnet-clip/0"},
    ],
)
def test_a_damaged_manifest_is_not_believed(
    clip: Path, out: Path, damage: dict[str, object]
) -> None:
    folder, manifest, _ = run(clip, out, replace(FULL, overlay=False, meshes=False))
    assert read_manifest(folder) == manifest
    (folder / "clip.json").write_text(json.dumps({**manifest, **damage}))
    assert read_manifest(folder) == {}
    assert state_of(folder, manifest) == "other"
    with pytest.raises(OutputError, match="no sound result"):
        run(clip, out, existing="any")


def stop(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_an_interrupted_run_is_continued(
    clip: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = Reporter()
    with monkeypatch.context() as patch:
        patch.setattr(job, "write_overlay", stop)
        with pytest.raises(KeyboardInterrupt):
            run(clip, out, report=report)
    assert "the same command goes on from there" in report.warnings[-1]
    assert not (out / "clip").exists()
    kept = {"state.json", "tracks", "motions", "result/person_01.npz"}
    assert files(out) == {f".clip.part/{name}" for name in kept}
    (out / ".clip.part" / "result" / ".overlay.mp4-abc").mkdir()  # as a kill would leave it
    with monkeypatch.context() as patch:
        patch.setattr(job, "reconstruct", None)  # calling it would fail
        folder, manifest, report = run(clip, out)
    assert not list(folder.glob(".*"))
    assert manifest["complete"]
    assert "is continued" in report.warnings[0]
    assert not (out / ".clip.part").exists()
    again, _, _ = run(clip, out.with_name("fresh"))
    assert np.load(again / "person_01.npz")["pose"].tobytes() == (
        np.load(folder / "person_01.npz")["pose"].tobytes()
    )


def test_other_drawings_continue_from_the_same_motions(
    clip: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(job, "write_obj_sequence", stop)
        with pytest.raises(KeyboardInterrupt):
            run(clip, out)
    assert (out / ".clip.part" / "result" / "overlay.mp4").exists()
    monkeypatch.setattr(job, "reconstruct", None)
    folder, _, _ = run(clip, out, replace(FULL, overlay=False, mesh_every=6))
    meshes = {f"meshes/person_01/{index:06d}.obj" for index in (0, 6)}
    assert files(folder) == {"clip.json", "person_01.npz", *meshes}


def test_an_interrupted_run_of_another_job_is_not_continued(
    clip: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(job, "write_overlay", stop)
        with pytest.raises(KeyboardInterrupt):
            run(clip, out)
    _, _, report = run(clip, out, replace(FULL, end=0.3))
    assert ["nothing of it is used" in sentence for sentence in report.warnings] == [True]
    assert Motion.load(out / "clip" / "person_01.npz").frame_ids.tolist() == list(range(8))


def test_an_early_failure_leaves_nothing(
    clip: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "_tracks", stop)
    with pytest.raises(KeyboardInterrupt):
        run(clip, out)
    assert list(out.iterdir()) == []


def test_a_full_disk_is_an_output_error(
    clip: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OutputError, match=r"cannot be written to .*clip: No space left"):
        run(clip, out)
    assert list(out.iterdir()) == []


def test_an_output_folder_that_is_a_file(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        run(clip, tmp_path / "file")


def test_two_runs_at_once(clip: Path, out: Path) -> None:
    out.mkdir()
    with FileLock(out / ".clip.lock"), pytest.raises(OutputError, match="another run"):
        run(clip, out)
    run(clip, out)


def test_nobody_gives_a_valid_manifest(
    clip: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "_tracks", lambda *_: [])
    folder, manifest, _ = run(clip, out)
    assert manifest["people"] == []
    assert manifest["overlay"] is manifest["meshes"] is None
    assert files(folder) == {"clip.json"}


def test_a_truncated_clip_is_partial(tmp_path: Path, out: Path) -> None:
    path = make_clip(
        tmp_path / "cut.mp4",
        frames=50,
        size=(320, 240),
        container_options={"movflags": "faststart"},
    )
    truncate(path, 0.8)
    folder, manifest, report = run(path, out)
    assert not manifest["complete"]
    assert report.losses
    count = manifest["people"][0]["frames"]
    assert 0 < count < 50
    assert len(Motion.load(folder / "person_01.npz")) == count


@pytest.mark.parametrize("frames", [1, 3, 15])
def test_short_clips(tmp_path: Path, out: Path, frames: int) -> None:
    path = make_clip(tmp_path / "short.mp4", frames=frames)
    assert run(path, out)[1]["people"][0]["frames"] == frames


@pytest.mark.parametrize(
    "name", ["with space.mp4", "ünïcode 人.mp4", "quo'te\".mp4", "-dash.mp4", "100%d.mp4", "..mp4"]
)
def test_odd_names(tmp_path: Path, out: Path, name: str) -> None:
    path = make_clip(tmp_path / name, frames=2)
    folder, manifest, _ = run(path, out)
    assert folder.parent == out
    assert folder.name in name
    assert manifest["overlay"]
    assert (folder / "overlay.mp4").is_file()


def test_very_long_names_are_cut(tmp_path: Path) -> None:
    clips = [Path("n" * 251 + ".mp4"), Path("n" * 251 + ".mov"), Path("漢" * 83 + ".mp4")]
    names = [folder_name(clip) for clip in clips]
    assert len(set(names)) == 3
    for clip, name in zip(clips, names, strict=True):
        assert clip.stem.startswith(name[:60])
        (tmp_path / f".{name}.part").mkdir()


def test_a_missing_boxes_file(clip: Path, out: Path) -> None:
    with pytest.raises(InputError, match="no boxes file"):
        run(clip, out, replace(FULL, boxes="nowhere.csv"))


def test_a_turned_odd_sized_clip_of_variable_rate_keeps_its_times(
    tmp_path: Path, out: Path
) -> None:
    times = [0.0, 0.04, 0.12, 0.2, 0.21, 0.5, 0.9, 0.95]
    path = make_clip(
        tmp_path / "phone.mp4",
        frames=len(times),
        size=(90, 65),
        pix_fmt="yuv444p",
        times=times,
        rotation=90,
        audio="aac",
    )
    source = probe(path)
    assert source.is_vfr
    assert (source.width, source.height) == (65, 90)
    folder, _, _ = run(path, out)
    motion = Motion.load(folder / "person_01.npz")
    assert np.abs(motion.times - times).max() < 1e-4
    assert motion.image_size.tolist() == [65, 90]
    overlay = probe(folder / "overlay.mp4")
    assert (overlay.width, overlay.height) == (66, 90)  # H.264 needs even sides
    assert np.abs(overlay.times - times).max() < 1e-4
    assert overlay.has_audio
