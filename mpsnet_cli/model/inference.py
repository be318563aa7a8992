"""The network made ready to run: on a device, in a precision, in batches that fit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpsnet_cli.errors import DeviceError
from mpsnet_cli.model.backbone import (
    IMAGE_MEAN,
    IMAGE_STD,
    can_round_to_bf16,
    fold_batch_norm,
    fuse_for_cpu,
    round_from_layer2,
    settle_biases,
)
from mpsnet_cli.model.config import WeightsInfo
from mpsnet_cli.model.mpsnet import MPSNet
from mpsnet_cli.model.regressor import Prediction
from mpsnet_cli.progress import Reporter

Precision = Literal["auto", "fp32", "bf16", "fp16"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BATCH_SIZES = {"cpu": 16, "cuda": 64, "mps": 16}  # crops; bigger ones gain nothing more
WINDOWS_PER_BATCH = 256  # 32 MiB of features


class Model:
    """MPS-Net with its weights, for inference.

    device: where all of it runs
    precision, dtype: what the backbone computes in, on the CPU from its layer2 on; the rest, a
        small part, stays in float32
    batch_size: crops that run at once; it halves itself when the device's memory is exhausted
    network: the modules themselves, to look inside
    """

    def __init__(
        self,
        network: MPSNet,
        weights: WeightsInfo,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        batch_size: int | None = None,
        report: Reporter,
    ) -> None:
        """Take `network` over: its backbone is folded and converted in place."""
        self.config = network.config
        self.weights = weights
        self.device = resolve_device(device)
        self.precision = resolve_precision(precision, self.device)
        self.dtype = DTYPES[self.precision]
        self.batch_size = BATCH_SIZES[self.device.type] if batch_size is None else batch_size
        self._report = report
        self.network = network.eval().requires_grad_(False).to(self.device)
        fold_batch_norm(network.backbone)
        settle_biases(network.backbone, self.dtype)
        network.backbone.to(memory_format=torch.channels_last)
        self._image_dtype = torch.float32 if self.device.type == "cpu" else self.dtype
        if self.device.type == "cpu":
            fuse_for_cpu(network.backbone)
            round_from_layer2(network.backbone, self.dtype)
        else:  # where float32 would cost far more than a fifth
            network.backbone.to(self.dtype)
        mean, std = (torch.tensor(v, device=self.device) for v in (IMAGE_MEAN, IMAGE_STD))
        self._scale = (1 / (255 * std)).view(1, 3, 1, 1)
        self._shift = (-mean / std).view(1, 3, 1, 1)

    @torch.inference_mode()
    def features(self, crops: NDArray[np.uint8]) -> Tensor:
        """Return static features (N, 2048), float32 on the CPU, of RGB crops (N, 224, 224, 3).

        Raises DeviceError where not even one crop fits into the device's memory.
        """
        size = self.config.crop_size
        if crops.dtype != np.uint8 or crops.shape[1:] != (size, size, 3):
            raise ValueError(f"crops are {crops.dtype} {crops.shape}, not uint8 (N, {size}, …, 3)")
        features = torch.empty(len(crops), self.config.feature_dim)
        start = 0
        while start < len(crops):
            batch = crops[start : start + self.batch_size]
            try:
                features[start : start + len(batch)] = self._backbone(batch).cpu()
            except torch.OutOfMemoryError as error:
                if len(batch) == 1:
                    raise DeviceError(
                        f"The memory of {self.device} cannot hold even one crop; "
                        "free some of it, or use --device cpu."
                    ) from error
                self.batch_size = len(batch) // 2
                self._report.warn(
                    f"The memory of {self.device} did not hold a full batch: continued with "
                    "smaller ones; --batch-size sets how many crops run at once."
                )
            else:
                start += len(batch)
        return features

    @torch.inference_mode()
    def predict(self, features: Tensor, windows: NDArray[np.int64]) -> Prediction:
        """Predict the target frames of windows (M, 16), which are rows of `features` (N, 2048).

        Returns float32 tensors on the CPU; no window's result depends on another's.
        """
        parts = []
        for rows in torch.from_numpy(windows).split(WINDOWS_PER_BATCH):
            first, last = (int(rows.min()), int(rows.max())) if len(rows) else (0, 0)
            used = features[first : last + 1].to(self.device)
            parts.append(self.network.predict_windows(used, (rows - first).to(self.device)))
        return Prediction(*(torch.cat(values).cpu() for values in zip(*parts, strict=True)))

    def _backbone(self, crops: NDArray[np.uint8]) -> Tensor:
        # NHWC bytes seen as NCHW are already in channels-last order.
        pixels = torch.from_numpy(crops).to(self.device).permute(0, 3, 1, 2)
        images = pixels.float().mul_(self._scale).add_(self._shift)
        return self.network.backbone(images.to(self._image_dtype))


def resolve_device(device: str) -> torch.device:
    """Turn auto, cpu, cuda, cuda:N or mps into a device of this machine.

    "auto" is the first CUDA device if there is one, else the CPU; Apple's mps runs on request only.
    Raises DeviceError for a device that is not here.
    """
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", device):
        raise DeviceError(f"There is no device {device!r}: use auto, cpu, cuda, cuda:N or mps.")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return torch.device("cuda" if gpus else "cpu")
    chosen = torch.device(device)
    if chosen.type == "cuda" and (chosen.index or 0) >= gpus:
        raise DeviceError(
            f"{device} is not available: torch sees {gpus or 'no'} CUDA GPU{'s' * (gpus != 1)} "
            "here; use --device cpu."
        )
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("mps is not available: torch sees no Apple GPU here; use --device cpu.")
    return chosen


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """Turn auto into what the backbone had best compute in on `device`; check the others.

    "auto" is fp16 on CUDA, bf16 on a CPU that is faster in it, fp32 elsewhere. On CUDA, fp32
    convolutions are as exact as torch's settings for TF32 let them be.
    Raises DeviceError for bf16 or fp16 on a CPU that does not compute in it.
    """
    if precision == "auto":
        if device.type == "cuda":
            return "fp16"
        return "bf16" if device.type == "cpu" and _cpu_is_faster_in_bf16() else "fp32"
    if precision not in DTYPES:
        raise DeviceError(f"There is no precision {precision!r}: use auto, {', '.join(DTYPES)}.")
    can = {"fp32": True, "bf16": can_round_to_bf16(), "fp16": _cpu_computes_fp16()}
    if device.type == "cpu" and not can[precision]:
        raise DeviceError(f"This CPU does not compute in {precision}: use auto or fp32.")
    return precision


def _cpu_is_faster_in_bf16() -> bool:
    """Whether bf16 pays: with AMX, or on AMD's vector units.

    Intel's multiply as many numbers in fp32 as in bf16, and conversions come on top: the backbone
    runs at 0.65 to 0.75 times the speed of fp32 there (benchmarks/README.md).
    """
    flags = _cpu_flags()
    intel = "Intel" in str(flags.get("cpu_name", ""))
    return bool(flags.get("amx_bf16") or (flags.get("avx512_bf16") and not intel))


def _cpu_computes_fp16() -> bool:
    """Whether x86 instructions for fp16 are here; without them it is slower than fp32."""
    flags = _cpu_flags()
    return bool(flags.get("avx512_fp16") or flags.get("amx_fp16"))


def _cpu_flags() -> Mapping[str, object]:
    """Return what torch knows of the CPU; an older one tells nothing: stay with what is safe."""
    return torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
