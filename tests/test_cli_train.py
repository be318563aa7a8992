from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mpsnet_cli.cli.train import train
from mpsnet_cli.progress import Reporter
from mpsnet_cli.training.config import Data, TrainConfig
from mpsnet_cli.training.loop import Epoch

CONFIG = TrainConfig(Data((), ()))
EPOCHS = [
    Epoch(1, 500, 5e-5, 12.5, 61.24, 90.5, None, 7.41, best=True),
    Epoch(2, 1000, 5e-5, 11.0, 62.0, 91.0, 110.0, 7.0, best=False),
]


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(train, [str(argument) for argument in arguments])


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stand in for the work, and note how it was asked for."""
    noted: list[Any] = []

    def run(*arguments: Any, **keywords: Any) -> Iterator[Epoch]:
        assert isinstance(keywords.pop("report"), Reporter)
        noted.append((arguments, keywords))
        yield from EPOCHS

    monkeypatch.setattr("mpsnet_cli.training.config.load_config", lambda path, _: (path, CONFIG)[1])
    monkeypatch.setattr("mpsnet_cli.training.loop.train", run)
    return noted


def test_arguments_arrive(calls: list[Any], tmp_path: Path) -> None:
    result = call("some.yaml", "-o", tmp_path, "--resume")
    assert result.exit_code == 0, result.output
    assert calls == [((CONFIG, tmp_path), {"resume": True})]
    assert result.output.splitlines() == [
        "epoch 1: loss 12.500, PA-MPJPE 61.2 mm, MPJPE 90.5 mm, acceleration 7.4 mm/frame², "
        "the best so far",
        "epoch 2: loss 11.000, PA-MPJPE 62.0 mm, MPJPE 91.0 mm, acceleration 7.0 mm/frame²",
    ]


def test_the_folder_is_named_after_the_config(calls: list[Any]) -> None:
    assert call("configs/some.yaml", "-q").output == f"{Path('out/some')}\n"
    assert calls == [((CONFIG, Path("out/some")), {"resume": False})]


def test_events(calls: list[Any]) -> None:
    events = [json.loads(line) for line in call("some.yaml", "--json").output.splitlines()]
    assert [event["event"] for event in events] == ["epoch", "epoch"]
    assert events[0]["pa_mpjpe"] == 61.24
    assert events[0]["best"] is True
    assert len(calls) == 1


def test_errors_are_one_sentence(tmp_path: Path) -> None:
    result = call(tmp_path / "none.yaml")
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert len(result.output.splitlines()) == 1
