from __future__ import annotations

import numpy as np
import pytest
from conftest import DATA

from mpsnet_cli.windows import TARGET, WINDOW, Edges, window_indices


@pytest.mark.parametrize("length", [16, 25, 40])
def test_repeat_matches_the_official_windows(length: int) -> None:
    golden = np.load(DATA / "goldens" / "g_windows.npz")[f"win{length}"]
    assert (window_indices(np.arange(length), edges="repeat") == golden).all()


@pytest.mark.parametrize("edges", ["hold", "repeat"])
@pytest.mark.parametrize("length", [1, 2, 3, 15, 16, 17, 100])
def test_every_length_gives_one_window_a_frame(length: int, edges: Edges) -> None:
    windows = window_indices(np.arange(length), edges=edges)
    assert windows.shape == (length, WINDOW)
    assert (windows[:, TARGET] == np.arange(length)).all()
    assert windows.min() == 0
    assert windows.max() == length - 1


def test_hold_takes_the_nearest_real_frame() -> None:
    windows = window_indices(np.arange(30))
    assert windows[0].tolist() == [0] * 8 + list(range(8))
    assert windows[29].tolist() == list(range(21, 30)) + [29] * 7
    assert windows[12].tolist() == list(range(4, 20))


@pytest.mark.parametrize("edges", ["hold", "repeat"])
def test_windows_never_bridge_a_hole(edges: Edges) -> None:
    frame_ids = np.array([5, 6, 7, 20, 21, *range(100, 140), 150])
    run = np.cumsum(np.diff(frame_ids, prepend=frame_ids[0]) > 1)
    windows = window_indices(frame_ids, edges=edges)
    assert (run[windows] == run[:, None]).all()
    alone = window_indices(np.arange(40), edges=edges)
    assert (windows[5:45] == alone + 5).all()
