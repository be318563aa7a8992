"""People in single images: an ultralytics YOLO network, fed in batches.

Only ultralytics' network definitions, checkpoint reader, downloads and non-maximum suppression are
used: its predictor looks at one image at a time, and a third as fast. Importing ultralytics looks
for a network, writes settings and changes global switches; `quiet_ultralytics` keeps the writing in
our cache folder and puts the switches back.

A checkpoint may add a key "mpsnet" to ultralytics' own, a table whose "long_sides" and "nms_iou"
take the place of LONG_SIDES and NMS_IOU below for that network, and whose "double_iou" (else 1) is
from what overlap on `refine` takes two boxes for one person's.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import platformdirs
import torch
from numpy.typing import NDArray
from torch import nn

from mpsnet_cli.errors import WeightsError
from mpsnet_cli.model.backbone import FusedConv, can_fuse
from mpsnet_cli.model.inference import DTYPES, Precision, resolve_device, resolve_precision
from mpsnet_cli.packaged import checked_sha256, packaged_file
from mpsnet_cli.progress import Reporter

DEFAULT_DETECTOR = "yolo11n.pt"
STARTER_DETECTOR = "person-starter.pt"  # ships with the tool; trained on synthetic pictures alone
RELEASES = "https://github.com/ultralytics/assets/releases"
PATIENCE = 5  # s for the host of the official models to answer; ultralytics would give it 30 s
LONG_SIDES = (512, 640)  # px, least and most for the longer side of the network's input: official
# models are trained at 640, and enlarging a smaller image to that costs time and adds no detail
LONGEST_SIDE = 2048  # px, of any network's input
STRIDE = 32  # px, both sides of the network's input are multiples of it
PADDING = 114  # grey level around the image, as in training
BATCH = 8  # images that go through the network at once; more gains nothing on a CPU
MIN_SCORE = 0.1  # ByteTrack's second association looks at scores down to this
NMS_IOU = 0.7  # of two boxes, beyond which the less certain one goes: ultralytics' default


@dataclass(frozen=True)
class Detections:
    """The people found in one image, the most certain first."""

    boxes: NDArray[np.float32]  # (N, 4) x1, y1, x2, y2, px, within the image
    scores: NDArray[np.float32]  # (N,) 0..1

    def __len__(self) -> int:
        return len(self.boxes)


class Detector:
    """Find people with a YOLO detection network.

    See `find_detector` for `weights`. `device` and `precision` are as for `Model`; half precision
    moves boxes by up to half a pixel. Raises WeightsError if there is no such file, it holds
    anything but network layers, it is no detector that knows people, or it shipped with the tool
    and has changed since.
    """

    def __init__(
        self,
        weights: str | Path | None = None,
        *,
        device: str | torch.device = "auto",
        precision: Precision = "auto",
        report: Reporter | None = None,
    ) -> None:
        self.device = resolve_device(str(device))
        self.dtype = DTYPES[resolve_precision(precision, self.device)]
        self.path = find_detector(weights, report=report)
        checked_sha256(self.path)
        network, remarks = _load_network(self.path)
        self.long_sides = _long_sides(remarks, self.path)
        self.nms_iou = _share(remarks, "nms_iou", NMS_IOU, self.path)
        self.double_iou = _share(remarks, "double_iou", 1.0, self.path)
        self._person = next(i for i, name in network.names.items() if name == "person")
        self._network = network.to(self.device, self.dtype, memory_format=torch.channels_last)
        # Box sides are an expectation over bins, added to positions of up to 640 px: bfloat16 would
        # round them to several pixels, so decoding stays in float32.
        decoder = network.model[-1].dfl.float()
        decoder.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
        if self.device.type == "cpu" and can_fuse():
            _fuse_activations(network)

    @torch.inference_mode()
    def detect(self, images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        """Return the people in each of the RGB images (H, W, 3), all of one size."""
        from ultralytics.utils.nms import non_max_suppression

        batch, (left, top, inner_width, inner_height) = _letterbox(images, self.long_sides)
        pixels = torch.from_numpy(batch).to(self.device).permute(0, 3, 1, 2).to(self.dtype) / 255
        found = non_max_suppression(
            self._network(pixels)[0],
            MIN_SCORE,
            self.nms_iou,
            classes=[self._person],
            nc=len(self._network.names),
            end2end=self._network.end2end,
            max_time_img=60,  # s; past the default of 50 ms the rest of the batch comes back empty
        )
        height, width = images[0].shape[:2]
        offset = np.array([left, top, left, top], np.float32)
        scale = np.array([width / inner_width, height / inner_height] * 2, np.float32)
        rows = [image_rows.float().cpu().numpy() for image_rows in found]
        return [
            Detections(
                ((row[:, :4] - offset) * scale).clip(0, np.array([width, height] * 2, np.float32)),
                row[:, 4],
            )
            for row in rows
        ]


def _fuse_activations(network: Any) -> None:
    """Let each convolution of a fused network apply its SiLU itself, in place.

    Those that a file gives another padding than ultralytics does stay as they are.
    """
    from ultralytics.nn.modules.conv import Conv

    for module in network.modules():
        match module:
            case Conv(conv=nn.Conv2d(padding_mode="zeros", padding=tuple()) as conv, act=nn.SiLU()):
                module.conv, module.act = FusedConv(conv, "swish"), nn.Identity()


def _letterbox(
    images: Sequence[NDArray[np.uint8]], long_sides: tuple[int, int]
) -> tuple[NDArray[np.uint8], tuple[int, int, int, int]]:
    """Fit images (H, W, 3) of one size into the smallest input that keeps their shape.

    Return the batch (N, h, w, 3) and where in it the images lie: left, top, width, height, px.
    """
    height, width = images[0].shape[:2]
    longest = max(height, width)
    scale = min(max(longest, long_sides[0]), long_sides[1]) / longest
    inner_width, inner_height = (max(1, round(side * scale)) for side in (width, height))
    outer_width, outer_height = (-(-s // STRIDE) * STRIDE for s in (inner_width, inner_height))
    left, top = (outer_width - inner_width) // 2, (outer_height - inner_height) // 2
    batch = np.full((len(images), outer_height, outer_width, 3), PADDING, np.uint8)
    for canvas, image in zip(batch, images, strict=True):
        cv2.resize(
            image,
            (inner_width, inner_height),
            dst=canvas[top : top + inner_height, left : left + inner_width],
        )
    return batch, (left, top, inner_width, inner_height)


def find_detector(weights: str | Path | None = None, *, report: Reporter | None = None) -> Path:
    """Return the file of a detector: a path, or a name.

    A name is that of the packaged starter, "person-starter", or of an official model, which is
    downloaded once into our cache folder. None stands for yolo11n.pt, and where that is not here
    and cannot be fetched, tried once in a process, for the packaged starter: `report` is told.
    Raises WeightsError where there is none, and where a model asked for by name cannot be fetched.
    """
    name = DEFAULT_DETECTOR if weights is None else str(weights)
    for path in (Path(name).expanduser(), _cached(name)):
        if path.is_file():
            return path
    starter = packaged_file(STARTER_DETECTOR)
    if starter and name in {starter.name, starter.stem}:
        return starter
    if weights is not None or starter is None:
        return _download(name)
    if fetched := _download_default():
        return fetched
    (report or Reporter()).warn(
        f"{DEFAULT_DETECTOR} could not be fetched: people are found by the packaged starter "
        "detector (synthetic), which misses more."
    )
    return starter


def _cached(name: str) -> Path:
    """Return where an official model lies once it is downloaded."""
    return platformdirs.user_cache_path("mpsnet-cli") / "detectors" / name


@cache  # so that without a network not every clip of many waits for it
def _download_default() -> Path | None:
    with suppress(WeightsError):
        return _download(DEFAULT_DETECTOR)
    return None


def _download(name: str) -> Path:
    """Fetch an official model, or raise WeightsError where there is none or no way to it."""
    with quiet_ultralytics():
        from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES, attempt_download_asset

        if name not in GITHUB_ASSETS_NAMES:
            raise WeightsError(
                f"There is no detector {name}: pass a .pt file or the name of an official YOLO "
                f"model, such as {DEFAULT_DETECTOR}."
            )
        path = _cached(name)
        try:
            if not _host_answers():
                raise ConnectionError(f"{RELEASES} does not answer")
            attempt_download_asset(path, retry=0)
        except (OSError, MemoryError) as error:  # MemoryError is its word for a full disk
            raise WeightsError(
                f"The detector {name} could not be downloaded: put the file, from {RELEASES}, at "
                f"{path}, pass another with --detector, or give the people's boxes with --boxes."
            ) from error
    return path


def _host_answers() -> bool:
    """Whether the host of the official models answers in time, be it through a proxy."""
    import requests

    answers: list[int] = []

    def ask() -> None:
        with suppress(OSError):  # as are all errors of requests
            answers.append(requests.head(RELEASES, timeout=PATIENCE).status_code)

    thread = threading.Thread(target=ask, daemon=True)  # no timeout ends the search for a name
    thread.start()
    thread.join(PATIENCE)
    return bool(answers)  # whatever it says


def _load_network(path: Path) -> tuple[Any, Any]:
    """Build the network (ultralytics' DetectionModel, fused, float32) that a checkpoint holds.

    Also return what is under "mpsnet".
    """
    network, remarks = read_checkpoint(path)
    network.end2end = False  # of two heads, the one whose boxes need suppression, as predict()
    with quiet_ultralytics():
        network = network.float().fuse(verbose=False).eval()
    return network, remarks


def read_checkpoint(path: Path) -> tuple[Any, Any]:
    """Return the DetectionModel that a checkpoint holds as it is, and what is under "mpsnet".

    A .pt file is a pickle, and a pickle can run anything. This one is read by torch's restricted
    unpickler, which makes nothing but the network layers on ultralytics' list. Raises WeightsError
    for a file that holds anything else, or no detector that knows people.
    """
    with quiet_ultralytics(), tempfile.TemporaryDirectory() as folder:
        from ultralytics.nn.tasks import DetectionModel, torch_safe_load

        try:
            # Under a plain name, as ultralytics drops apostrophes from paths, takes yolov5n for
            # yolov5nu, and goes online for what it then does not find.
            copy = shutil.copyfile(path, Path(folder) / "detector.pt")
            checkpoint, _ = torch_safe_load(copy, safe_only=True)
            network = checkpoint.get("ema") or checkpoint["model"]
            remarks = checkpoint.get("mpsnet", {})
        except Exception as error:  # a damaged or hostile file can raise anything
            refused = re.search(r"GLOBAL ([\w.]+)", str(error.__cause__))
            why = f"it would run {refused[1]}" if refused else "it is damaged or of another kind"
            raise WeightsError(
                f"The detector {path} cannot be opened: {why}. Use a YOLO .pt file of ultralytics."
            ) from error
        names = getattr(network, "names", None)
        if type(network) is not DetectionModel or not (
            isinstance(names, dict) and "person" in names.values()
        ):
            raise WeightsError(
                f"{path} does not detect people: use a YOLO detection model with a class 'person'."
            )
        return network, remarks


def _stated(remarks: Any, name: str, usual: object) -> object:
    """Return what a checkpoint states, or the usual; nothing where its remarks are no table."""
    return remarks.get(name, usual) if isinstance(remarks, dict) else None


def _share(remarks: Any, name: str, usual: float, path: Path) -> float:
    """Return a share that a checkpoint states, or the usual."""
    match _stated(remarks, name, usual):
        case float(share) if 0 < share <= 1:
            return share
    raise WeightsError(f"The detector {path} is damaged: its {name} is not between 0 and 1.")


def _long_sides(remarks: Any, path: Path) -> tuple[int, int]:
    """Return the limits for the longer side of the input that a checkpoint states, or the usual."""
    match _stated(remarks, "long_sides", LONG_SIDES):
        case [int(low), int(high)] if STRIDE <= low <= high <= LONGEST_SIDE:
            return low, high
    raise WeightsError(
        f"The detector {path} is damaged: its long_sides are not two whole numbers of px, rising, "
        f"from {STRIDE} to {LONGEST_SIDE}."
    )


@contextmanager
def quiet_ultralytics() -> Iterator[None]:
    """Import or call ultralytics without its side effects on the process and the user's folders."""
    environment = {
        "YOLO_CONFIG_DIR": str(platformdirs.user_cache_path("mpsnet-cli")),
        "YOLO_OFFLINE": "true",  # no look-ups and analytics; a failed download is not tried again
        "YOLO_AUTOINSTALL": "false",
        "YOLO_VERBOSE": "false",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", ""),  # it would set 1
    }
    before = {name: os.environ.get(name) for name in environment}
    threads = cv2.getNumThreads()
    os.environ.update(environment)
    try:
        with np.printoptions():
            yield
    finally:
        cv2.setNumThreads(threads)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
