from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result

import mpsnet_cli.synth.shards
import mpsnet_cli.synth.sheet
from mpsnet_cli.cli import main
from mpsnet_cli.synth.samples import Samples
from mpsnet_cli.synth.shards import Recipe, read_shard


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["synth", *map(str, arguments)])


@pytest.fixture
def wired(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What write_shards and write_sheet are called with, in place of their work."""
    calls: dict[str, Any] = {}

    def write_shards(make: functools.partial[Samples], *arguments: Any, **keywords: Any) -> None:
        keywords.pop("report")
        calls["samples"] = (make.func, make.args, make.keywords)
        calls["shards"] = (arguments, keywords)

    monkeypatch.setattr(mpsnet_cli.synth.shards, "write_shards", write_shards)
    monkeypatch.setattr(
        mpsnet_cli.synth.sheet, "write_sheet", lambda *arguments: calls.update(sheet=arguments)
    )
    return calls


def test_defaults_arrive(wired: dict[str, Any]) -> None:
    result = call("out", "--count", 5, "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert result.output == "5 crops in out\n"
    samples = {
        "size": 224, "split": "train", "device": "cpu", "rasteriser": "cv2", "textures": None,
        "backgrounds": None,
    }  # fmt: skip
    recipe = Recipe(kind="crops", seed=0, size=224, split="train", frames=1)
    where = {"start": 0, "count": 5, "workers": os.cpu_count()}
    assert wired == {
        "samples": (Samples, (0,), samples),
        "shards": ((Path("out"), recipe), where),
    }


def test_every_option_arrives(wired: dict[str, Any], tmp_path: Path) -> None:
    for name in ("cloth", "places"):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / f"{name}.png"), np.zeros((4, 4, 3), np.uint8))
    cloth, places = tmp_path / "cloth", tmp_path / "places"
    result = call(
        "out", "--kind", "sequences", "-n", 7, "--frames", 9, "--seed", 3, "--start", 20,
        "--size", 96, "--split", "held-out", "--textures", cloth, "--backgrounds", places,
        "--device", "cpu", "--workers", 4, "--sheet", "sheet.png", "--quiet",
    )  # fmt: skip
    assert result.output == "out\n"
    _, (seed,), keywords = wired["samples"]
    assert (seed, keywords["size"], keywords["split"]) == (3, 96, "held-out")
    assert (keywords["textures"], keywords["backgrounds"]) == (cloth, places)
    (_, recipe), where = wired["shards"]
    assert (recipe.kind, recipe.frames, recipe.seed, recipe.size) == ("sequences", 9, 3, 96)
    assert recipe.split == "held-out"
    assert recipe.textures
    assert recipe.backgrounds
    assert recipe.textures != recipe.backgrounds
    assert where == {"start": 20, "count": 7, "workers": 4}
    assert wired["sheet"] == (Path("out"), Path("sheet.png"))


def test_sequences_have_a_length_by_default(wired: dict[str, Any]) -> None:
    call("out", "--kind", "sequences", "--count", 1)
    (_, recipe), _ = wired["shards"]
    assert recipe.frames == 64


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Missing option '--count'"),
        (["--count", 0], "0 is not in the range x>=1"),
        (["--count", 1, "--seed", -1], "-1 is not in the range x>=0"),
        (["--count", 1, "--size", 8], "8 is not in the range 32<=x<=1024"),
        (["--count", 1, "--split", "test"], "'test' is not one of 'train', 'held-out'"),
        (["--count", 1, "--kind", "films"], "'films' is not one of 'crops', 'sequences'"),
        (["--count", 1, "--frames", 4], "--frames is for --kind sequences."),
        (["--count", 1, "--kind", "sequences", "--frames", 1], "1 is not in the range x>=2"),
        (["--count", 1, "--textures", "nowhere"], "Directory 'nowhere' does not exist"),
        (["--count", 1, "--workers", 0], "0 is not in the range x>=1"),
    ],
)
def test_wrong_usage(wired: dict[str, Any], arguments: list[object], says: str) -> None:
    result = call("out", *arguments)
    assert result.exit_code == 2
    assert says in " ".join(result.output.split())
    assert wired == {}


def test_a_folder_without_pictures_and_one_with_a_broken_one(
    wired: dict[str, Any], tmp_path: Path
) -> None:
    result = call("out", "--count", 1, "--backgrounds", tmp_path)
    assert result.exit_code == 1
    assert f"Error: {tmp_path} holds no photographs" in result.output
    (tmp_path / "broken.jpg").write_text("no picture")
    result = call("out", "--count", 1, "--backgrounds", tmp_path)
    assert result.exit_code == 1
    assert "broken.jpg is not a picture that can be read: take it out." in result.output
    assert wired == {}


def test_real_crops_with_a_sheet(tmp_path: Path) -> None:
    """The whole command, and that its samples are those that anyone gets who asks for them."""
    out, sheet = tmp_path / "out", tmp_path / "sheet.png"
    arguments = ("--count", 2, "--start", 5, "--size", 64, "--device", "cpu", "--workers", 1)
    result = call(out, *arguments, "--sheet", sheet, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.output.splitlines()[-1])["event"] == "done"
    shard = read_shard(out / "crops-00000005.npz")
    (found,) = Samples(0, size=64).crops([6]).pose
    np.testing.assert_array_equal(shard.batch.pose[1], found)
    assert shard.batch.images.shape == (2, 64, 64, 3)
    assert cv2.imread(str(sheet)).shape == (256, 2048, 3)


@pytest.mark.slow
def test_real_sequences_in_processes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mpsnet_cli", "synth", str(tmp_path), "--kind", "sequences"]
    command += ["--count", "20", "--frames", "3", "--size", "64", "--device", "cpu"]
    subprocess.run([*command, "--workers", "2"], check=True)
    shard = read_shard(tmp_path / "sequences-00000016.npz")
    np.testing.assert_array_equal(
        shard.batch.joints3d[3:6], Samples(0, size=64).sequence(17, 3).joints3d
    )
