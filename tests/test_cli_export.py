from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
from click.testing import CliRunner, Result
from clips import make_clip
from fake_model import FakeModel
from stages import free_body, make_motions, make_result

import mpsnet_cli.body
import mpsnet_cli.export.result
import mpsnet_cli.export.write
from mpsnet_cli.cli import main
from mpsnet_cli.errors import OutputError
from mpsnet_cli.export import EXPORTERS, Format
from mpsnet_cli.export.result import read_result
from mpsnet_cli.export.stage import Performer, Stage
from mpsnet_cli.export.write import Exports, export_result
from mpsnet_cli.job import Arguments, run_clip
from mpsnet_cli.progress import Reporter
from mpsnet_cli.video import probe


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


class Spy:
    """Stands in for the writers: keeps what they were called with and writes a line."""

    def __init__(self) -> None:
        self.stages: dict[str, Stage] = {}
        self.people: dict[str, list[Performer]] = {}
        self.fails: dict[str, Exception] = {}

    def write(self, name: str, path: Path, stage: Stage, people: list[Performer]) -> None:
        self.stages[name] = stage
        self.people.setdefault(name, []).extend(people)
        assert path.name.endswith(EXPORTERS[name].suffix)
        if "." in EXPORTERS[name].suffix:
            path.write_text(name)
        else:
            path.mkdir()
            (path / "000000.mesh").write_text(name)
        if name in self.fails and people[-1].id == 2:
            raise self.fails[name]


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spy]:
    spy = Spy()

    def module(where: str) -> SimpleNamespace:
        def door(name: str, kind: Format) -> Callable[..., None]:
            def write_one(path: Path, stage: Stage, person: Performer, *, advance: Any) -> None:
                spy.write(name, path, stage, [person])
                advance(len(person))

            def write_all(path: Path, stage: Stage, *, advance: Any) -> None:
                spy.write(name, path, stage, list(stage.people))
                advance(sum(map(len, stage.people)))

            return write_one if kind.each_person else write_all

        return SimpleNamespace(
            **{
                kind.where.split(":")[1]: door(name, kind)
                for name, kind in EXPORTERS.items()
                if kind.where.startswith(f"{where}:")
            }
        )

    monkeypatch.setattr(mpsnet_cli.export.write, "import_module", module)
    return spy


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make_result(tmp_path / "out" / "clip", make_motions())


ALL = ",".join(EXPORTERS)


def test_every_format_has_its_place(spy: Spy, clip: Path) -> None:
    result = call(clip, "--format", ALL)
    assert result.exit_code == 0, result.output
    each = ("_amass.npz", ".bvh", ".csv", ".smpl", "_obj", "_ply")
    assert files(clip / "exports") == sorted(
        [
            *(f"clip{suffix}" for suffix in (".blend", ".fbx", ".glb", ".pkl", ".usdc")),
            *(f"clip_person_{who}{suffix}" for who in ("01", "02") for suffix in each),
            *(f"clip_person_{who}_{mesh}/000000.mesh" for who in ("01", "02") for mesh in
              ("obj", "ply")),
        ]
    )  # fmt: skip
    assert [who.id for who in spy.people["bvh"]] == [1, 2]
    assert "untrained" in result.stderr
    assert "untrained" in result.stdout


def test_real_formats_are_written(clip: Path) -> None:
    result = call(clip, "-f", "glb,csv", "--world", "upright", "--root", "ground")
    assert result.exit_code == 0, result.output
    assert (clip / "exports" / "clip.glb").read_bytes()[:4] == b"glTF"
    assert "m above the floor" in result.stdout


def test_options_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[str, Any] = {}

    def note(name: str, answer: Any) -> Any:
        def record(*arguments: Any, **keywords: Any) -> Any:
            assert isinstance(keywords.pop("report", Reporter()), Reporter)
            calls[name] = arguments, keywords
            return answer

        return record

    read = SimpleNamespace(name="s", motions=[SimpleNamespace(body="smpl-male", trained=True)])
    stage = SimpleNamespace(name="s", weights="w", trained=True, people=[],
                            body=SimpleNamespace(name="b"))  # fmt: skip
    monkeypatch.setattr(mpsnet_cli.export.result, "read_result", note("read", "result"))
    monkeypatch.setattr(mpsnet_cli.export.result, "select", note("select", read))
    monkeypatch.setattr(mpsnet_cli.body, "load_body", note("body", "body"))
    monkeypatch.setattr(
        mpsnet_cli.export.write, "export_result", note("export", Exports(stage, None, {}, {}))
    )
    result = call("S", "-f", "glb, BVH,glb", "-o", "there", "--people", "1,3", "--fps", 24,
                  "--start", 1, "--end", 2, "--world", "upright", "--root", "lock",
                  "--smpl-path", "P", "--overwrite")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert calls["read"] == ((Path("S"),), {})
    assert calls["select"] == (("result",), {"people": (1, 3), "start": 1.0, "end": 2.0})
    assert calls["body"] == (("smpl-male",), {"path": Path("P")})
    assert calls["export"][0][1:] == ("body", ("glb", "bvh"))
    assert calls["export"][1] == {
        "out": Path("there"),
        "fps": 24.0,
        "world": "upright",
        "root": "lock",
        "existing": "replace",
    }
    assert call("S").exit_code == 0
    assert calls["select"][1] == {"people": (), "start": None, "end": None}
    assert calls["export"][0][2] == ("glb",)
    assert calls["export"][1] == {
        "out": None,
        "fps": None,
        "world": "camera",
        "root": "keep",
        "existing": "refuse",
    }


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "Missing argument"),
        (("S", "-f", "gltf"), "There is no format gltf, did you mean glb? There are glb, usd,"),
        (("S", "-f", "usdz"), "did you mean usd?"),
        (("S", "-f", "qqq"), "There is no format qqq. There are"),
        (("S", "-f", ","), "names nothing"),
        (("S", "--people", "one"), "one are not people's numbers"),
        (("S", "--fps", "0"), "--fps"),
        (("S", "--fps", "nan"), "not a finite number"),
        (("S", "--root", "ground"), "pass --world upright too"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], sentence: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert sentence in " ".join(result.stderr.split())


@pytest.mark.usefixtures("spy")
def test_nothing_is_overwritten_unasked(clip: Path) -> None:
    (exports := clip / "exports").mkdir()
    (exports / "clip_person_02_obj").mkdir()
    (exports / "clip_person_02_obj" / "old.mesh").write_text("old")
    (exports / "clip.glb").write_text("old")
    result = call(clip, "-f", "glb,csv,obj")
    assert result.exit_code == 1
    assert "clip.glb exists: pass --overwrite" in result.stderr
    assert "clip_person_02_obj exists: pass --overwrite" in result.stderr
    assert (exports / "clip.glb").read_text() == "old"
    assert files(exports) == [
        "clip.glb",
        "clip_person_01.csv",
        "clip_person_02.csv",
        "clip_person_02_obj",
        "clip_person_02_obj/old.mesh",
    ]
    assert call(clip, "-f", "glb,csv,obj", "--overwrite").exit_code == 0
    assert (exports / "clip.glb").read_text() == "glb"
    assert files(exports / "clip_person_02_obj") == ["000000.mesh"]


def test_what_fails_leaves_nothing_and_stops_nobody(spy: Spy, clip: Path, tmp_path: Path) -> None:
    spy.fails = {
        "bvh": OSError(errno.ENOSPC, "No space left on device"),
        "obj": OSError(errno.ENOSPC, "No space left on device"),
        "fbx": OutputError("No Blender was found."),
    }
    out = tmp_path / "there"
    result = call(clip, "-f", "bvh,fbx,obj,csv", "-o", out)
    assert result.exit_code == 1
    assert files(out) == ["clip_person_01.csv", "clip_person_02.csv"]
    errors = result.stderr[result.stderr.index("Error: ") :].splitlines()
    assert errors[1] == "fbx: No Blender was found."
    for line in (errors[0], errors[2]):
        assert "cannot be written: No space left on device. Make room there" in line
    assert not (clip / "exports").exists()
    assert call(clip, "-f", "bvh").exit_code == 1
    assert not (clip / "exports").exists()


@pytest.mark.usefixtures("spy")
def test_results_of_one_name_do_not_overwrite_each_other(tmp_path: Path) -> None:
    clips = [make_result(tmp_path / folder / "clip", make_motions()) for folder in "ab"]
    result = call(*clips, "-f", "glb", "--out", tmp_path / "out", "--overwrite")
    assert result.exit_code == 1
    assert f"{clips[1]} is called clip, as one before it is" in result.stderr
    assert files(tmp_path / "out") == ["clip.glb"]
    assert call(*clips, "-f", "glb").exit_code == 0


def test_a_bug_leaves_nothing_either(spy: Spy, clip: Path) -> None:
    spy.fails["bvh"] = ZeroDivisionError()
    assert isinstance(call(clip, "-f", "bvh").exception, ZeroDivisionError)
    assert not (clip / "exports").exists()


@pytest.mark.usefixtures("spy")
def test_leftovers_of_a_killed_export_are_no_hindrance(clip: Path) -> None:
    (clip / "exports" / ".part.clip_person_01_obj").mkdir(parents=True)
    assert call(clip, "-f", "obj").exit_code == 0
    assert ".part.clip_person_01_obj" not in files(clip / "exports")


@pytest.mark.usefixtures("spy")
def test_a_folder_that_cannot_be_made(clip: Path) -> None:
    (clip / "file").write_text("")
    result = call(clip, "-o", clip / "file" / "x")
    assert result.exit_code == 1
    assert "clip.glb cannot be written: Not a directory" in result.stderr


def test_a_package_that_is_missing(spy: Spy, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mpsnet_cli.export.write, "find_spec", lambda _: None)
    result = call(clip, "-f", "usd,bvh,pkl")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-2:] == [
        "Error: usd: The package pxr, which writes usd, is not installed: "
        "pip install 'mpsnet-cli[export]'.",
        "pkl: The package joblib, which writes pkl, is not installed: "
        "pip install 'mpsnet-cli[export]'.",
    ]
    assert len(spy.people["bvh"]) == 2


def test_bad_input_is_one_sentence(
    tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("MPSNET_SMPL", raising=False)
    first, second = make_motions()
    smpl = [replace(motion, body="smpl-neutral") for motion in (first, second)]
    nan = replace(second, transl=np.full_like(second.transl, np.nan))
    other = {"format": "mpsnet-clip/0"}
    cases: dict[Path, tuple[int, str]] = {
        make_result(tmp_path / "nobody", []): (3, "Nobody was found"),
        make_result(tmp_path / "other", [first], **other): (1, "reads mpsnet-clip/1"),
        make_result(tmp_path / "smpl", smpl): (1, "--smpl-path"),
        make_result(tmp_path / "nan", [first, nan]): (1, "person_02.npz cannot be exported"),
        tmp_path / "missing": (1, "does not exist"),
    }
    for source, (code, sentence) in cases.items():
        result = call(source)
        assert result.exit_code == code, result.output
        assert result.stderr.startswith("Error: ")
        assert result.stderr.count("\n") == 1
        assert sentence in result.stderr
        assert not (source / "exports").exists()
    result = call(clip, "--people", 7)
    assert "no person 7" in result.stderr
    together = call(tmp_path / "missing", clip, "-q")
    assert together.exit_code == 1
    assert together.stdout == f"{clip / 'exports' / 'clip.glb'}\n"


def test_another_body_is_never_taken(clip: Path) -> None:
    result = read_result(clip)
    male = [replace(motion, body="smpl-male") for motion in result.motions]
    with pytest.raises(mpsnet_cli.errors.InputError, match="of the body smpl-male, not of free-1"):
        export_result(replace(result, motions=male), free_body(), ["glb"], report=Reporter())
    report = Reporter()
    export_result(replace(result, body_sha256="0"), free_body(), [], report=report)
    assert "is not the file that clip was made with" in report.warnings[0]


@pytest.mark.usefixtures("spy")
def test_files_of_people_are_named_once(clip: Path, tmp_path: Path) -> None:
    assert call(clip / "person_02.npz", "-f", "glb,bvh").exit_code == 0
    assert files(clip / "exports") == ["clip_person_02.bvh", "clip_person_02.glb"]
    make_motions()[1].save(tmp_path / "dance.npz")
    assert call(tmp_path / "dance.npz", "-f", "glb,bvh").exit_code == 0
    assert files(tmp_path / "exports") == ["dance.glb", "dance_person_02.bvh"]


def warnings(result: Result) -> list[str]:
    lines = result.stderr.splitlines()
    return [line for line in lines if line.startswith("warning: ") and "untrained" not in line]


def test_rates_by_format(spy: Spy, clip: Path) -> None:
    result = call(clip, "-f", "glb,bvh,amass,csv")
    assert warnings(result) == [
        "warning: Resampled from 25 to 30 frames/s, by slerp: amass.",
        "warning: bvh, amass of person_02 begins 0.20 s into the clip, where the person does.",
    ]
    assert {name: stage.fps for name, stage in spy.stages.items()} == {
        "glb": 25, "bvh": 25, "amass": 30, "csv": 25,
    }  # fmt: skip
    assert spy.stages["glb"] is spy.stages["bvh"]
    result = call(clip, "-f", "glb,amass", "--fps", 48, "--overwrite")
    assert {name: stage.fps for name, stage in spy.stages.items() if name in ("glb", "amass")} == {
        "glb": 48, "amass": 60,
    }  # fmt: skip
    assert warnings(result) == [
        "warning: Resampled from 25 to 48 frames/s, by slerp: glb.",
        "warning: Resampled from 25 to 60 frames/s, by slerp: amass.",
        "warning: amass is read at 30, 60, 120 frames/s only: not at 48.",
        "warning: amass of person_02 begins 0.20 s into the clip, where the person does.",
    ]
    np.testing.assert_allclose(np.diff(spy.people["amass"][-1].times), 1 / 60)


@pytest.mark.parametrize(
    ("fps", "rate"), [(24, 30), (29.97, 30), (50, 60), (59.94, 60), (240, 120)]
)
def test_amass_takes_the_next_rate(spy: Spy, tmp_path: Path, fps: float, rate: float) -> None:
    clip = make_result(tmp_path / "clip", make_motions(people=1, fps=fps))
    assert call(clip, "-f", "amass").exit_code == 0
    assert spy.stages["amass"].fps == rate


def rows(motion: Any, keep: slice | list[int]) -> Any:
    names = mpsnet_cli.export.result.PER_FRAME
    return replace(motion, **{name: getattr(motion, name)[keep] for name in names})


def test_the_add_on_is_written_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "addon.zip"
    ran = CliRunner().invoke(main, ["export", "--blender-addon", str(path)])
    assert (ran.exit_code, ran.output) == (0, f"{path}\n")
    assert any(name.endswith("blender_manifest.toml") for name in ZipFile(path).namelist())
    ran = CliRunner().invoke(main, ["export", "--blender-addon", str(tmp_path / "no" / "a.zip")])
    assert ran.exit_code == 1
    assert "cannot be written" in ran.output


def test_holes_and_uneven_times_are_told_of(spy: Spy, tmp_path: Path) -> None:
    first, second = make_motions()
    gone = rows(first, [*range(5), 8, *range(10, 20)])
    clip = make_result(tmp_path / "clip", [gone, second])
    bridged = "warning: Person 1 is out of sight in frame 5–7, 9: the motion is bridged there in "
    comes_late = "warning: bvh of person_02 begins 0.20 s into the clip, where the person does."
    assert warnings(call(clip, "-f", "bvh,glb,csv")) == [f"{bridged}bvh.", comes_late]
    assert [len(person) for person in spy.people["bvh"]] == [20, 15]
    assert [len(person) for person in spy.people["glb"]] == [16, 15]
    assert not warnings(call(clip, "-f", "csv", "--overwrite"))
    faster = call(clip, "-f", "glb,csv", "--fps", 50, "--overwrite")
    assert f"{bridged}glb, csv." in warnings(faster)
    late = rows(replace(first, times=first.times + 0.04 * (first.frame_ids > 9)), slice(None))
    clip = make_result(tmp_path / "dropped", [late])
    assert warnings(call(clip, "-f", "bvh,glb")) == [
        "warning: Frames that the clip leaves out, 1 in all, are filled in: bvh."
    ]
    uneven = replace(first, times=first.times + 0.012 * np.sin(first.frame_ids))
    clip = make_result(tmp_path / "uneven", [uneven])
    assert warnings(call(clip, "-f", "bvh,glb,usd")) == [
        "warning: Resampled from an uneven rate, 25 on average, to 25 frames/s, by slerp: bvh."
    ]
    np.testing.assert_array_equal(spy.people["usd"][-1].times, uneven.times)


def test_a_person_of_one_frame(clip: Path, tmp_path: Path) -> None:
    alone = [rows(make_motions(people=1)[0], [4])]
    clip = make_result(tmp_path / "one", alone)
    result = call(clip, "-f", "glb,bvh,amass,csv,obj,ply", "--world", "upright", "--root", "ground")
    assert result.exit_code == 0, result.output


@pytest.mark.usefixtures("spy")
def test_other_voices(clip: Path) -> None:
    quiet = call(clip, "-q", "-f", "glb,bvh")
    exports = clip / "exports"
    assert quiet.stdout.splitlines() == [
        str(exports / name) for name in ("clip.glb", "clip_person_01.bvh", "clip_person_02.bvh")
    ]
    events = [
        json.loads(line) for line in call(clip, "--json", "-f", "glb,csv").stdout.splitlines()
    ]
    assert events[-1] == {
        "event": "failed",
        "format": "glb",
        "text": f"{exports / 'clip.glb'} exists: pass --overwrite, or another folder.",
    }
    assert events[-2]["event"] == "exported"
    assert events[-2]["trained"] is False
    assert events[-2]["files"] == [str(exports / f"clip_person_0{who}.csv") for who in (1, 2)]


def test_every_door_of_the_table_opens() -> None:
    from importlib import import_module

    for name, kind in EXPORTERS.items():
        module, function = kind.where.split(":")
        assert callable(getattr(import_module(module), function)), name
        assert kind.rates == tuple(sorted(kind.rates))


class Run:
    """Stands in for all that `mpsnet run` does before it exports."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path, **manifest: Any) -> None:
        self.folder = folder
        self.manifest = {
            "video": {"width": 64, "height": 48, "frame_count": 10},
            "people": [{"id": 1, "frames": 1, "first_frame": 0, "last_frame": 9, "file": "p.npz"}],
            "weights": {"name": "w"},
            "body": {"name": "free-1"},
            "seconds": {},
            "frames": 10,
            "frames_per_second": 8.0,
            "overlay": None,
            "meshes": None,
            "complete": True,
            **manifest,
        }
        model = SimpleNamespace(device="cpu")
        monkeypatch.setattr("mpsnet_cli.video.probe", lambda _: "the clip")
        monkeypatch.setattr("mpsnet_cli.weights.load_model", lambda *_, **__: model)
        monkeypatch.setattr("mpsnet_cli.body.load_body", lambda *_, **__: free_body())
        monkeypatch.setattr("mpsnet_cli.job.run_clip", self._run_clip)
        self.ran = 0

    def _run_clip(self, *_: Any, **__: Any) -> tuple[Path, dict[str, Any]]:
        self.ran += 1
        return self.folder, self.manifest


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["run", "c.mp4", *map(str, arguments)])


def test_run_exports_what_it_found(spy: Spy, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Run(monkeypatch, clip)
    assert run("-q").exit_code == 0
    assert not (clip / "exports").exists()
    assert run("-q", "--export", "glb,bvh").stdout == f"{clip}\n"
    names = ["clip.glb", "clip_person_01.bvh", "clip_person_02.bvh"]
    assert files(clip / "exports") == names
    spy.stages.clear()
    again = run("--export", "glb,csv")
    assert again.exit_code == 0
    assert list(spy.stages) == ["csv"]
    assert "clip.glb is there already and left alone" in again.stderr
    assert "clip_person_01.csv" in again.stdout.replace("\n", "")
    run("-q", "--export", "glb,csv", "--overwrite")
    assert list(spy.stages) == ["csv", "glb"]
    events = [json.loads(line) for line in run("--json", "--export", "obj").stdout.splitlines()]
    assert [event["event"] for event in events[-2:]] == ["exported", "done"]


def test_run_says_what_it_could_not_export(
    spy: Spy, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = Run(monkeypatch, clip)
    spy.fails["fbx"] = OutputError("No Blender was found.")
    result = run("-q", "--export", "fbx,glb")
    assert result.exit_code == 1
    assert result.stdout == f"{clip}\n"
    assert result.stderr.endswith("Error: fbx: No Blender was found.\n")
    assert files(clip / "exports") == ["clip.glb"]
    assert ran.ran == 1
    assert run("--export", "obj3").exit_code == 2
    monkeypatch.setattr(mpsnet_cli.export.write, "find_spec", lambda _: None)
    result = run("-q", "--export", "usd")
    assert "pip install 'mpsnet-cli[export]'" in result.stderr
    assert ran.ran == 1  # said before the work, not after it


@pytest.mark.usefixtures("spy")
def test_run_with_nobody_to_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Run(monkeypatch, make_result(tmp_path / "clip", []), people=[])
    assert run("-q", "--export", "glb").exit_code == 3
    assert files(tmp_path / "clip") == ["clip.json"]


def test_what_run_wrote_is_read(tmp_path: Path) -> None:
    video = probe(make_clip(tmp_path / "walk.mp4", frames=6, size=(96, 128)))
    folder, manifest = run_clip(
        video,
        tmp_path / "out" / "walk",
        Arguments(boxes="full", overlay=False, meshes=False, renderer="cpu", start=0.1),
        model=FakeModel(),  # type: ignore[arg-type]
        body=free_body(),
        report=Reporter(),
    )
    result = read_result(folder)
    assert manifest["video"]["first_time"] == video.times[0] == result.origin
    assert result.start == 0.1
    assert result.video == str(video.path.resolve())
    assert result.body_sha256 == free_body().sha256
    exports = export_result(result, free_body(), ["csv"], report=Reporter())
    assert exports.stage.uniform
    assert exports.stage.people[0].times[0] == 0
    assert [path.name for path in exports.files["csv"]] == ["walk_person_01.csv"]
