"""Weight files: where they are, what they say of themselves, and how they become a Model.

A file in format "mpsnet-weights/1" is one safetensors file with every tensor of MPSNet, its numbers
float32 or, all of them, float16. Its header carries one JSON text, under the key "mpsnet", with the
fields of `WeightsInfo`. torch is loaded only by the functions that touch tensors, so that listing
files is quick.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs
from safetensors import SafetensorError, safe_open

from mpsnet_cli.errors import OutputError, WeightsError
from mpsnet_cli.model.config import MPSNetConfig, WeightsInfo
from mpsnet_cli.packaged import checked_sha256, packaged_folder
from mpsnet_cli.progress import Reporter

if TYPE_CHECKING:
    from torch import Tensor

    from mpsnet_cli.model.inference import Model, Precision
    from mpsnet_cli.model.mpsnet import MPSNet

FORMAT = "mpsnet-weights/1"
METADATA_KEY = "mpsnet"
VARIABLE = "MPSNET_WEIGHTS"
FIELDS = {"name": str, "trained": bool, "licence": str, "sources": dict, "note": str}
PARTLY_TRAINED = "partly trained"  # what the name of such weights says, and so every output
LONGEST_TEXT = 2000  # characters, of any text in a header


@dataclass(frozen=True)
class KnownWeights:
    """A weight file that this project can get or make: its name, and what it is."""

    file: str
    name: str
    licence: str
    get: str


OFFICIAL = KnownWeights(
    file="mps-net.safetensors",
    name="MPS-Net, official release (Wei et al., CVPR 2022)",
    licence="non-commercial research (MPS-Net, SPIN and SMPL licences)",
    get="mpsnet weights pull",
)
STARTER = KnownWeights(
    file="mpsnet-starter.safetensors",
    name="starter (synthetic)",
    licence="MIT (motions: CMU Graphics Lab Motion Capture Database)",
    get="ships with mpsnet-cli",
)
UNTRAINED = KnownWeights(
    file="untrained.safetensors",
    name="untrained (random)",
    licence="CC0-1.0",
    get="mpsnet weights init -o untrained.safetensors",
)
KNOWN = (OFFICIAL, STARTER, UNTRAINED)


def user_folder() -> Path:
    """Return the folder for weights in the user's data folder; it may not exist yet."""
    return platformdirs.user_data_path("mpsnet-cli", appauthor=False) / "weights"


def available() -> list[tuple[str, Path]]:
    """List the weight files that need not be named, as (place, file), the default first.

    That is $MPSNET_WEIGHTS, then the user data folder with the official weights first, then the
    packaged starter. Files called untrained come after all of these: they would take the place of
    something trained only because they were once made, and who wants them can name them.
    """
    named = [(f"${VARIABLE}", Path(value))] if (value := os.environ.get(VARIABLE)) else []
    found = [
        (place, path)
        for place, folder in (("user data folder", user_folder()), ("packaged", packaged_folder()))
        if folder
        for path in sorted(folder.glob("*.safetensors"))
    ]
    found.sort(key=_rank)
    return named + found


def _rank(found: tuple[str, Path]) -> tuple[bool, bool, bool]:
    place, path = found
    return path.name == UNTRAINED.file, place == "packaged", path.name != OFFICIAL.file


def find_weights(weights: str | Path | None = None) -> Path:
    """Find a weight file: the path or name given, else the first of `available`.

    A name stands for the file of that name, with or without ".safetensors", in one of the folders.
    Raises WeightsError where there is none.
    """
    found = available()
    if weights is None:
        if not found:
            raise WeightsError(
                "No weights found: get the official ones with `mpsnet weights pull`, convert files "
                "that you have with `mpsnet weights import`, or make untrained ones with "
                "`mpsnet weights init`; `--weights FILE` takes a file from anywhere."
            )
        place, path = found[0]
        if not path.is_file():
            raise WeightsError(f"There is no weight file {path}, which {place} names.")
        return path
    if Path(weights).is_file():
        return Path(weights)
    for _, path in found:
        if str(weights) in {path.name, path.stem}:
            return path
    raise WeightsError(
        f"There is no weight file {weights}; `mpsnet weights list` shows what is here."
    )


def read_info(path: Path) -> WeightsInfo:
    """Read who a weight file is: its header, checked, and its sha256; no tensor is loaded.

    Raises WeightsError for a file that is not of our format, whose header is unsound, or that
    shipped with the tool and has changed since.
    """
    try:
        sha256 = checked_sha256(path)
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} is not a readable safetensors file: {error}.") from error
    if METADATA_KEY not in metadata:
        raise WeightsError(
            f"{path} does not say that it holds MPS-Net weights; "
            "`mpsnet weights import` converts the official files."
        )
    try:
        header = json.loads(metadata[METADATA_KEY])
        fields = _checked(header)
        config = MPSNetConfig.from_json(header["config"])
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"The header of {path} is unsound: {error}.") from error
    return WeightsInfo(path=path, config=config, sha256=sha256, **fields)


def _checked(header: Any) -> dict[str, Any]:
    """Return the plain fields of a decoded header, or raise ValueError naming what is wrong."""
    if not isinstance(header, dict):
        raise ValueError("it is not a table")
    if header.get("format") != FORMAT:
        raise ValueError(f"its format is {header.get('format')!r}, this version reads {FORMAT!r}")
    if wrong := sorted(header.keys() ^ {"format", "config", *FIELDS}):
        raise ValueError(f"key {wrong[0]!r} is {'unknown' if wrong[0] in header else 'missing'}")
    for name, kind in FIELDS.items():
        if type(header[name]) is not kind:
            raise ValueError(f"{name} is {header[name]!r}, and must be a {kind.__name__}")
    sources: dict[Any, Any] = header["sources"]
    for text in (header["name"], header["licence"], header["note"], *sources, *sources.values()):
        # What is shown on terminals must not be able to steer them.
        if type(text) is not str or not text.isprintable() or len(text) > LONGEST_TEXT:
            raise ValueError(f"{str(text)[:40]!r} is not plain text")
    return {name: header[name] for name in FIELDS}


def load_model(
    weights: str | Path | None = None,
    *,
    device: str = "auto",
    precision: Precision = "auto",
    batch_size: int | None = None,
    report: Reporter | None = None,
) -> Model:
    """Load a weight file (see `find_weights`) and make it ready to run.

    Untrained and partly trained weights are warned of. Raises WeightsError for a file that is
    missing or does not fit, DeviceError for a device or precision that this machine lacks.
    """
    from mpsnet_cli.model.inference import Model

    report = report or Reporter()
    info = read_info(find_weights(weights))
    if not info.trained:
        report.warn(
            f"The weights {info.path.name} are untrained: "
            "the result shows how the tool works, not how people moved."
        )
    elif PARTLY_TRAINED in info.name:
        report.warn(f"The weights {info.path.name} are {PARTLY_TRAINED}: expect less of them.")
    return Model(
        load_network(info),
        info,
        device=device,
        precision=precision,
        batch_size=batch_size,
        report=report,
    )


def load_network(info: WeightsInfo) -> MPSNet:
    """Load the network of a weight file, strictly: all tensors, no others, right shapes.

    It is float32, whichever the file is. Raises WeightsError naming the tensor at fault.
    """
    import torch
    from safetensors.torch import load_file

    from mpsnet_cli.model.mpsnet import MPSNet

    with torch.device("meta"):
        network = MPSNet(info.config)
    state = load_file(info.path)
    floating = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
    if all(tensor.dtype == torch.float16 for tensor in floating.values()):
        state |= {name: tensor.float() for name, tensor in floating.items()}
    check_state(state, network, source=info.path)
    network.load_state_dict(state, assign=True)
    return network.eval()


def check_state(state: Mapping[str, Tensor], network: MPSNet, *, source: str | Path) -> None:
    """Raise WeightsError unless tensors fit a network: names, shapes, types, all of them finite."""
    expected = network.state_dict()
    if wrong := sorted(state.keys() ^ expected.keys()):
        what = "holds an unknown" if wrong[0] in state else "lacks the"
        raise WeightsError(f"{source} {what} tensor {wrong[0]} ({len(wrong)} do not match).")
    for name, tensor in state.items():
        have, want = ((tuple(t.shape), str(t.dtype)[6:]) for t in (tensor, expected[name]))
        if have != want:
            raise WeightsError(
                f"{source}: tensor {name} is {have[1]} {have[0]}, and must be {want[1]} {want[0]}."
            )
        if not tensor.isfinite().all():
            raise WeightsError(f"{source}: tensor {name} is corrupt: not all of it is finite.")


def save_network(
    network: MPSNet,
    path: Path,
    *,
    name: str,
    trained: bool,
    licence: str,
    sources: Mapping[str, str],
    note: str,
    half: bool = False,
    overwrite: bool,
) -> WeightsInfo:
    """Write a weight file, float16 if `half`; it appears under its name only once complete.

    Equal networks and texts give equal bytes. Raises WeightsError for a text that no header may
    hold or a number that float16 cannot, and OutputError where the file cannot be written, or where
    it exists and `overwrite` is off.
    """
    from safetensors.torch import save

    refuse_existing(path, overwrite=overwrite)
    header = {
        "format": FORMAT,
        "name": name,
        "trained": trained,
        "licence": licence,
        "sources": dict(sources),
        "note": note,
        "config": asdict(network.config),
    }
    try:
        _checked(header)
    except ValueError as error:
        raise WeightsError(f"{path} is not written: {error}.") from error
    state = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
    if half:
        state = {key: _rounded(key, tensor) for key, tensor in state.items()}
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(save(state, {METADATA_KEY: json.dumps(header)}))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise OutputError(f"Cannot write {path}: {error}.") from error
    finally:
        part.unlink(missing_ok=True)
    return read_info(path)


def _rounded(name: str, tensor: Tensor) -> Tensor:
    """Round a tensor to float16, or raise WeightsError where that would make it infinite.

    Numbers from 6e-5 on keep eleven bits, smaller ones are off by up to 3e-8: little beside the
    1e-5 that batch norms add to variances, the smallest of what is stored.
    """
    if not tensor.is_floating_point():
        return tensor
    rounded = tensor.half()
    if not rounded.isfinite().all():
        raise WeightsError(
            f"Tensor {name} reaches {tensor.abs().max():.6g}, and float16 ends at 65504: "
            "these weights can only be stored as float32."
        )
    return rounded


def pack_weights(
    source: Path,
    output: Path,
    *,
    name: str | None = None,
    licence: str | None = None,
    note: str | None = None,
    overwrite: bool = False,
) -> WeightsInfo:
    """Write a weight file anew as float16, in half the bytes; texts not given are the source's.

    The source joins its own sources. Raises as `read_info`, `load_network` and `save_network`.
    """
    refuse_existing(output, overwrite=overwrite)
    info = read_info(source)
    return save_network(
        load_network(info),
        output,
        name=info.name if name is None else name,
        trained=info.trained,
        licence=info.licence if licence is None else licence,
        sources={**info.sources, info.path.name: info.sha256},
        note=info.note if note is None else note,
        half=True,
        overwrite=overwrite,
    )


def save_untrained(path: Path, *, seed: int, overwrite: bool = False) -> WeightsInfo:
    """Write random weights; equal seeds give equal files. Raises OutputError as `save_network`."""
    from mpsnet_cli.model.untrained import untrained_network

    refuse_existing(path, overwrite=overwrite)
    return save_network(
        untrained_network(seed),
        path,
        name=f"untrained (random, seed {seed})",
        trained=False,
        licence=UNTRAINED.licence,
        sources={},
        note="made by `mpsnet weights init`",
        overwrite=overwrite,
    )


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Raise OutputError where a file exists that may not be overwritten, or can never be."""
    if path.is_dir():
        raise OutputError(f"{path} is a folder: give the name of a file to write.")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists already; --overwrite replaces it.")
