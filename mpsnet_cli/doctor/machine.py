"""What machine this is and what is installed on it, as far as a run depends on it.

All but the standard library is imported by the checks themselves: it may be what is broken.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import mpsnet_cli
from mpsnet_cli.doctor.check import Finding, State
from mpsnet_cli.errors import DeviceError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

DISTRIBUTION = "mpsnet-cli"
VARIABLES = (  # of the environment, that change what a run does
    "MPSNET_WEIGHTS", "MPSNET_SMPL", "MPSNET_BLENDER", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS",
    "PYOPENGL_PLATFORM", "IMAGEIO_FFMPEG_EXE", "XDG_CACHE_HOME", "XDG_DATA_HOME", "TMPDIR",
)  # fmt: skip
TWINS = {  # packages that others stand in for: the name of the module, and the others
    "opencv-python-headless": ("cv2", ("opencv-python", "opencv-contrib-python-headless",
                                       "opencv-contrib-python")),
    "ultralytics-opencv-headless": ("ultralytics", ("ultralytics",)),
}  # fmt: skip
NOT_FOR_USERS = {"test", "dev"}  # extras
ENCODER = "libx264"  # of `VideoWriter`
HARDWARE_ENCODERS = ("h264_nvenc", "h264_qsv", "h264_amf", "h264_videotoolbox", "h264_vaapi")
HARDWARE_OPTIONS = {
    "h264_vaapi": ["-vaapi_device", "/dev/dri/renderD128", "-vf", "format=nv12,hwupload"],
}
SIDE = 256  # px, of the pictures that encoders are tried with; some take none much smaller
ENCODER_TIMEOUT = 20.0  # s
GPU_NODE = Path("/dev/nvidia0")


def program(_: Path) -> Iterator[Finding]:
    """What runs, in what."""
    where = Path(mpsnet_cli.__file__).parent
    yield Finding("mpsnet-cli", f"{mpsnet_cli.__version__} in {where}")
    yield Finding("Python", f"{platform.python_version()}, {sys.executable}")
    yield Finding("system", platform.platform())
    for name in VARIABLES:
        if name in os.environ:
            yield Finding("variable", f"{name}={os.environ[name]}")


def packages(_: Path) -> Iterator[Finding]:
    """The packages that are required, whatever else they are for."""
    try:
        requirements = _requirements(extra="")
    except metadata.PackageNotFoundError:
        yield Finding(
            "packages", f"unknown, as {DISTRIBUTION} is not installed", "note", "pip install -e ."
        )
        return
    for requirement in requirements:
        yield _package(requirement, f"pip install '{requirement}'", needed=True)


def extras(_: Path) -> Iterator[Finding]:
    """The optional packages, by the extra that brings them."""
    everywhere = {requirement.name for requirement in _requirements(extra="")}
    for extra in metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []:
        if extra in NOT_FOR_USERS:
            continue
        for requirement in _requirements(extra=extra):
            if requirement.name not in everywhere:
                yield _package(requirement, f"pip install '{DISTRIBUTION}[{extra}]'", needed=False)


def _requirements(*, extra: str) -> list[Requirement]:
    from packaging.requirements import Requirement

    stated = map(Requirement, metadata.requires(DISTRIBUTION) or [])
    return [r for r in stated if r.marker is None or r.marker.evaluate({"extra": extra})]


def _package(requirement: Requirement, advice: str, *, needed: bool) -> Finding:
    """Compare what is installed with what is required."""
    name, others = TWINS.get(requirement.name, (requirement.name, ()))
    bad: State = "failed" if needed else "note"
    for candidate in (requirement.name, *others):
        try:
            version = metadata.version(candidate)
        except metadata.PackageNotFoundError:
            continue
        if requirement.specifier.contains(version, prereleases=True):
            return Finding(name, version + f" ({candidate})" * (name != candidate))
        return Finding(name, f"{version}, must be {requirement.specifier}", bad, advice)
    return Finding(name, "not installed", bad, advice)


def cpu(_: Path) -> Iterator[Finding]:
    """The processor, what is of it for us, and what torch makes of it."""
    import torch

    from mpsnet_cli.model.inference import resolve_precision

    cores = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else cores
    yield Finding(
        "cpu",
        f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, "
        f"{usable} of {cores} cores usable, torch on {torch.get_num_threads()}, "
        f"precision {resolve_precision('auto', torch.device('cpu'))}",
    )
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        yield Finding("memory", size_text(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))


def cuda(_: Path) -> Iterator[Finding]:
    """Every NVIDIA GPU that torch sees, and whether it computes."""
    import torch

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(count):
        properties = torch.cuda.get_device_properties(index)
        name = f"cuda:{index}"
        try:
            free, total = torch.cuda.mem_get_info(index)
            ones = torch.ones(64, 64, device=name)
            (ones @ ones).sum().item()
        except Exception as error:  # of drivers and kernels that do not fit
            yield Finding(
                name,
                f"{properties.name} does not compute: {str(error) or repr(error)}",
                "failed",
                f"install a torch that fits its driver and its compute capability "
                f"{properties.major}.{properties.minor}, or pass --device cpu",
            )
            continue
        yield Finding(
            name,
            f"{properties.name}, {size_text(free)} of {size_text(total)} free, capability "
            f"{properties.major}.{properties.minor}, CUDA {torch.version.cuda}, "
            f"bf16 {'yes' if torch.cuda.is_bf16_supported() else 'no'}",
        )
    if not count:
        built = torch.version.cuda
        text = f"no GPU; torch is built {f'for CUDA {built}' if built else 'without CUDA'}"
        reasons = [str(warning.message) for warning in said]
        if reasons:
            yield Finding("cuda", f"{text}: {reasons[0]}", "note", "networks run on the CPU")
        elif GPU_NODE.exists() and not built:
            yield Finding("cuda", text, "note", "a GPU is here: install torch for CUDA")
        else:
            yield Finding("cuda", text)


def mps(_: Path) -> Iterator[Finding]:
    """Apple's GPU, on its machines."""
    if platform.system() == "Darwin":
        import torch

        available = torch.backends.mps.is_available()
        yield Finding("mps", "available, with --device mps" if available else "not available")


def opengl(_: Path) -> Iterator[Finding]:
    """What draws where `pyrender` is used; the cpu renderer takes its place anywhere."""
    from mpsnet_cli.render.gl import is_gpu

    try:
        device = opengl_device()
    except DeviceError as error:
        yield Finding("OpenGL", "no EGL: people are drawn on the CPU", "note", error.message)
        return
    how = "" if is_gpu(device) else ", in software: people are drawn on the CPU instead"
    yield Finding("OpenGL", f"EGL, {device}{how}")


@cache
def opengl_device() -> str:
    """Return what OpenGL draws on, or raise DeviceError; it is asked but once, in a process."""
    from mpsnet_cli.render.gl import find_device

    return find_device()


def ffmpeg(_: Path) -> Iterator[Finding]:
    """The two FFmpegs: PyAV's own decodes, a program encodes."""
    import av
    import imageio_ffmpeg

    codec = ".".join(map(str, av.library_versions["libavcodec"]))
    yield Finding("decoder", f"PyAV {av.__version__}, libavcodec {codec}")
    program = imageio_ffmpeg.get_ffmpeg_exe()
    yield Finding("ffmpeg", f"{imageio_ffmpeg.get_ffmpeg_version()}, {program}")


def encoders(_: Path) -> Iterator[Finding]:
    """Whether ffmpeg encodes H.264 as a run needs it; encoders of hardware are only told of."""
    import imageio_ffmpeg

    program = imageio_ffmpeg.get_ffmpeg_exe()
    if complaint := _encoder_complaint(program, ENCODER):
        yield Finding(
            ENCODER,
            f"does not encode: {complaint}",
            "failed",
            "install imageio-ffmpeg again, or set IMAGEIO_FFMPEG_EXE to an ffmpeg with libx264",
        )
    else:
        yield Finding(ENCODER, "encodes")
    works = [name for name in HARDWARE_ENCODERS if not _encoder_complaint(program, name)]
    yield Finding("in hardware", f"{', '.join(works) or 'none'}; none is needed")


def _encoder_complaint(program: str, encoder: str) -> str:
    """Encode two black frames to nowhere; return what ffmpeg says is wrong, or nothing."""
    command = [
        program, "-hide_banner", "-loglevel", "error",
        "-f", "rawvideo", "-pix_fmt", "yuv420p", "-video_size", f"{SIDE}x{SIDE}", "-i", "pipe:",
        *HARDWARE_OPTIONS.get(encoder, []), "-c:v", encoder, "-f", "null", "-",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, input=bytes(2 * SIDE * SIDE * 3 // 2), capture_output=True,
            timeout=ENCODER_TIMEOUT, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if not done.returncode:
        return ""
    lines = done.stderr.decode(errors="replace").split("\n")
    said = next((line.strip() for line in lines if line.strip()), f"exit code {done.returncode}")
    return re.sub(r"^(\[[^]]* @ [^]]*\] )+", "", said)


def size_text(count: int) -> str:
    """Write a number of bytes for people."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
