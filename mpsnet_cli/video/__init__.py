"""Video in and out: exact timestamps, upright RGB frames, and H.264 with the source's sound."""

from mpsnet_cli.video.frames import Frame, read_frames
from mpsnet_cli.video.info import VideoInfo, probe
from mpsnet_cli.video.writer import VideoWriter

__all__ = ["Frame", "VideoInfo", "VideoWriter", "probe", "read_frames"]
