from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from mpsnet_cli.errors import InputError
from mpsnet_cli.synth.mocap import CAPTURE_RATE, read_amc, read_asf, read_takes

# A thigh that hangs down and a shank that points left at rest; one unit is one metre.
ASF = """# comment
:version 1.10
:units
  mass 1.0
  length 0.0254
  angle deg
:root
  order TX TY TZ RX RY RZ
  axis XYZ
  position 0 0 0
  orientation 0 0 0
:bonedata
  begin
    id 1
    name thigh
    direction 0 -1 0
    length 2
    axis 0 0 0 XYZ
    dof rx
    limits (-160.0 20.0)
  end
  begin
    id 2
    name shank
    direction 3 0 0
    length 1
    axis 0 0 90 XYZ
    dof rx
  end
:hierarchy
  begin
    root thigh
    thigh shank
  end
"""
AMC = """#!OML:ASF somewhere
:FULLY-SPECIFIED
:DEGREES
1
root 0 0 0 0 0 0
thigh 0
shank 0
2
root 1 2 3 0 90 0
thigh 90
shank 90
3
root 0 0 0 90 90 0
shank 0
thigh 0
"""


def test_the_rest_pose_is_the_asf_file_itself() -> None:
    ends = read_amc(AMC, read_asf(ASF)).positions()
    np.testing.assert_allclose(ends[0], [[0, 0, 0], [0, -2, 0], [1, -2, 0]], atol=1e-12)


def test_a_bent_pose_matches_its_closed_form() -> None:
    # The thigh's 90° about x take -y to -z, the root's about y take that to -x. The shank turns
    # about its own x, which the 90° of its axis lay along y: x to -z, then to y, then y stays.
    ends = read_amc(AMC, read_asf(ASF)).positions()
    np.testing.assert_allclose(ends[1], [[1, 2, 3], [-1, 2, 3], [-1, 3, 3]], atol=1e-12)


def test_angles_turn_about_x_first() -> None:
    # -y about x to -z, then about y to -x; the other order would leave -z.
    ends = read_amc(AMC, read_asf(ASF)).positions()
    np.testing.assert_allclose(ends[2, 1], [-2, 0, 0], atol=1e-12)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (AMC.replace("thigh 90", "thigh 90 1"), "thigh 90 1"),
        (AMC.replace("thigh 90", "tail 90"), "tail 90"),
        (AMC.replace("thigh 90\n", ""), "thigh"),
        (AMC.replace("thigh 90", "thigh nan"), "finite"),
        (AMC.replace("thigh 90", "thigh x"), "bad number"),
        (":DEGREES\n", "without frames"),
        ("root 0 0 0 0 0 0\n", "root 0"),
    ],
)
def test_amc_that_does_not_fit_is_refused(bad: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        read_amc(bad, read_asf(ASF))


@pytest.mark.parametrize(
    "bad",
    [
        "",
        ASF.replace(":units", ":unity"),
        ASF.replace("direction 3 0 0", "direction 3 0 left"),
        ASF.replace("thigh shank", "thigh foot"),
        ASF.replace("dof rx\n  end", "dof tx\n  end"),
        ASF.replace("dof rx\n  end", "dof rx rx\n  end"),
        ASF.replace("order TX TY TZ", "order TX TY TY"),
        ASF.replace("length 2", "length inf"),
        ASF.replace("length 0.0254", "length 0"),
        ASF.replace("axis 0 0 90 XYZ", "axis 0 0 90 UVW"),
    ],
)
def test_asf_that_is_no_skeleton_is_refused(bad: str) -> None:
    with pytest.raises(InputError):
        read_asf(bad)


def make_archive(path: Path, **members: str | None) -> Path:
    with tarfile.open(path, "w:xz") as tar:
        for name, text in members.items():
            info = tarfile.TarInfo(f"subjects/09/{name.replace('__', '.')}")
            if text is None:
                info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
                tar.addfile(info)
            else:
                info.size = len(text)
                tar.addfile(info, io.BytesIO(text.encode()))
    return path


def test_takes_are_read_from_an_archive_by_name(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "a.tar.xz", **{"09__asf": ASF, "09_01__amc": AMC})
    takes = read_takes(archive, ["09_01"])
    assert list(takes) == ["09_01"]
    assert takes["09_01"].rotations.shape == (3, 3, 3, 3)


def test_links_and_missing_takes_are_named(tmp_path: Path) -> None:
    archive = make_archive(tmp_path / "a.tar.xz", **{"09__asf": ASF, "09_02__amc": None})
    with pytest.raises(InputError, match=r"lacks 09_02\.amc"):
        read_takes(archive, ["09_02"])


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.xz"
    path.write_bytes(b"no tar")
    with pytest.raises(InputError, match="not a readable"):
        read_takes(path, ["09_01"])
    with pytest.raises(InputError, match="not a readable"):
        read_takes(tmp_path / "absent.tar", ["09_01"])


def test_a_real_take_walks(shared: Path) -> None:
    take = read_takes(shared / "mocap" / "cmu-subjects-01-02-03.tar.xz", ["02_01"])["02_01"]
    feet = take.positions()[:, [take.skeleton["ltoes"], take.skeleton["rtoes"]]]
    seconds = len(take.root) / CAPTURE_RATE
    assert 1.0 < (take.root[-1, 2] - take.root[0, 2]) / seconds < 1.4  # m/s
    assert feet[..., 1].min() > -0.05
    assert feet[..., 1].min(axis=1).max() < 0.08  # one foot is always down
