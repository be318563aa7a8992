from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from clips import make_clip, make_sound, truncate

import mpsnet_cli.body
import mpsnet_cli.job
import mpsnet_cli.video
import mpsnet_cli.weights
from mpsnet_cli.cli import main
from mpsnet_cli.job import Arguments
from mpsnet_cli.motion import Motion


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["run", *map(str, arguments)])


class Wired:
    """Stands in for what the command calls, and keeps what it was called with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **manifest: Any) -> None:
        self.calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self.model = SimpleNamespace(device="some device")
        self.body = SimpleNamespace(name="free-1", source=Path("free-1.npz"))
        self.manifest = {
            "video": {"width": 64, "height": 48, "frame_count": 10},
            "people": [{"id": 1, "frames": 10, "first_frame": 0, "last_frame": 9, "file": "p.npz"}],
            "weights": {"name": "w"},
            "body": {"name": "free-1"},
            "seconds": {"detect": 1.25},
            "frames": 10,
            "frames_per_second": 8.0,
            "overlay": "overlay.mp4",
            "meshes": None,
            "complete": True,
            **manifest,
        }
        results = {
            (mpsnet_cli.video, "probe"): "the clip",
            (mpsnet_cli.weights, "load_model"): self.model,
            (mpsnet_cli.body, "load_body"): self.body,
            (mpsnet_cli.job, "run_clip"): (Path("out/clip"), self.manifest),
        }
        for (module, name), result in results.items():
            monkeypatch.setattr(module, name, self._recorder(name, result))

    def _recorder(self, name: str, result: Any) -> Any:
        def record(*arguments: Any, **keywords: Any) -> Any:
            keywords.pop("report", None)
            self.calls[name] = (arguments, keywords)
            return result

        return record


def test_defaults_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    wired = Wired(monkeypatch)
    result = call("clip.mp4")
    assert result.exit_code == 0, result.output
    assert wired.calls == {
        "probe": ((Path("clip.mp4"),), {}),
        "load_model": ((None,), {"device": "auto", "precision": "auto", "batch_size": None}),
        "load_body": ((None,), {"path": None, "gender": "neutral", "device": "some device"}),
        "run_clip": (
            ("the clip", Path("out/clip"), Arguments()),
            {"model": wired.model, "body": wired.body, "existing": "same"},
        ),
    }
    assert "8.0 frames/s" in result.stdout
    assert "body: free-1" in result.stderr


def test_options_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    wired = Wired(monkeypatch)
    result = call(
        *("c.mp4", "-o", "there", "--overwrite", "--weights", "w", "--body", "smpl"),
        *("--gender", "male", "--smpl-path", "S", "--device", "cuda:1", "--precision", "bf16"),
        *("--batch-size", 7, "--start", 1, "--end", 2.5, "--boxes", "b.csv", "--detector", "d"),
        *("--tracker", "botsort", "--min-frames", 3, "--max-people", 4, "--person", 2),
        *("--person", 5, "--focal-length", 900, "--smooth", 0.5, "--shape", "frame"),
        *("--edges", "repeat", "--no-overlay", "--view", "all", "--renderer", "cpu"),
        *("--no-meshes", "--mesh-every", 9),
    )
    assert result.exit_code == 0, result.output
    model = {"device": "cuda:1", "precision": "bf16", "batch_size": 7}
    body = {"path": Path("S"), "gender": "male", "device": "some device"}
    arguments = Arguments(
        start=1.0,
        end=2.5,
        boxes="b.csv",
        detector="d",
        tracker="botsort",
        min_frames=3,
        max_people=4,
        people=(2, 5),
        focal_length=900.0,
        smooth=0.5,
        shape="frame",
        edges="repeat",
        overlay=False,
        view="all",
        renderer="cpu",
        meshes=False,
        mesh_every=9,
    )
    assert wired.calls["load_model"] == (("w",), model)
    assert wired.calls["load_body"] == (("smpl",), body)
    assert wired.calls["run_clip"][0] == ("the clip", Path("there/c"), arguments)
    assert wired.calls["run_clip"][1]["existing"] == "replace"


def test_quiet_prints_the_folder_and_json_the_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    wired = Wired(monkeypatch)
    assert call("c.mp4", "-q").stdout == f"{Path('out/clip')}\n"
    event = json.loads(call("c.mp4", "--json").stdout.splitlines()[-1])
    assert event == {"event": "done", "folder": str(Path("out/clip")), "manifest": wired.manifest}


@pytest.mark.parametrize(
    ("manifest", "code", "sentence"),
    [({"people": []}, 3, "Nobody was found"), ({"complete": False}, 4, "Only a part")],
)
def test_exit_codes(
    monkeypatch: pytest.MonkeyPatch, manifest: dict[str, Any], code: int, sentence: str
) -> None:
    Wired(monkeypatch, **manifest)
    result = call("c.mp4", "-q")
    assert result.exit_code == code
    assert sentence in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("a.mp4", "b.mp4", "--boxes", "people.csv"),
        ("c.mp4", "--smooth", 2),
        ("c.mp4", "--mesh-every", 0),
        ("c.mp4", "--focal-length", "nan"),
        ("c.mp4", "--start", "inf"),
    ],
)
def test_wrong_usage(arguments: tuple[object, ...]) -> None:
    assert call(*arguments).exit_code == 2


@pytest.fixture
def bad(tmp_path: Path) -> dict[str, Path]:
    """Files that are no clip, by what is wrong with them."""
    made = {name: tmp_path / f"{name}.mp4" for name in ("missing", "empty", "text")}
    made["empty"].write_bytes(b"")
    made["text"].write_text("I am not a video.\n" * 100)
    made["headless"] = truncate(make_clip(tmp_path / "headless.mp4", frames=40), 0.5)
    made["sound"] = make_sound(tmp_path / "sound.wav")
    return made


def test_a_folder_is_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Path, ...]] = []
    monkeypatch.setattr("mpsnet_cli.cli.run.run_several", lambda videos, **_: asked.append(videos))
    assert CliRunner().invoke(main, ["run", str(tmp_path)]).exit_code == 0
    assert asked == [(tmp_path,)]


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("missing", "does not exist"),
        ("empty", "0 bytes"),
        ("text", "not a video"),
        ("headless", "cut off"),
        ("sound", "not a video"),
    ],
)
def test_bad_clips_get_one_sentence(
    bad: dict[str, Path], tmp_path: Path, kind: str, sentence: str
) -> None:
    result = call(bad[kind], "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert sentence in result.stderr
    assert bad[kind].name in result.stderr
    assert not (tmp_path / "out").exists()


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_hostile_and_wrong_files_get_one_sentence(untrained: Path, tmp_path: Path) -> None:
    clip, bomb, target = make_clip(tmp_path / "c.mp4"), tmp_path / "bomb.pkl", tmp_path / "boom"
    bomb.write_bytes(pickle.dumps({"v_template": Bomb(target)}))
    (tmp_path / "boxes.csv").write_text("1,1,nonsense\n")
    out = ("--out", tmp_path / "out", "--boxes", "full")
    weights = ("--weights", untrained)
    for arguments, sentence in {
        ("--weights", tmp_path / "nowhere.safetensors"): "nowhere.safetensors",
        ("--weights", bomb): "bomb.pkl",
        (*weights, "--body", "smpl", "--smpl-path", bomb): "mkdir",
        (*weights, "--boxes", tmp_path / "boxes.csv"): "boxes.csv",
        (*weights, "--boxes", tmp_path / "no.csv"): "no.csv",
        (*weights, "--start", "99"): "past the end",
        (*weights, "--device", "cuda:77"): "cuda:77",
        (*weights, "--out", clip): "cannot be written",
    }.items():
        result = call(clip, *out, *arguments)
        assert result.exit_code == 1, (arguments, result.output)
        assert isinstance(result.exception, SystemExit), result.exception
        assert result.stderr.splitlines()[-1].startswith("Error: ")
        assert sentence in result.stderr
        assert not target.exists()
        assert not (tmp_path / "out" / "c").exists()


def test_the_whole_command(untrained: Path, tmp_path: Path) -> None:
    """One short clip through the real network, as a user would start it."""
    clip = make_clip(tmp_path / "clip.mp4", frames=3, size=(64, 96), audio="aac")
    command = [sys.executable, "-m", "mpsnet_cli", "run", "--out", "out", "--boxes", "full"]
    command += ["--weights", str(untrained), "--json", "--view", "all", "--", str(clip)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    manifest = events[-1]["manifest"]
    assert [e["stage"] for e in events if e["event"] == "finish"] == [
        "reconstruct",
        "joints",
        "overlay",
        "meshes",
    ]
    assert any("untrained" in warning for warning in manifest["warnings"])
    assert manifest["weights"]["trained"] is False
    motion = Motion.load(tmp_path / "out" / "clip" / "person_01.npz")
    assert not motion.trained
    assert motion.frame_ids.tolist() == [0, 1, 2]
    for name, value in vars(motion).items():
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            assert np.isfinite(value).all(), name
