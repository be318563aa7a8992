from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from toy_training import WIDTH, make_small

from benchmarks import ablation
from mpsnet_cli.body import load_body
from mpsnet_cli.datasets import save_sequences
from mpsnet_cli.geometry import axis_angle_to_matrix
from mpsnet_cli.training.config import Schedule


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    make_small(monkeypatch)
    monkeypatch.setattr(ablation, "WIDTH", WIDTH)


def test_features_hang_on_the_body_and_are_the_same_for_all() -> None:
    body = load_body("free-1")
    few = ablation.synthetic_sequences(2, body, split="train", frames=40, width=WIDTH)
    many = ablation.synthetic_sequences(4, body, split="train", frames=40, width=WIDTH)
    for one, other in zip(few, many, strict=False):
        assert np.array_equal(one.features, other.features)
        assert one.pose is not None
        assert other.pose is not None
        assert np.array_equal(one.pose, other.pose)
    held_out = ablation.synthetic_sequences(1, body, split="held-out", frames=40, width=WIDTH)
    assert not np.array_equal(held_out[0].features, few[0].features)
    for s in many:
        assert s.joints3d is not None
        assert s.joints2d is not None
        assert s.joints3d[:, 15, 1].mean() < s.joints3d[:, [7, 8], 1].mean()  # y is down
        assert np.abs(s.joints2d[..., :2]).max() < 1.5
        steps = np.linalg.norm(np.diff(s.features, axis=0), axis=1)
        assert steps.min() > 0  # noise
        assert 2 < np.linalg.norm(s.features, axis=1).mean() < 3 * ablation.NORM


def test_the_mean_person_is_between_its_makers() -> None:
    body = load_body("free-1")
    people = ablation.synthetic_sequences(3, body, split="train", frames=20, width=WIDTH)
    mean = ablation.mean_person(people)
    rotmats = np.concatenate([
        axis_angle_to_matrix(s.pose.reshape(-1, 24, 3)) for s in people if s.pose is not None
    ])  # fmt: skip
    found = mean.rotmats[0].numpy()
    assert np.allclose(found @ found.swapaxes(1, 2), np.eye(3), atol=1e-5)
    total = ((rotmats - found) ** 2).sum()
    for other in rotmats[::10]:
        assert total <= ((rotmats - other) ** 2).sum()
    assert (ablation.errors_of_mean(people, people, body) > 0).all()


@pytest.mark.parametrize("row", ablation.TABLE_3, ids=lambda row: row.name)
def test_every_network_of_the_table_trains(row: ablation.Row, tmp_path: Path) -> None:
    body = load_body("free-1")
    for name, split in (("train", "train"), ("validation", "held-out")):
        people = ablation.synthetic_sequences(2, body, split=split, frames=20, width=WIDTH)  # type: ignore[arg-type]
        save_sequences(tmp_path / f"{name}.npz", people)
    schedule = Schedule(epochs=1, steps_per_epoch=2, batch_size=2)
    errors = ablation.errors_of(row, tmp_path, seed=0, schedule=schedule)
    assert errors.shape == (4,)
    assert np.isfinite(errors).all()


def test_the_paper_is_quoted_rightly(shared: Path) -> None:
    text = (shared / "reference" / "mps-net-paper.md").read_text()
    table = text.partition("\n\nTable 3.")[0].splitlines()[-4:]
    numbers = [re.findall(r"\b\d+\.\d\b", line) for line in table]
    assert numbers == [[str(value) for value in row.paper] for row in ablation.TABLE_3]


def test_cells() -> None:
    assert ablation._cells(np.array([[1.0, 2.25]])) == "1.0 | 2.2"
    assert ablation._cells(np.array([[1.0], [3.0]])) == "2.0 ± 1.4"
