"""A clip whose features are shared between processes gets the result of one that is not."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from clips import make_clip
from test_kept import ARGUMENTS, BODY, FRAMES, GROUPS, Sensitive, attempt

from mpsnet_cli.job import keep_share, keep_tracks, run_clip
from mpsnet_cli.progress import Reporter
from mpsnet_cli.video import probe

NPZ = "person_01.npz", "person_02.npz"


@pytest.mark.parametrize("of", [1, 3, 7])
def test_shares_at_once_leave_nothing_to_compute(
    of: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = make_clip(tmp_path / "clip.mp4", frames=FRAMES)
    attempt(clip, tmp_path / "whole", tmp_path / "whole.log", patch=monkeypatch.setattr)
    video, folder, log = probe(clip), tmp_path / "shared", tmp_path / "shared.log"
    model = Sensitive(log)
    options = {"model": model, "body": BODY}
    job = keep_tracks(video, folder, ARGUMENTS, **options, report=Reporter())  # type: ignore[arg-type]
    assert job

    def share(number: int) -> None:
        keep_share(video, folder, ARGUMENTS, job, model=model, share=number, of=of,
                   report=Reporter())  # type: ignore[arg-type]  # fmt: skip

    with ThreadPoolExecutor(of) as pool:
        list(pool.map(share, range(of)))
    assert log.read_text().split() == ["backbone"] * GROUPS
    report = Reporter()
    _, manifest = run_clip(video, folder, ARGUMENTS, **options, prepared=True, report=report)  # type: ignore[arg-type]
    assert len(log.read_text().split()) == GROUPS
    assert not manifest["complete"]  # the detector's losses are told here, too
    assert not any("interrupted" in text for text in manifest["warnings"])
    for name in NPZ:
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert keep_tracks(video, folder, ARGUMENTS, **options, report=Reporter()) is None  # type: ignore[arg-type]


def test_shares_on_another_kind_of_device_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = make_clip(tmp_path / "clip.mp4", frames=FRAMES)
    attempt(clip, tmp_path / "whole", tmp_path / "whole.log", patch=monkeypatch.setattr)
    model = Sensitive(tmp_path / "log")
    folder, video = tmp_path / "shared", probe(clip)
    job = keep_tracks(video, folder, ARGUMENTS, model=model, body=BODY, report=Reporter())  # type: ignore[arg-type]
    assert job
    model.precision = "bf16"
    keep_share(video, folder, ARGUMENTS, job, model=model, share=0, of=1, report=Reporter())  # type: ignore[arg-type]
    assert not (tmp_path / "log").exists()
