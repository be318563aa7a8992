"""The batch on a real Ray cluster of two nodes, one of which is lost in the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray_work
from batch_work import PoolHere
from clips import make_clip, picture
from test_batch import Heard

from mpsnet_cli.batch import batch, plan
from mpsnet_cli.batch.batch import Conclusion, Request, plan_batch, run_batch
from mpsnet_cli.batch.unit import Models
from mpsnet_cli.errors import DeviceError, OutputError
from mpsnet_cli.job import Arguments
from mpsnet_cli.model.config import MPSNetConfig
from mpsnet_cli.model.untrained import untrained_network
from mpsnet_cli.packaged import file_sha256
from mpsnet_cli.weights import save_network

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'mpsnet-cli[ray]'")
from mpsnet_cli.batch import cluster as cluster_module  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray's
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

TESTS = Path(__file__).parent
NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "memory": 3 * 10**9}
LONG = 200  # frames
SPLIT = 65  # frames of a part: there are three


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A cluster whose nodes are processes here."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent)]))
        patch.setenv("OMP_NUM_THREADS", "1")
        cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        address = cluster.address
        try:
            cluster.second = cluster.add_node(**NODE)
            cluster.wait_for_nodes()
            # One job for all tests: the nodes' processes live as long, and load torch once.
            ray.init(cluster.address, log_to_driver=False, configure_logging=False)
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert address not in listing.stdout, "a process of a node was left behind"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    network = untrained_network(0, MPSNetConfig(crop_size=64))
    facts: Any = {"name": "tiny", "trained": False, "licence": "none", "sources": {}, "note": ""}
    save_network(network, path, overwrite=False, **facts)
    return Models(weights=str(path), body="free-1", precision="fp32")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for name, frames, first in (("a", 40, 0), ("b", 30, 50), ("c", 20, 90), ("long", LONG, 7)):
        make_clip(folder / f"{name}.mp4", pictures=[picture(first + k) for k in range(frames)])
    return folder


def request_of(inputs: Path, out: Path, models: Models, nodes: Any = None, **options: Any) -> Any:
    arguments = Arguments(boxes="full", overlay=False, meshes=False, renderer="cpu")
    if nodes:
        options |= {"engine": "ray", "address": nodes.address}
    return Request((inputs,), out, arguments, models, device="cpu", **options)


def run(request: Request, heard: Heard | None = None, **options: Any) -> tuple[Conclusion, Heard]:
    heard = heard or Heard()
    return run_batch(request, heard, **options), heard


@pytest.fixture(scope="module")
def expected(clips: Path, models: Models, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the local engine makes of the clips, without any split, with one thread as the nodes."""
    out = tmp_path_factory.mktemp("local")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "Pool", PoolHere)
        patch.setattr(batch, "Pool", PoolHere)
        patch.setattr(batch, "count_cores", lambda: 1)
        _, heard = run(request_of(clips, out, models, workers=1))
    assert set(heard.statuses.values()) == {"done"}
    return results(out)


def results(out: Path) -> dict[str, str]:
    """Return the sha256 of each result's bytes."""
    return {str(path.relative_to(out)): file_sha256(path) for path in out.rglob("*.npz")}


@pytest.fixture(autouse=True)
def _split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "SPLIT", SPLIT)
    monkeypatch.setattr(plan, "Pool", PoolHere)  # clips are looked at here


def test_results_are_those_of_the_local_engine(
    nodes: Any, clips: Path, models: Models, expected: dict[str, str], tmp_path: Path
) -> None:
    shares: dict[str, int] = {}
    blocks: list[int] = []

    class Looking(Heard):
        def on_progress(self, name: str, stage: str, done: int, total: int | None) -> None:
            super().on_progress(name, stage, done, total)
            if name == "long":
                shares[stage] = max(done, shares.get(stage, 0))
                blocks.append(len(list((tmp_path / ".long.part" / "features").glob("*"))))

    conclusion, heard = run(request_of(clips, tmp_path, models, nodes), Looking())
    assert heard.statuses == dict.fromkeys(("a", "b", "c", "long"), "done")
    assert not conclusion.unfinished
    assert results(tmp_path) == expected
    (found,) = heard.plans
    assert [(share.device, share.threads) for share in found.shares] == [("cpu", 1)] * 2
    assert shares["reconstruct"] == LONG
    assert max(blocks) >= 3  # kept before the last task took them up
    report = json.loads((tmp_path / "report.json").read_text())
    assert {each["name"]: each["status"] for each in report["clips"]} == heard.statuses
    manifest = json.loads((tmp_path / "long" / "clip.json").read_text())
    assert not any("interrupted" in text for text in manifest["warnings"])
    assert not list(tmp_path.glob(".*.part")) + list(tmp_path.glob(".*.seen"))


def test_an_interrupted_batch_goes_on(
    nodes: Any, clips: Path, models: Models, expected: dict[str, str], tmp_path: Path
) -> None:
    class Interrupting(Heard):
        def on_progress(self, name: str, stage: str, done: int, total: int | None) -> None:
            super().on_progress(name, stage, done, total)
            if stage == "reconstruct" and done:
                os.kill(os.getpid(), signal.SIGINT)

    conclusion, heard = run(request_of(clips / "long.mp4", tmp_path, models, nodes), Interrupting())
    assert conclusion.interrupted
    assert heard.statuses == {"long": "stopped"}
    assert list((tmp_path / ".long.part" / "features").iterdir())
    conclusion, heard = run(request_of(clips / "long.mp4", tmp_path, models, nodes))
    assert heard.plans[0].clips[0].state == "partial"
    assert heard.statuses == {"long": "done"}
    assert results(tmp_path) == {k: v for k, v in expected.items() if k.startswith("long")}


def test_a_clip_that_ends_its_process(nodes: Any, clips: Path, tmp_path: Path) -> None:
    for name in ("fatal", "frail", "odd", "sound"):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{name}.mp4").write_bytes((clips / "c.mp4").read_bytes())
    request = request_of(tmp_path / "in", tmp_path / "out", Models(), nodes)
    conclusion, heard = run(request, make=ray_work.make_mortal)
    assert heard.statuses == {"fatal": "failed", "frail": "done", "odd": "failed", "sound": "done"}
    logs = {path.stem: len(path.read_text()) for path in (tmp_path / "in").glob("*.log")}
    assert logs == {"fatal": 2, "frail": 2, "odd": 1, "sound": 1}
    assert {name: each.attempts for name, each in heard.outcomes.items()} == logs
    assert "died twice" in str(heard.outcomes["fatal"].sentence)
    assert heard.outcomes["odd"].sentence == "ZeroDivisionError: by me"
    assert any(text.startswith("frail: ") and "again" in text for text in heard.warnings)
    assert not conclusion.unfinished


def test_clips_and_results_behind_urls(
    nodes: Any,
    clips: Path,
    models: Models,
    expected: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("fsspec")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bucket = tmp_path / "bucket"
    (bucket / "in").mkdir(parents=True)
    for name in ("a.mp4", "b.mp4"):
        (bucket / "in" / name).write_bytes((clips / name).read_bytes())
    (bucket / "in" / "broken.mp4").write_text("not a video")
    request = request_of(Path(f"file://{bucket}/in"), Path(f"file://{bucket}/out"), models, nodes)
    _, heard = run(request)
    assert heard.statuses == {"a": "done", "b": "done", "broken": "failed"}
    assert f"file://{bucket}/in/broken.mp4" in str(heard.outcomes["broken"].sentence)
    assert results(bucket / "out") == {k: v for k, v in expected.items() if k[0] in "ab"}
    manifest = json.loads((bucket / "out" / "a" / "clip.json").read_text())
    assert manifest["input"]["path"] == manifest["source"]["url"] == f"file://{bucket}/in/a.mp4"
    report = json.loads((bucket / "out" / "report.json").read_text())
    assert {each["name"]: each["folder"] for each in report["clips"]} == {
        "a": "a", "b": "b", "broken": None
    }  # fmt: skip
    assert "data:image/jpeg" in (bucket / "out" / "report.html").read_text()
    heard = Heard()
    plan_batch(request, heard)
    states = {each.name: each.state for each in heard.plans[0].clips}
    assert states == {"a": "done", "b": "done", "broken": "new"}


def test_wrong_requests_get_one_sentence(
    nodes: Any, clips: Path, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_of(clips, tmp_path, models, nodes)
    with pytest.raises(DeviceError, match="No node"):
        run(Request(request.inputs, tmp_path, device="cuda", engine="ray", address=nodes.address))
    monkeypatch.setattr(cluster_module, "look", ray_work.see_nothing)
    with pytest.raises(OutputError, match="does not see"):
        run(request)


def test_nodes_too_small_for_a_task(
    nodes: Any, clips: Path, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, heard = request_of(clips, tmp_path, models, nodes), Heard()
    plan_batch(request, heard)
    assert not any("No node" in text for text in heard.warnings)
    monkeypatch.setattr(cluster_module, "MEMORY", 9e9)
    plan_batch(request, heard)
    assert [text for text in heard.warnings if "No node" in text] == [
        "No node of the cluster has what a task takes (processors: 1, memory: 9 GB): clips wait "
        "until one joins it."
    ]


def test_a_node_is_lost_in_the_middle(
    nodes: Any, clips: Path, models: Models, expected: dict[str, str], tmp_path: Path
) -> None:
    """The last test, as the cluster has one node from then on."""

    class Losing(Heard):
        is_lost = False

        def on_progress(self, name: str, stage: str, done: int, total: int | None) -> None:
            super().on_progress(name, stage, done, total)
            working = {event[1] for event in self.events if event[0] == "progress"}
            if not self.is_lost and len(working - self.statuses.keys()) > 1:
                self.is_lost = True
                nodes.remove_node(nodes.second, allow_graceful=False)

    heard = Losing()
    conclusion, _ = run(request_of(clips, tmp_path, models, nodes), heard)
    assert heard.is_lost
    assert heard.statuses == dict.fromkeys(("a", "b", "c", "long"), "done")
    assert not conclusion.unfinished
    # Whether a clip was begun again hangs on what Ray had begun on the node by then.
    assert results(tmp_path) == expected
