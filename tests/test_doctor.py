from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from mpsnet_cli import doctor, packaged
from mpsnet_cli.doctor import CHECKS, Check, Finding, examine, machine, perform, trials
from mpsnet_cli.errors import DeviceError, InputError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home, and a current folder, without anything in it."""
    folder = tmp_path / "home"
    (folder / "here").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(folder))
    for name in (*machine.VARIABLES, "XDG_CONFIG_HOME"):
        if name != "OMP_NUM_THREADS":
            monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(folder / "here")
    machine.opengl_device.cache_clear()
    return folder


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Make programs of a shell script; the last one made stands in for ffmpeg."""

    def make(script: str) -> Path:
        path = tmp_path / "program"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(path))
        return path

    return make


def found(name: str, folder: Path, group: str | None = None) -> list[Finding]:
    """What the check of a name finds, in this process."""
    [check] = [c for c in CHECKS if c.name == name and group in (None, c.group)]
    return list(perform(check, folder))


def only(findings: list[Finding], state: str) -> Finding:
    """The one finding of a state."""
    [finding] = [finding for finding in findings if finding.state == state]
    return finding


def states(findings: list[Finding]) -> set[str]:
    return {finding.state for finding in findings}


# How checks are performed


def test_a_check_that_raises_is_a_finding(tmp_path: Path) -> None:
    def broken(_: Path) -> Iterator[Finding]:
        yield Finding("one", "first")
        raise InputError("No such\nthing.")

    first, second = perform(Check("group", "two", broken), tmp_path)
    assert (first.text, first.state, first.group) == ("first", "ok", "group")
    assert (second.name, second.text, second.state) == ("two", "failed: No such thing.", "failed")
    assert second.group == "group"
    *_, optional = perform(Check("group", "two", broken, needed=False), tmp_path)
    assert optional.state == "note"


def test_what_nobody_foresaw_is_named(tmp_path: Path) -> None:
    def broken(_: Path) -> Iterator[Finding]:
        yield Finding("half", str(1 / 0))

    [finding] = perform(Check("group", "check", broken), tmp_path)
    assert finding.text == "failed: ZeroDivisionError: division by zero"


def test_the_name_of_the_user_stays_private(home: Path, tmp_path: Path) -> None:
    text = f"{home}/a {home} ({home}) {home}s {home}-x /mnt{home}"

    def speak(_: Path) -> Iterator[Finding]:
        yield Finding("it", text, advice=f"{home}/b\x1b[31m")

    [finding] = perform(Check("group", "it", speak), tmp_path)
    assert finding.text == f"~/a ~ (~) {home}s {home}-x /mnt{home}"
    assert finding.advice == "~/b?[31m"


def fine(folder: Path) -> Iterator[Finding]:
    print("a library chats")
    (folder / "kept").touch()
    yield Finding("fine", f"{os.getpid()} {folder}")


def crash(_: Path) -> Iterator[Finding]:
    yield Finding("crash", "before")
    os.abort()


def killed(_: Path) -> Iterator[Finding]:
    os.kill(os.getpid(), signal.SIGKILL)
    yield Finding("killed", "never")


def hang(_: Path) -> Iterator[Finding]:
    time.sleep(600)
    yield Finding("hang", "never")


def test_a_crash_ends_only_its_own_check(capfd: pytest.CaptureFixture[str]) -> None:
    checks = [
        Check("a", "fine", fine),
        Check("a", "crash", crash),
        Check("a", "killed", killed, needed=False),
        Check("b", "fine", fine),
    ]
    first, before, crashed, gone, last = examine(checks)
    assert before.text == "before"
    assert crashed.state == "failed"
    assert crashed.text.startswith("failed: the process died (SIGABRT) in crash, test_doctor.py:")
    assert gone == Finding("killed", "failed: the process died (SIGKILL)", "note", group="a")
    assert (first.state, last.state, last.group) == ("ok", "ok", "b")
    pids = [int(finding.text.split()[0]) for finding in (first, last)]
    assert pids[0] != pids[1]
    assert os.getpid() not in pids
    folder = Path(first.text.split()[1])
    assert str(folder) == last.text.split()[1]
    assert not folder.exists()
    assert capfd.readouterr() == ("", "")  # what libraries print is kept out of the answer


def test_a_check_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PATIENCE", 3.0)
    hung, after = examine([Check("a", "hang", hang), Check("a", "fine", fine)])
    assert (hung.text, hung.state) == ("failed: no answer within 3 s", "failed")
    assert after.state == "ok"


def test_nothing_is_left_when_nobody_listens_any_more() -> None:
    findings = examine([Check("a", "fine", fine), Check("a", "hang", hang)])
    process, folder = next(findings).text.split()
    findings.close()
    assert not Path(folder).exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int(process), 0)


def test_a_disk_without_room_for_a_folder_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryDirectory", full)
    needing = Check("self-test", "encode", fine, writes=True)
    nowhere, skipped, version, *_ = examine([needing, Check("program", "it", machine.program)])
    assert (nowhere.state, nowhere.group) == ("failed", "folders")
    assert skipped.text == "skipped: there is no folder for temporary files"
    assert version.name == "mpsnet-cli"


def test_the_doctor_itself_needs_next_to_nothing() -> None:
    """Whatever is missing is told of; so the doctor must be able to begin without."""
    code = """
import sys
needed = {"click", "mpsnet_cli"}
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in needed | sys.stdlib_module_names:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
import mpsnet_cli.doctor
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# Packages


def test_packages_are_those_required(tmp_path: Path) -> None:
    names = [finding.name for finding in found("packages", tmp_path)]
    assert {"torch", "numpy", "cv2", "ultralytics", "av", "imageio-ffmpeg"} <= set(names)
    assert not {"pytest", "ruff"} & set(names)
    assert not {"pytest", "ruff"} & {finding.name for finding in found("extras", tmp_path)}


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The packages that are installed, to be changed; what requires them is fixed."""
    packages = {"torch": "2.7.1+cu128", "opencv-python-headless": "5.0.1", "joblib": "1.4"}

    def version(name: str) -> str:
        if name not in packages:
            raise metadata.PackageNotFoundError(name)
        return packages[name]

    needs = ["torch>=2.6", "opencv-python-headless>=5.0", 'joblib>=1.3; extra == "export"',
             'mpsnet-cli[export]; extra == "test"', 'tomli; python_version < "3"']  # fmt: skip
    monkeypatch.setattr(machine.metadata, "version", version)
    monkeypatch.setattr(machine.metadata, "requires", lambda _: needs)
    extras = SimpleNamespace(get_all=lambda _: ["export", "test"])
    monkeypatch.setattr(machine.metadata, "metadata", lambda _: extras)
    return packages


@pytest.mark.usefixtures("installed")
def test_packages_that_are_there(tmp_path: Path) -> None:
    torch, cv2 = found("packages", tmp_path)
    assert (torch.name, torch.text, torch.state) == ("torch", "2.7.1+cu128", "ok")
    assert (cv2.name, cv2.text) == ("cv2", "5.0.1 (opencv-python-headless)")
    [joblib] = found("extras", tmp_path)
    assert (joblib.name, joblib.text, joblib.state) == ("joblib", "1.4", "ok")


def test_a_package_that_is_missing_or_too_old(tmp_path: Path, installed: dict[str, str]) -> None:
    del installed["torch"], installed["joblib"]
    installed["opencv-python-headless"] = "4.12.0"
    torch, cv2 = found("packages", tmp_path)
    assert (torch.text, torch.state) == ("not installed", "failed")
    assert torch.advice == "pip install 'torch>=2.6'"
    assert (cv2.text, cv2.state) == ("4.12.0, must be >=5.0", "failed")
    [joblib] = found("extras", tmp_path)
    assert (joblib.state, joblib.advice) == ("note", "pip install 'mpsnet-cli[export]'")


def test_a_package_may_stand_in_for_another(tmp_path: Path, installed: dict[str, str]) -> None:
    del installed["opencv-python-headless"]
    installed["opencv-python"] = "5.1.0"
    _, cv2 = found("packages", tmp_path)
    assert (cv2.text, cv2.state) == ("5.1.0 (opencv-python)", "ok")


def test_a_checkout_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(machine.metadata, "requires", unknown)
    monkeypatch.setattr(machine.metadata, "metadata", unknown)
    assert states(found("packages", tmp_path) + found("extras", tmp_path)) == {"note"}


def test_a_package_that_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    [finding] = found("cpu", tmp_path)
    assert finding.state == "failed"
    assert finding.text.startswith("failed: ModuleNotFoundError: import of torch halted")


# Devices


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """One GPU of which torch knows everything; it cannot compute, as it is none."""
    cuda = "torch.cuda."
    properties = SimpleNamespace(name="NVIDIA RTX 4090", major=8, minor=9)
    monkeypatch.setattr(cuda + "is_available", lambda: True)
    monkeypatch.setattr(cuda + "device_count", lambda: 1)
    monkeypatch.setattr(cuda + "get_device_properties", lambda _: properties)
    monkeypatch.setattr(cuda + "mem_get_info", lambda _: (20_000_000_000, 24_000_000_000))
    monkeypatch.setattr(cuda + "is_bf16_supported", lambda: True)
    monkeypatch.setattr("torch.version.cuda", "12.8")


@pytest.mark.usefixtures("gpu")
def test_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    ones = torch.ones
    monkeypatch.setattr(
        "torch.ones",
        lambda *shape, device: ones(*shape, device="cpu" if device == "cuda:0" else device),
    )
    [finding] = found("cuda", tmp_path)
    assert (finding.name, finding.state) == ("cuda:0", "ok")
    assert finding.text == (
        "NVIDIA RTX 4090, 20.0 GB of 24.0 GB free, capability 8.9, CUDA 12.8, bf16 yes"
    )


@pytest.mark.usefixtures("gpu")
def test_a_gpu_that_does_not_compute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: int, device: str) -> None:
        raise RuntimeError(f"CUDA error: no kernel image is available\nfor {device}")

    monkeypatch.setattr("torch.ones", fail)
    [finding] = found("cuda", tmp_path)
    assert (finding.name, finding.state) == ("cuda:0", "failed")
    assert "does not compute: CUDA error: no kernel image is available for" in finding.text
    assert finding.advice
    assert "8.9, or pass --device cpu" in finding.advice


def test_a_driver_that_is_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def complain() -> bool:
        warnings.warn("The NVIDIA driver on your system is too old", stacklevel=1)
        return False

    monkeypatch.setattr("torch.cuda.is_available", complain)
    [finding] = found("cuda", tmp_path)
    assert finding.state == "note"
    assert finding.text.endswith(": The NVIDIA driver on your system is too old")


def test_a_torch_without_cuda_beside_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.version.cuda", None)
    [finding] = found("cuda", tmp_path)
    assert (finding.state, finding.text) == ("ok", "no GPU; torch is built without CUDA")
    monkeypatch.setattr(machine, "GPU_NODE", tmp_path)
    [finding] = found("cuda", tmp_path)
    assert (finding.state, finding.advice) == ("note", "a GPU is here: install torch for CUDA")


def test_opengl_that_is_broken_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> str:
        raise DeviceError("EGL does not work here (exit code -11): use --renderer cpu.")

    monkeypatch.setattr("mpsnet_cli.render.gl.find_device", broken)
    [fact], [trial] = found("OpenGL", tmp_path), found("draw, OpenGL", tmp_path)
    assert (fact.state, trial.state) == ("note", "skipped")
    assert fact.advice == "EGL does not work here (exit code -11): use --renderer cpu."


@pytest.mark.parametrize(
    ("device", "state"), [("NVIDIA H200/PCIe", "failed"), ("llvmpipe (LLVM 15)", "note")]
)
def test_opengl_that_answers_but_does_not_draw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, state: str
) -> None:
    """Where a GPU answers, a run draws with it."""

    def broken(_: object) -> None:
        raise RuntimeError("GLError 1286")

    monkeypatch.setattr("mpsnet_cli.render.gl.find_device", lambda: device)
    monkeypatch.setattr("mpsnet_cli.render.gl.GlRenderer", broken)
    [fact], [trial] = found("OpenGL", tmp_path), found("draw, OpenGL", tmp_path)
    assert fact.state == "ok"
    assert device in fact.text
    assert trial.state == state
    assert "GLError 1286" in trial.text


# Video


def test_an_ffmpeg_without_the_encoder(tmp_path: Path, program: Callable[[str], Path]) -> None:
    program("cat > /dev/null; echo \"[out @ 0x5] Unknown encoder 'libx264'\" >&2; exit 8")
    fact = only(found("encoders", tmp_path), "failed")
    assert (fact.name, fact.text) == ("libx264", "does not encode: Unknown encoder 'libx264'")
    assert fact.advice
    [trial] = found("encode", tmp_path)
    assert trial.state == "failed"
    assert "encoded.mp4 cannot be encoded, ffmpeg says: Unknown encoder 'libx264'" in trial.text


def test_no_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise RuntimeError("No ffmpeg exe could be found.")

    monkeypatch.setattr("imageio_ffmpeg.get_ffmpeg_exe", none)
    for name in ("ffmpeg", "encoders", "encode"):
        finding = only(found(name, tmp_path), "failed")
        assert finding.text == "failed: RuntimeError: No ffmpeg exe could be found."
    monkeypatch.setattr("imageio_ffmpeg.get_ffmpeg_exe", lambda: str(tmp_path / "nothing"))
    assert "No such file" in only(found("encoders", tmp_path), "failed").text


def test_an_ffmpeg_that_encodes_in_hardware(tmp_path: Path, program: Callable[[str], Path]) -> None:
    program('cat > /dev/null; case "$*" in *nvenc*|*264\\ -f*) exit 0;; esac; exit 1')
    software, hardware = found("encoders", tmp_path)
    assert (software.text, hardware.text) == ("encodes", "h264_nvenc; none is needed")


def test_sound_that_is_lost_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(self: Any, _: object) -> Path:
        self._report.warn("overlay.mp4 is silent: the sound is unusable.")
        return Path(self._folder.name) / "picture.mp4"

    monkeypatch.setattr("mpsnet_cli.video.VideoWriter._add_sound", silent)
    [finding] = found("encode", tmp_path)
    assert finding.state == "failed"
    assert finding.text == "failed: overlay.mp4 is silent: the sound is unusable."


def test_wrong_colours_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert states(found("decode", tmp_path)) == {"ok"}
    pictures = trials._pictures()
    monkeypatch.setattr(trials, "_pictures", lambda: [image[..., ::-1] for image in pictures])
    [finding] = found("decode", tmp_path)
    assert finding.state == "failed"
    assert "other colours" in finding.text
    monkeypatch.setattr(trials, "FRAMES", 5)
    [finding] = found("decode", tmp_path)
    assert finding.text == "failed: 4 of 5 frames came back"


# Files


@pytest.mark.usefixtures("empty_home")
def test_no_weights(tmp_path: Path) -> None:
    findings = found("weights", tmp_path)
    assert only(findings, "failed").text.startswith("No weights found: get the official ones")
    assert [finding.name for finding in findings[1:]] == ["not here"] * 3


def test_weights_that_a_variable_names_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPSNET_WEIGHTS", "/nowhere.safetensors")
    finding = only(found("weights", tmp_path), "failed")
    assert finding.text == (
        "There is no weight file /nowhere.safetensors, which $MPSNET_WEIGHTS names."
    )


def test_weights_that_are_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    monkeypatch.setenv("MPSNET_WEIGHTS", str(tmp_path / "bad.safetensors"))
    finding = only(found("weights", tmp_path), "failed")
    assert "is not a readable safetensors file" in finding.text


def test_weights_say_whether_they_are_trained(
    tmp_path: Path, untrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mpsnet_cli.weights import read_info

    monkeypatch.setenv("MPSNET_WEIGHTS", str(untrained))
    finding = only(found("weights", tmp_path), "note")
    assert (finding.name, finding.text[-9:]) == ("weights", "untrained")
    assert read_info(untrained).sha256[:12] in finding.text
    info = SimpleNamespace(trained=True, name="w, partly trained", sha256="0" * 64)
    monkeypatch.setattr("mpsnet_cli.weights.read_info", lambda _: info)
    assert only(found("weights", tmp_path), "note").advice == "expect less of them"
    info.name = "w"
    assert found("weights", tmp_path)[0].text.endswith("trained")
    assert states(found("weights", tmp_path)) == {"ok"}


def test_what_shipped_is_there_and_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = tmp_path / "good.pt", tmp_path / "bad.pt"
    good.write_bytes(b"good")
    bad.write_bytes(b"bad")
    names = {"good.pt": packaged.file_sha256(good), "bad.pt": "0" * 64, "gone.pt": "1" * 64}
    monkeypatch.setattr(packaged, "PACKAGED", names)
    monkeypatch.setattr(packaged, "packaged_folder", lambda: tmp_path)
    here, changed, missing = found("shipped", tmp_path)
    assert here.state == "ok"
    assert changed.state == missing.state == "failed"
    assert "bad.pt is not the file that shipped with this version" in changed.text
    assert (missing.text, missing.advice) == ("gone.pt is missing", "install mpsnet-cli again")


def test_the_body(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free, smpl = found("body", tmp_path, "files")
    assert free.text.startswith("free-1: ")
    assert smpl.name == "not here"
    assert smpl.text == "smpl-neutral, smpl-male, smpl-female"
    assert smpl.advice
    assert smpl.advice.startswith("SMPL neutral is not here: get it from")
    monkeypatch.setenv("MPSNET_SMPL", "/nowhere")
    for name in ("body", "draw"):
        failed = only(found(name, tmp_path, "files" if name == "body" else None), "failed")
        assert failed.text.startswith("failed: /nowhere does not exist: it should have SMPL_NEUTRA")


def test_the_detector_is_the_one_that_a_run_takes(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mpsnet_cli.tracking import detector

    asked: list[str] = []
    monkeypatch.setattr(detector, "packaged_file", lambda _: None)
    monkeypatch.setattr(packaged, "packaged_file", lambda _: None)
    monkeypatch.setattr(detector, "_download", asked.append)
    [finding] = found("detector", tmp_path)
    assert finding.state == "note"
    assert "the next run fetches yolo11n.pt, if it can; else it fails" in finding.text
    assert only(found("detect", tmp_path), "skipped").text == "skipped: no detector is here yet"
    monkeypatch.setattr(packaged, "packaged_file", lambda name: Path(name))
    [finding] = found("detector", tmp_path)
    assert finding.state == "ok"
    assert "else person-starter.pt is taken, which misses more" in finding.text
    for place in (detector._cached("yolo11n.pt"), Path("yolo11n.pt")):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
        assert found("detector", tmp_path)[0].text == str(place).replace(str(home), "~")
        assert detector.find_detector() == place
    assert not asked
    failed = only(found("detect", tmp_path), "failed")
    assert "The detector yolo11n.pt cannot be opened: it is damaged" in failed.text


# Folders, Blender


def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert states(found("temporary", tmp_path)) == {"ok"}
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=3_000_000))
    failed = only(found("temporary", tmp_path), "failed")
    assert failed.text.endswith(", 3 MB free")
    assert failed.advice == "make room there, or set TMPDIR to another folder"
    assert [finding.name for finding in found("folders", tmp_path)] == ["data", "cache", "current"]
    assert states(found("folders", tmp_path)) == {"note"}


def test_a_disk_that_is_full_when_it_is_written(
    tmp_path: Path, program: Callable[[str], Path]
) -> None:
    program("cat > /dev/null; echo 'Error writing trailer: No space left on device' >&2; exit 1")
    [finding] = found("encode", tmp_path)
    assert finding.state == "failed"
    assert "ffmpeg says: Error writing trailer: No space left on device" in finding.text


def test_folders_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    current = found("folders", tmp_path)[-1]
    assert current.state == "note"
    assert current.advice == "pass --out with a folder that can be written"


def test_blender(
    tmp_path: Path, program: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    [none] = found("Blender", tmp_path)
    assert (none.text, none.state) == ("not here", "note")
    monkeypatch.setenv("MPSNET_BLENDER", str(program("echo Color management; echo Blender 4.2.1")))
    [here] = found("Blender", tmp_path)
    assert (here.text, here.state) == (f"4.2.1, {tmp_path / 'program'}", "ok")
    program("echo libGL.so.1 is missing >&2; exit 127")
    [broken] = found("Blender", tmp_path)
    assert broken.text == f"{tmp_path / 'program'} does not start: libGL.so.1 is missing"
    assert broken.state == "note"


# Trials


def test_a_body_of_the_wrong_size_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert states(found("body", tmp_path, "self-test")) == {"ok"}

    def giant(*_: object) -> tuple[np.ndarray, np.ndarray]:
        return np.array([[[0, 0, 0], [0, 171.0, 0]]]), np.zeros((1, 24, 3))

    giant.name = "giant"  # type: ignore[attr-defined]
    monkeypatch.setattr("mpsnet_cli.body.load_body", lambda: giant)
    [finding] = found("body", tmp_path, "self-test")
    assert finding.text == "failed: giant is 171.00 m tall"


def test_a_renderer_that_draws_nothing_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert states(found("draw", tmp_path)) == {"ok"}
    draw = "mpsnet_cli.render.cpu.CpuRenderer.draw"
    monkeypatch.setattr(draw, lambda _self, image, *_: image.copy())
    [finding] = found("draw", tmp_path)
    assert finding.text == "failed: the body covers 0% of the picture"


def test_export_without_a_motion_is_skipped(tmp_path: Path) -> None:
    assert states(found("export", tmp_path)) == {"skipped"}


BLOCK = """
import pathlib, socket

def refuse(*arguments):
    with open({log!r}, "a") as file:
        file.write(str(arguments))
    raise OSError("no network")

socket.socket.connect = socket.getaddrinfo = refuse
"""


def test_all_of_it_leaves_nothing_and_fetches_nothing(
    home: Path, tmp_path: Path, untrained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, temporary = tmp_path / "log", tmp_path / "temporary"
    temporary.mkdir()
    (tmp_path / "sitecustomize.py").write_text(BLOCK.format(log=str(log)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("MPSNET_WEIGHTS", str(untrained))
    detector = ROOT.parent / "shared" / "weights" / "yolov8n.pt"
    if detector.is_file():
        (home / "here" / "yolo11n.pt").symlink_to(detector)
    findings = list(examine())
    assert {finding.group for finding in findings} == {check.group for check in CHECKS}
    assert [finding for finding in findings if finding.state == "failed"] == []
    tried = {finding.name for finding in findings if finding.text.startswith("ok: ")}
    assert {"decode", "network", "body", "draw", "encode", "export"} <= tried
    assert ("detect" in tried) == detector.is_file()
    assert {path.name for path in home.rglob("*") if path.is_file()} <= {"yolo11n.pt"}
    assert list(temporary.iterdir()) == []
    assert not log.exists()
