"""Who is where in a clip: detection and association give tracklets, refinement one track a person.

    tracks = find_people(frames, Detector(report=report), report=report)

or, given by the user, `given_tracks`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from mpsnet_cli.model.inference import Precision
from mpsnet_cli.motion import Track
from mpsnet_cli.progress import Reporter
from mpsnet_cli.tracking.association import PeopleFinder, Tracker, associate
from mpsnet_cli.tracking.boxes import full_frame_track, given_tracks, read_boxes
from mpsnet_cli.tracking.detector import Detector, find_detector
from mpsnet_cli.tracking.refine import MIN_FRAMES, choose_people, refine_tracks
from mpsnet_cli.video import Frame, VideoInfo, read_frames

__all__ = [
    "MIN_FRAMES",
    "Detector",
    "Tracker",
    "choose_people",
    "find_detector",
    "find_people",
    "full_frame_track",
    "given_tracks",
    "locate_people",
    "read_boxes",
]


def locate_people(
    video: VideoInfo,
    *,
    boxes: str | None,
    detector: str | None,
    device: torch.device,
    precision: Precision,
    report: Reporter,
) -> list[Track]:
    """Take a whole clip's people from `boxes`, see `given_tracks`, or detect and follow them.

    See `find_detector` for `detector`.
    """
    if boxes:
        return given_tracks(boxes, video)
    return find_people(
        read_frames(video, report=report),
        Detector(detector, device=device, precision=precision, report=report),
        total=video.frame_count,
        report=report,
    )


def find_people(
    frames: Iterable[Frame],
    detector: PeopleFinder,
    *,
    tracker: Tracker = "bytetrack",
    min_frames: int = MIN_FRAMES,
    max_people: int | None = None,
    people: Sequence[int] = (),
    total: int | None = None,
    report: Reporter,
) -> list[Track]:
    """Find the people in `total` frames of a clip, one track for each; a few frames are held.

    See `refine_tracks` for what becomes a track and its id, and `choose_people` for `max_people`
    and `people`.
    """
    with report.stage("detect", total=total) as advance:
        tracklets, clip_frames = associate(frames, detector, tracker=tracker, advance=advance)
    tracks = refine_tracks(
        tracklets,
        clip_frames,
        min_frames=min_frames,
        double_iou=detector.double_iou,
        report=report,
    )
    return choose_people(tracks, max_people=max_people, people=people)
