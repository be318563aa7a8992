"""What Blender itself writes: .blend and .fbx, and the add-on for reading results into Blender.

The stage is written as a `Clip` file, which Blender, without a window, builds into a scene.
"""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from mpsnet_cli import blender
from mpsnet_cli.blender.clip import Body, Camera, Clip, Person, steady
from mpsnet_cli.colours import linear_colour
from mpsnet_cli.errors import OutputError
from mpsnet_cli.export.stage import Performer, Stage

VARIABLE = "MPSNET_BLENDER"
SCRIPT = Path(blender.__file__).parent / "headless.py"
START_SECONDS = 120.0  # for Blender to start, on a slow machine
SECONDS_PER_POSE = 0.02  # of a person at a time: fifteen times what .fbx takes
IN_STEP = 0.5  # frames: if people stay as near to the frames of the clip, it runs at their rate
ADDON = "mpsnet"  # the folder in the add-on's archive
COLOURS = 99  # of people, that the add-on brings; then they begin anew


def write_blend(path: Path, stage: Stage, *, advance: Callable[[int], None]) -> None:
    """Write a Blender file: a rig and a mesh for each person, and the camera.

    The source clip is the camera's background, by its absolute path, and rendered people are put
    over it, unless the stage does not know where it is or is resampled to another rate. Keys are at
    the stage's times, between frames too. Raises OutputError if Blender is not found or fails.
    """
    _write_in_blender(path, stage, ".blend", advance)


def write_fbx(path: Path, stage: Stage, *, advance: Callable[[int], None]) -> None:
    """Write one FBX of all people: metres, y up, one take, a key for each joint and frame.

    FBX cannot hide people for a time: before and after theirs they stand still. Raises OutputError
    if Blender is not found or fails.
    """
    assert stage.uniform
    _write_in_blender(path, stage, ".fbx", advance)


def clip_of(stage: Stage) -> Clip:
    """Turn a stage into what a scene in Blender is built from."""
    camera, body = stage.camera, stage.body
    trust = {"weights": stage.weights, "trained": stage.trained, "body": body.name}
    video, video_start = background(stage)
    return Clip(
        name=stage.name,
        fps=stage.fps,
        facts=trust,
        people=tuple(_person(person, stage) for person in stage.people),
        camera=Camera(
            position=camera.position,
            rotation=camera.rotation,
            focal_length=camera.focal_length,
            principal_point=camera.principal_point,
            image_size=np.array(camera.image_size),
        ),
        body=Body(body.faces, body.skinning_weights, body.uv, body.uv_faces),
        video=video,
        video_start=video_start,
    )


def background(stage: Stage) -> tuple[str | None, float]:
    """Find the clip, None if it is not there, and the time of its first frame, s.

    Blender shows a clip frame by frame, so it cannot be behind people at another rate.
    """
    if stage.video is None or not Path(stage.video).is_file() or not stage.people:
        return None, 0.0
    skipped = np.concatenate([who.frame_ids / stage.fps - who.times for who in stage.people])
    if np.ptp(skipped) < IN_STEP / stage.fps:
        return stage.video, -float(np.median(skipped))
    return (None if stage.uniform else stage.video), 0.0  # resampled, or a clip of uneven times


def _person(person: Performer, stage: Stage) -> Person:
    vertices, _ = stage.body(np.zeros((1, 72)), person.betas[None])
    flat = Rotation.from_matrix(person.rotations.reshape(-1, 3, 3)).as_quat()
    wxyz = np.roll(flat, 1, axis=-1).reshape(len(person), -1, 4)
    return Person(
        name=person.name,
        facts={"track_id": person.id, "gender": person.gender, "betas": person.betas.tolist()},
        times=person.times,
        seen=person.seen(stage.fps),
        quaternions=steady(wxyz),
        transl=person.transl,
        vertices=vertices[0],
        joints=person.rest_joints,
        colour=linear_colour(person.id),
    )


def find_blender() -> list[str]:
    """Find Blender: the beginning of a command that runs a script inside it.

    That is $MPSNET_BLENDER, a Blender or a Python that has `bpy`; else this Python, if it has
    `bpy`; else the `blender` on the PATH. Raises OutputError if there is none.
    """
    if given := os.environ.get(VARIABLE):
        found = shutil.which(Path(given).expanduser())
        if found is None:
            raise OutputError(f"${VARIABLE} is {given}, which is no program: name a Blender.")
        return _command(found)
    if importlib.util.find_spec("bpy"):
        return _command(sys.executable)
    if found := shutil.which("blender"):
        return _command(found)
    raise OutputError(
        "Blender writes fbx and blend, and none was found: install it, or `pip install bpy` into "
        f"an environment of its own, and set {VARIABLE} to that blender or python."
    )


def _command(program: str) -> list[str]:
    if Path(program).name.lower().startswith("python"):
        return [program, "-I"]
    return [program, "--background", "--factory-startup", "--python-exit-code", "1", "--python"]


def _write_in_blender(
    path: Path, stage: Stage, suffix: str, advance: Callable[[int], None]
) -> None:
    command = find_blender()
    poses = sum(len(person) for person in stage.people)
    with tempfile.TemporaryDirectory(prefix=".blender-", dir=path.parent) as folder:
        source, target = Path(folder) / "clip.npz", Path(folder) / f"scene{suffix}"
        clip_of(stage).save(source)
        _run(
            [*command, str(SCRIPT), "--", str(source.resolve()), str(target.resolve())],
            timeout=START_SECONDS + SECONDS_PER_POSE * poses,
        )
        if not target.is_file():
            raise OutputError(f"{command[0]} ended without an error, but wrote no {suffix}.")
        target.replace(path)
    advance(poses)


def _run(command: list[str], *, timeout: float) -> None:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise OutputError(f"{command[0]} was stopped: no end after {timeout:.0f} s.") from error
    if done.returncode:
        lines = (done.stdout + done.stderr).decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "no message")
        raise OutputError(f"{command[0]} failed (exit code {done.returncode}): {last}")


def write_addon(path: Path) -> None:
    """Write the Blender add-on as .zip: an extension for 4.2 and later, an add-on from 3.4 on.

    It contains the free body, so that it needs no other file for results with that.
    """
    from mpsnet_cli.body.arrays import read_free_body
    from mpsnet_cli.body.lookup import FREE_BODY_FILE

    colours = io.BytesIO()
    np.save(colours, [linear_colour(person) for person in range(1, COLOURS + 1)])
    arrays = read_free_body(FREE_BODY_FILE.read_bytes())
    names = ("v_template", "shapedirs", "J_regressor", "weights", "f", "uv", "uv_faces")
    body = io.BytesIO()
    np.savez_compressed(body, **{name: getattr(arrays, name) for name in names})
    own = Path(blender.__file__).parent
    parts = [part for part in own.glob("*.py") if part != SCRIPT]
    parts += [own / "blender_manifest.toml"]
    parts += [FREE_BODY_FILE.with_name(name) for name in ("LICENSE.md", "APACHE-2.0.txt")]
    temporary = path.with_name(path.name + ".part")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for part in sorted(parts):
            archive.write(part, f"{ADDON}/{part.name}")
        archive.writestr(f"{ADDON}/body.npz", body.getvalue())
        archive.writestr(f"{ADDON}/colours.npy", colours.getvalue())
    temporary.replace(path)
