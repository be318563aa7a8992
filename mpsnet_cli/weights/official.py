"""The official release's weights: fetch the archive, read its two files safely, convert them.

mpsnet_model_best.pth.tar holds the temporal encoder and the regressor,
spin_model_checkpoint.pth.tar the backbone. Both are pickles, which could run code: they are read
with torch's restricted unpickler.
"""

from __future__ import annotations

import re
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from textwrap import shorten
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from mpsnet_cli.errors import OutputError, WeightsError
from mpsnet_cli.model.config import MPSNetConfig, WeightsInfo
from mpsnet_cli.model.mpsnet import MPSNet
from mpsnet_cli.packaged import file_sha256
from mpsnet_cli.weights import (
    OFFICIAL,
    check_state,
    refuse_existing,
    save_network,
    user_folder,
)

MPSNET_FILE = "mpsnet_model_best.pth.tar"
SPIN_FILE = "spin_model_checkpoint.pth.tar"
ARCHIVE_ID = "11LXqYqjLKBn2wOcNbDT7DX0Hbj80ynbp"  # on Google Drive
ARCHIVE_URL = f"https://drive.google.com/uc?id={ARCHIVE_ID}"
ARCHIVE_PAGE = f"https://drive.google.com/file/d/{ARCHIVE_ID}"
ARCHIVE_LIMIT = 8 << 30  # bytes of all members, unpacked
# The demo crops at 1.1 times the box, then lets the camera refer to a square 1.2 times as large.
CONFIG = MPSNetConfig(crop_size=224, crop_scale=1.1, camera_scale=1.2, body="smpl")

# Where the official modules and buffers live in ours. Lengths-of-one axes fall away: the release
# has 1x1 convolutions over time where we have linear layers.
MPSNET_NAMES = {
    "nonlocalblock.conv_g": "encoder.moca.g",
    "nonlocalblock.conv_phi": "encoder.moca.phi",
    "nonlocalblock.conv_theta": "encoder.moca.theta",
    "nonlocalblock.conv_mask_forR": "encoder.moca.rho",
    "nonlocalblock.conv_mask": "encoder.moca.w_z",
    "nonlocalblock.attention.fc": "encoder.hafi.resize",
    "nonlocalblock.attention.attention": "encoder.hafi.attention",
    "regressor.fc1": "regressor.fc1",
    "regressor.fc2": "regressor.fc2",
    "regressor.decpose": "regressor.pose",
    "regressor.decshape": "regressor.betas",
    "regressor.deccam": "regressor.cam",
    "regressor.init_pose": "regressor.init_pose",
    "regressor.init_shape": "regressor.init_betas",
    "regressor.init_cam": "regressor.init_cam",
}
MPSNET_UNUSED = ("regressor.smpl",)  # the body model comes from elsewhere
SPIN_NAMES = {
    name: f"backbone.{name}" for name in ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
}
SPIN_UNUSED = (  # SPIN's own regressor, which MPS-Net replaces, and its body model
    "fc1",
    "fc2",
    "decpose",
    "decshape",
    "deccam",
    "init_pose",
    "init_shape",
    "init_cam",
    "smpl",
)


def import_official(
    mpsnet_file: Path, spin_file: Path, output: Path, *, overwrite: bool = False
) -> WeightsInfo:
    """Convert the two official checkpoints into one weight file.

    Raises WeightsError for a file that is not what it should be, or that holds anything but
    tensors and plain values; nothing in it is run. Raises OutputError where it cannot be written.
    """
    refuse_existing(output, overwrite=overwrite)
    network = convert(
        _read_state(mpsnet_file, "gen_state_dict"),
        _read_state(spin_file, "model"),
        sources=(mpsnet_file, spin_file),
    )
    return save_network(
        network,
        output,
        name=OFFICIAL.name,
        trained=True,
        licence=OFFICIAL.licence,
        sources={path.name: file_sha256(path) for path in (mpsnet_file, spin_file)},
        note="converted by `mpsnet weights import`",
        overwrite=overwrite,
    )


def pull_official(*, url: str = ARCHIVE_URL, overwrite: bool = False, quiet: bool) -> WeightsInfo:
    """Download the official archive and convert what is in it into the user data folder.

    `url` is of an archive, zip or tar, with the two official files anywhere in it. Raises
    WeightsError where it cannot be had, saying how to do the same by hand.
    """
    try:
        import gdown
    except ImportError as error:
        raise WeightsError(
            "Downloading needs gdown: install it with `pip install gdown`."
        ) from error

    output = user_folder() / OFFICIAL.file
    refuse_existing(output, overwrite=overwrite)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=".pull-") as folder:
            archive = Path(folder, "archive")
            try:
                gdown.download(url=url, output=str(archive), quiet=quiet, use_cookies=False)
            except (gdown.exceptions.DownloadError, OSError) as error:
                raise WeightsError(
                    f"Cannot download {url} ({shorten(str(error), 120)}): download {ARCHIVE_PAGE} "
                    f"with a browser, unpack it, and run "
                    f"`mpsnet weights import {MPSNET_FILE} {SPIN_FILE} -o '{output}'`."
                ) from error
            mpsnet_file, spin_file = unpack(archive, [MPSNET_FILE, SPIN_FILE], Path(folder))
            return import_official(mpsnet_file, spin_file, output, overwrite=overwrite)
    except OSError as error:
        raise OutputError(f"Cannot write to {output.parent}: {error}.") from error


def unpack(archive: Path, wanted: list[str], folder: Path) -> list[Path]:
    """Unpack the files called `wanted`, wherever they lie in a zip or tar archive, into `folder`.

    Nothing else is unpacked. Raises WeightsError for an archive that is corrupt, too large when
    unpacked, that points outside itself, or in which one of the files is missing.
    """
    found: dict[str, Path] = {}
    size = 0
    try:
        with _members(archive) as members:
            for name, length, open_member in members:
                path = PurePosixPath(name.replace("\\", "/"))
                size += length
                if path.is_absolute() or ".." in path.parts or size > ARCHIVE_LIMIT:
                    raise WeightsError(f"The archive is unsafe: its member {name!r} was refused.")
                if path.name in wanted:
                    with open_member() as source, (folder / path.name).open("wb") as target:
                        shutil.copyfileobj(source, target)
                    found[path.name] = folder / path.name
    except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, RuntimeError) as error:
        raise WeightsError(f"The archive is corrupt: {error}.") from error
    if missing := [name for name in wanted if name not in found]:
        raise WeightsError(f"The archive does not hold {' and '.join(missing)}.")
    return [found[name] for name in wanted]


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[tuple[str, int, Callable[[], IO[bytes]]]]]:
    """Open an archive for a walk over its plain files: name, unpacked bytes, how to open it."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            infos = (info for info in zipped.infolist() if not info.is_dir())
            yield ((info.filename, info.file_size, partial(zipped.open, info)) for info in infos)
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as tarred:
            yield (
                (member.name, member.size, partial(_open_tarred, tarred, member))
                for member in tarred
                if member.isreg()
            )
    else:
        raise WeightsError("What was downloaded is neither a zip nor a tar archive.")


def _open_tarred(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    file = archive.extractfile(member)
    assert file is not None  # it is a regular file
    return file


def convert(
    mpsnet_state: Mapping[str, Tensor],
    spin_state: Mapping[str, Tensor],
    *,
    sources: tuple[Path, Path] = (Path(MPSNET_FILE), Path(SPIN_FILE)),
) -> MPSNet:
    """Build the network from the two official state dicts; `sources` is what errors call them."""
    with torch.device("meta"):
        network = MPSNet(CONFIG)
    expected = {name: tensor.shape for name, tensor in network.state_dict().items()}
    state = {
        **_renamed(mpsnet_state, MPSNET_NAMES, MPSNET_UNUSED, expected, source=sources[0]),
        **_renamed(spin_state, SPIN_NAMES, SPIN_UNUSED, expected, source=sources[1]),
    }
    check_state(state, network, source=" with ".join(map(str, sources)))
    network.load_state_dict(state, assign=True)
    return network.eval()


def _renamed(
    state: Mapping[str, Tensor],
    names: Mapping[str, str],
    unused: tuple[str, ...],
    expected: Mapping[str, torch.Size],
    *,
    source: Path,
) -> dict[str, Tensor]:
    """Return the tensors of one official state dict under our names and in our shapes."""
    renamed = {}
    for name, tensor in state.items():
        # "a.b.weight" lies in the modules "a" and "a.b"; a buffer is a place of its own.
        places = {name[:end] for end, letter in enumerate(f"{name}.") if letter == "."}
        if places & set(unused):
            continue
        place = next((place for place in names if place in places), None)
        target = place and names[place] + name.removeprefix(place)
        if not target or target not in expected:
            raise WeightsError(f"{source} holds a tensor that MPS-Net does not have: {name}.")
        want = expected[target]
        if [n for n in tensor.shape if n != 1] != [n for n in want if n != 1]:
            raise WeightsError(
                f"{source}: tensor {name} is {tuple(tensor.shape)}, and does not fit {tuple(want)}."
            )
        renamed[target] = tensor.reshape(want)
    return renamed


def _read_state(path: Path, entry: str) -> dict[str, Tensor]:
    """Read one state dict out of a checkpoint file without running anything in it."""
    if not path.is_file():
        raise WeightsError(f"There is no file {path}.")
    # The release stores its best score as a numpy scalar; its module moved in numpy 2.
    scalar = np.float64(0).__reduce__()[0]
    allowed: list[Any] = [
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        *(type(np.dtype(kind)) for kind in (np.float32, np.float64)),
    ]
    try:
        with torch.serialization.safe_globals(allowed):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a corrupt pickle can raise anything
        # torch's own message would tell the user how to switch the protection off.
        asked = re.search(r"GLOBAL (\S+)", str(error))
        why = f"it asks for {asked[1]}, which no weights need" if asked else "it is corrupt"
        raise WeightsError(f"{path} was refused as a checkpoint: {why}.") from error
    state = checkpoint.get(entry) if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict):
        raise WeightsError(f"{path} holds no {entry!r}: is it the right one of the two files?")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise WeightsError(f"{path}: entry {name!r} of {entry!r} is not a tensor.")
    return state
