from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from mpsnet_cli.errors import InputError
from mpsnet_cli.training.config import (
    Data,
    Network,
    Schedule,
    TrainConfig,
    flatten,
    load_config,
)

EXAMPLE = ROOT / "examples" / "train.yaml"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files that the configs below name."""
    for name in ("a.npz", "b.npz", "start.safetensors"):
        (tmp_path / name).touch()
    return tmp_path


def load(folder: Path, text: str) -> TrainConfig:
    path = folder / "config.yaml"
    path.write_text(text)
    return load_config(path, TrainConfig)


def with_(section: str, **fields: Any) -> str:
    """A sound config but for these fields."""
    content: dict[str, Any] = {"data": {"three_d": "a.npz", "validation": ["b.npz"]}}
    if section:
        content.setdefault(section, {}).update(fields)
    else:
        content.update(fields)
    return yaml.safe_dump(content)


def test_the_least_config_has_the_papers_schedule(folder: Path) -> None:
    config = load(folder, with_(""))
    assert config == TrainConfig(Data((folder / "a.npz",), (folder / "b.npz",)))
    assert config.schedule == Schedule(30, 500, 32, 5e-5, 1e-4, 1e-4, 5, 0.1)
    assert config.losses == (300, 300, 60, 0.06, 0.5)
    assert int(config.schedule.batch_size * config.data.share_2d) == 19


def test_the_example_names_every_field_with_its_default() -> None:
    text = EXAMPLE.read_text()
    # Its files are made by commands, not there yet.
    content = yaml.safe_load(text)
    defaults = flatten(TrainConfig(Data((), ())))
    written: dict[str, Any] = {}
    for section, value in content.items():
        if isinstance(value, dict):
            written |= {f"{section}.{name}": field for name, field in value.items()}
        else:
            written[section] = value
    assert written.keys() == defaults.keys()
    files = {"data.three_d", "data.validation", "data.prior", "network.weights"}
    for name in defaults.keys() - files:
        kind = type(defaults[name])
        value = written[name] if defaults[name] is None else kind(written[name])
        assert value == defaults[name], name


def test_the_example_is_read(tmp_path: Path) -> None:
    (tmp_path / "examples").mkdir()
    (tmp_path / "out").mkdir()
    for name in ("train.npz", "validation.npz", "start.safetensors"):
        (tmp_path / "out" / name).touch()
    path = tmp_path / "examples" / "train.yaml"
    path.write_text(EXAMPLE.read_text())
    config = load_config(path, TrainConfig)
    assert config.data.three_d == config.data.prior
    assert config.data.three_d[0].samefile(tmp_path / "out" / "train.npz")
    assert config.network == Network(weights=config.network.weights)


def test_values_arrive(folder: Path) -> None:
    text = """
        seed: 7
        precision: bf16
        data: {three_d: [a.npz, b.npz], validation: b.npz, stride: 4}
        network: {weights: start.safetensors, encoder: fresh, attention: nonlocal}
        losses: {pose: 1}
        schedule: {learning_rate: 3e-4, patience: 0}
    """
    config = load(folder, text)
    assert config.seed == 7
    assert config.precision == "bf16"
    assert config.data.three_d == (folder / "a.npz", folder / "b.npz")
    assert config.network == Network(folder / "start.safetensors", "fresh", "nonlocal")
    assert config.losses == (300, 300, 1, 0.06, 0.5)
    assert config.schedule == Schedule(learning_rate=3e-4, patience=0)


def test_paths_start_from_the_config(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    assert load(folder, with_("")).data.three_d == (folder / "a.npz",)
    absolute = with_("data", three_d=[str(folder / "b.npz")])
    assert load(folder, absolute).data.three_d == (folder / "b.npz",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (with_("", sede=1), "there is no field sede; the nearest is seed."),
        (with_("", epochs=1), "there is no field epochs; the nearest is schedule.epochs."),
        (with_("data", three_dee=1), "data.three_dee; the nearest is data.three_d."),
        (with_("schedule", learningrate=1), "the nearest is schedule.learning_rate."),
        (with_("losses", joints_2d=1), "the nearest is losses.joints2d."),
        (with_("", dat=1), "the nearest is data."),
        ("data: {three_d: a.npz}", "the field data.validation is missing."),
        ("seed: 1", "the field data is missing."),
        ("data: 1", "data is not a table of fields."),
        ("- 1", "the file is not a table of fields."),
        ("", "the file is not a table of fields."),
        (with_("data", three_d=[1]), "data.three_d is 1, and must be the name of a file."),
        (with_("schedule", epochs=0), "schedule.epochs is 0, and must be a whole number from 1"),
        (with_("schedule", epochs=1.5), "schedule.epochs is 1.5"),
        (with_("schedule", epochs=True), "schedule.epochs is True"),
        (with_("schedule", epochs="9"), "schedule.epochs is '9'"),
        (with_("schedule", learning_rate="fast"), "learning_rate is 'fast', and must be a number"),
        (with_("schedule", learning_rate=float("nan")), "learning_rate is nan"),
        (with_("losses", pose=-1), "losses.pose is -1, and must be a number from 0 to 1000000."),
        (
            with_("", precision="fp8"),
            "precision is 'fp8', and must be one of auto, fp32, bf16,",
        ),
        (with_("network", attention=[]), "network.attention is [], and must be one of"),
        (with_("", name="a\tb"), "name is 'a\\tb', and must be plain text."),
        ("data: {three_d: [", "is not a readable YAML file"),
        ("x: !!python/object/apply:os.system [ls]", "is not a readable YAML file"),
        ("[" * 5000, "is not a readable YAML file"),
    ],
)
def test_mistakes_are_named(folder: Path, text: str, words: str) -> None:
    with pytest.raises(InputError) as error:
        load(folder, text)
    assert words in error.value.message
    assert len(error.value.message.splitlines()) == 1


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("3dpw_train_db.pt", ("virtualhumans.mpi-inf.mpg.de/3DPW", "non-commercial", "TCMR")),
        ("mpii3d_train_scale12_db.pt", ("vcai.mpi-inf.mpg.de/3dhp-dataset", "research only")),
        ("3dhp.npz", ("vcai.mpi-inf.mpg.de/3dhp-dataset", "research only")),
        ("h36m_train_25fps_db.pt", ("vision.imar.ro/human3.6m", "registration")),
        ("insta_train_db.h5", ("akanazawa/human_dynamics", "research only")),
        ("pennaction_train_db.pt", ("dreamdragon.github.io/PennAction", "research only")),
        ("posetrack_train_db.pt", ("posetrack.net", "registration")),
        ("AMASS", ("amass.is.tue.mpg.de", "registration")),
        ("mine.npz", ("mpsnet features", "mpsnet synth")),
        ("mine.pt", ("mpsnet detector", "databases")),
        ("crops", ("mpsnet synth",)),
    ],
)
def test_a_missing_data_set_says_where_it_is(
    folder: Path, file: str, words: tuple[str, ...]
) -> None:
    with pytest.raises(InputError, match="is not there") as error:
        load(folder, with_("data", two_d=[file]))
    assert all(word in error.value.message for word in (file, *words))


def test_missing_weights_and_config(folder: Path) -> None:
    with pytest.raises(InputError, match=r"none.safetensors, which is not there: `mpsnet weights`"):
        load(folder, with_("network", weights="none.safetensors"))
    with pytest.raises(InputError, match=r"nothing.yaml is not a readable YAML file"):
        load_config(folder / "nothing.yaml", TrainConfig)


def test_flatten_names_everything(folder: Path) -> None:
    flat = flatten(load(folder, with_("")))
    assert flat["data.three_d"] == ["a.npz"]
    assert flat["losses.betas"] == 0.06
    assert flat["seed"] == 0
    nested = asdict(load(folder, with_("")))
    sections = {"data", "network", "losses", "schedule"}
    fields = sum(len(nested[name]) for name in sections) + len(nested) - len(sections)
    assert len(flat) == fields
