from __future__ import annotations

import os
from pathlib import Path

from mpsnet_cli.batch.landing import Landing


def test_a_file_counts_once_it_has_stopped_growing(tmp_path: Path) -> None:
    now = 0.0
    landing = Landing(settle=5, clock=lambda: now)
    clip = tmp_path / "a.mp4"
    assert landing.take([clip]) == []  # not there yet
    clip.write_bytes(b"1")
    for now, grows in ((1, False), (4, True), (6, False), (8.9, False)):
        if grows:
            clip.write_bytes(b"12")
        assert landing.take([clip]) == [], now
    now = 9
    assert landing.take([clip]) == [clip]
    now = 99
    assert landing.take([clip]) == []


def test_a_changed_file_counts_again(tmp_path: Path) -> None:
    now = 0.0
    landing = Landing(settle=5, clock=lambda: now)
    clip = tmp_path / "a.mp4"
    clip.touch()
    landing.take([clip])
    now = 5
    assert landing.take([clip]) == [clip]
    os.utime(clip, ns=(1, 1))  # the same size
    assert landing.take([clip]) == []
    now = 10
    assert landing.take([clip]) == [clip]


def test_what_goes_away_begins_anew(tmp_path: Path) -> None:
    now = 0.0
    landing = Landing(settle=5, clock=lambda: now)
    clip = tmp_path / "a.mp4"
    clip.touch()
    landing.take([clip])
    stamp = clip.stat()
    clip.unlink()
    now = 3
    landing.take([clip])
    clip.touch()
    os.utime(clip, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    now = 6
    assert landing.take([clip]) == []
    now = 11
    assert landing.take([clip]) == [clip]
