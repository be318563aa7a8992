from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result
from conftest import ROOT

from mpsnet_cli.cli.attention import attention

CLIP, BOXES = ROOT / "examples" / "walk.mp4", ROOT / "examples" / "walk_boxes.csv"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(attention, [str(argument) for argument in arguments])


@pytest.fixture
def stills(tmp_path: Path) -> tuple[Path, Path]:
    for name, grey in (("a.png", 50), ("b.jpg", 200)):
        cv2.imwrite(str(tmp_path / name), np.full((60, 40, 3), grey, np.uint8))
    return tmp_path / "a.png", tmp_path / "b.jpg"


def test_a_clip_gives_the_maps(untrained: Path, tmp_path: Path) -> None:
    picture = tmp_path / "maps.png"
    result = call(CLIP, "-w", untrained, "--boxes", BOXES, "--frame", 60, "-o", picture)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["NSSM", "attention map", "MoCA map"]
    assert lines[3:] == [str(picture)]
    assert "untrained" in result.stderr
    assert cv2.imread(str(picture)).shape[1] > 3 * 16 * 40


def test_two_pictures_give_the_transition(
    untrained: Path, tmp_path: Path, stills: tuple[Path, Path]
) -> None:
    picture = tmp_path / "transition.png"
    result = call(*stills, "-w", untrained, "-o", picture, "--overwrite")
    assert result.exit_code == 0, result.output
    sentence, path = result.stdout.splitlines()
    assert re.fullmatch(r"the poses are \d+\.\d mm apart; .*", sentence)
    assert path == str(picture)
    assert cv2.imread(str(picture)).shape[1] > 17 * 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.png"], "a.png is one picture: give a clip, or two pictures."),
        (["a.png", CLIP], "walk.mp4 is not a picture: give one clip, or two JPEG or PNG files."),
        (["nothing.mp4"], "nothing.mp4 does not exist: check the name."),
        ([CLIP, "--boxes", BOXES, "--frame", 5000], "is not in frame 5000"),
        ([CLIP, "--boxes", BOXES, "--person", 7], "There is no person 7 in the clip"),
        ([CLIP, "--boxes", "nothing.csv"], "nothing.csv is not readable"),
        ([CLIP, "-o", "picture.txt"], "name a .png or .jpg"),
        ([CLIP, "-o", "a.png"], "a.png exists already"),
        ([CLIP, "-w", "nothing"], "There is no weight file nothing"),
    ],
)
def test_errors_are_one_sentence(
    arguments: list[object],
    message: str,
    untrained: Path,
    stills: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(stills[0].parent)
    result = call("-o", "new.png", "-w", untrained, *arguments)
    assert result.exit_code == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("Error: ")
    assert message in last
    assert not Path("new.png").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["a", "b", "c", "-o", "new.png"],
        ["a", "b", "--frame", "3", "-o", "new.png"],
        ["a", "b", "--person", "1", "-o", "new.png"],
        ["a"],
        ["-o", "new.png"],
    ],
)
def test_wrong_usage_is_refused(arguments: list[str]) -> None:
    assert call(*arguments).exit_code == 2
