"""Measure the starter weights: the figures of their model card, weights/README.md.

    python -m benchmarks.starter sequences --data HELD-OUT --train TRAINED-ON [--weights FILE]
    python -m benchmarks.starter crops --data HELD-OUT --train TRAINED-ON [--weights FILE]
    python -m benchmarks.starter walk [--weights FILE]
    python -m benchmarks.starter detector [--detector FILE] [--data HELD-OUT]
        [--reference yolov8n.pt --clips CLIP ...]
    python -m benchmarks.starter dancer --result FOLDER [--joints FILE]

Each writes its section of benchmarks/starter.md and leaves the others as they are. HELD-OUT and
TRAINED-ON are folders of `mpsnet synth`. Features are kept in --cache.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mpsnet_cli.body import load_body
from mpsnet_cli.body.joint_sets import HIPS, to_common14
from mpsnet_cli.body.skeleton import KEYPOINT_NAMES
from mpsnet_cli.cli.reporting import make_reporter
from mpsnet_cli.datasets import Sequence, load_sequences, save_sequences
from mpsnet_cli.errors import InputError
from mpsnet_cli.evaluation.baselines import constant_velocity_error, mean_person
from mpsnet_cli.evaluation.detection import average_precision, compare_detectors
from mpsnet_cli.evaluation.evaluate import Predict, evaluate_sequences
from mpsnet_cli.evaluation.metrics import mean_distance, pa_mpjpe, root_aligned
from mpsnet_cli.evaluation.result import METRICS, Errors, pooled
from mpsnet_cli.features import RESULT_MANIFEST, shard_features
from mpsnet_cli.geometry import axis_angle_to_matrix, matrix_to_axis_angle, project
from mpsnet_cli.model.inference import Model
from mpsnet_cli.model.regressor import Prediction
from mpsnet_cli.motion import Motion
from mpsnet_cli.npz import read_npz
from mpsnet_cli.packaged import file_sha256
from mpsnet_cli.posing import camera_vertices
from mpsnet_cli.progress import Reporter
from mpsnet_cli.smoothing import DEFAULT_STRENGTH
from mpsnet_cli.synth.samples import CropBatch
from mpsnet_cli.synth.shards import MANIFEST, decode, iter_scenes, iter_shards
from mpsnet_cli.tracking import Detector
from mpsnet_cli.tracking.detector import BATCH, MIN_SCORE, Detections
from mpsnet_cli.video import probe, read_frames
from mpsnet_cli.weights import find_weights, load_model
from mpsnet_cli.windows import TARGET

Floats = NDArray[np.floating]
Predictor = Callable[[Sequence], Predict]

OUTPUT = Path("benchmarks/starter.md")
CACHE = Path(tempfile.gettempdir()) / "mpsnet-starter"
TITLES = {  # of the sections, in their order
    "sequences": "Held-out synthetic sequences",
    "crops": "Held-out synthetic crops",
    "walk": "The example clip, from pixels",
    "detector": "The person detector",
    "dancer": "A real clip",
}
HEAD = """# The starter weights, measured

Written by `python -m benchmarks.starter`, see there for how; each section names what it was run on.
Joint errors are of 14 of the body's own joints about the middle of the hips, in mm; ACC-ERR in
mm/frame².
"""
COLUMNS = ("pa_mpjpe", "mpjpe", "mpvpe", "acceleration")
CLIP_COLUMNS = (*COLUMNS, "mpjpe_camera", "joints2d")
MEAN_OF = 10_000  # pictures of the training data that the mean person is made of
SIDEWAYS = (45.0, 135.0)  # degrees away from facing the camera
WALKS = {
    "people detected": (),
    f"the same, `--smooth {DEFAULT_STRENGTH}`": ("--smooth", str(DEFAULT_STRENGTH)),
    "true boxes given": ("--boxes", "examples/walk_boxes.csv"),
}
CERTAIN = 0.5  # score of the reference detector's boxes that ours are held against
TRACKED = 0.25  # score that begins a track
MARKED_FORMAT = "mpsnet-joints2d/1"
MARKS = Path("benchmarks/dancer2d.npz")  # of 25 frames of dancer.avi
MARKED_NAMES = tuple(
    f"{side}_{joint}"
    for joint in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")
    for side in ("right", "left")
)


def with_section(document: str, name: str, text: str) -> str:
    """Replace a section of the document, or add it at its place."""
    parts = dict(part.split("\n\n", 1) for part in document.split("\n## ")[1:])
    parts[TITLES[name]] = text
    kept = [f"{title}\n\n{parts[title].strip()}\n" for title in TITLES.values() if title in parts]
    return "\n## ".join([HEAD, *kept])


def table(header: Items[str], rows: Items[Items[object]]) -> str:
    """Lay out a table in Markdown; numbers that are not whole get one digit, None a dash."""
    lines = [header, ["---"] * len(header), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cell(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def facts(model: Model) -> str:
    """Say which weights were measured, and how they ran."""
    trained = "" if model.weights.trained else "; **untrained: the figures mean nothing**"
    return (
        f"{model.weights.name}, sha256 {model.weights.sha256[:12]}…, crops of "
        f"{model.config.crop_size} px, {model.precision} on {model.device}{trained}."
    )


def read_recipe(folder: Path, **wanted: object) -> tuple[str, int]:
    """Return digest and number of the samples in a folder, if their recipe is as `wanted`."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        recipe, digest, count = (manifest[key] for key in ("recipe", "recipe_sha256", "samples"))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(f"{folder} is no folder of mpsnet synth: {error}.") from error
    for key, value in wanted.items():
        if recipe.get(key) != value:
            raise InputError(f"{folder} has {key} {recipe.get(key)!r}, and should have {value!r}.")
    return digest, count


def mean_of_training(folder: Path) -> tuple[Floats, Floats]:
    """Return pose (72,) and betas (10,) of the mean person of the first pictures of a folder."""
    read_recipe(folder, split="train")
    poses: list[Floats] = []
    betas: list[Floats] = []
    for shard in iter_shards(folder):
        poses.append(shard.batch.before_crops()[0])
        betas.append(shard.batch.betas)
        if sum(map(len, poses)) >= MEAN_OF:
            break
    return mean_person(np.concatenate(poses), np.concatenate(betas))


def over_time(model: Model) -> Predictor:
    """Predict as the tool does."""
    return lambda _: model.predict


def frame_by_frame(model: Model) -> Predictor:
    """Predict from each frame's static feature alone, past MoCA and HAFI."""
    return lambda _: lambda features, windows: static(model, features[windows[:, TARGET]])


@torch.inference_mode()
def static(model: Model, features: Tensor) -> Prediction:
    """Regress single pictures' features (N, 2048)."""
    found = model.network.regressor(features.to(model.device))
    return Prediction(*(values.cpu() for values in found))


def always(pose: Floats, betas: Floats, *, true_orientation: bool = False) -> Predictor:
    """Predict the same person in every frame, on demand turned as the true one is."""

    def of(sequence: Sequence) -> Predict:
        rotmats = np.tile(axis_angle_to_matrix(pose.reshape(24, 3)), (len(sequence), 1, 1, 1))
        if true_orientation:
            assert sequence.pose is not None
            rotmats[:, 0] = axis_angle_to_matrix(sequence.pose[:, :3])

        def predict(_: Tensor, windows: NDArray[np.int64]) -> Prediction:
            rows, count = windows[:, TARGET], len(windows)
            values = rotmats[rows], np.tile(betas, (count, 1)), np.zeros((count, 3))
            return Prediction(*(torch.tensor(value, dtype=torch.float32) for value in values))

        return predict

    return of


def sequences(options: argparse.Namespace, report: Reporter) -> str:
    """Compare the weights with themselves without time, and with what knows nothing."""
    body = load_body("free-1")
    model = load_model(options.weights, device=options.device, report=report)
    moving = held_out_sequences(options.data, model, options.cache, report)
    still_model, still = model, moving
    if options.still:
        still_model = load_model(options.still, device=options.device, report=report)
        still = held_out_sequences(options.data, still_model, options.cache, report)
    pose, betas = mean_of_training(options.train)

    def row(
        name: str, held_out: list[Sequence], predictor: Predictor, smooth: float = 0.0
    ) -> list[object]:
        with report.stage(name, total=len(held_out)) as advance:
            errors: list[Errors] = []
            for sequence in held_out:
                predict = predictor(sequence)
                errors += evaluate_sequences([sequence], predict, body, smooth=smooth).sequences
                advance(1)
        return [name, *(pooled(errors).mean(column) for column in COLUMNS)]

    rest = []
    for sequence in moving:
        assert sequence.joints3d is not None
        true = to_common14(sequence.joints3d, sequence.joint_set)
        rest.append(constant_velocity_error(root_aligned(true, HIPS)))
    rows: list[list[object]] = [
        row("**the weights**", moving, over_time(model)),
        row(f"smoothed by {DEFAULT_STRENGTH}", moving, over_time(model), DEFAULT_STRENGTH),
        row("frame by frame, without time", still, frame_by_frame(still_model)),
        row("mean person", moving, always(pose, betas)),
        row("mean person, truly turned", moving, always(pose, betas, true_orientation=True)),
        ["constant velocity", None, None, None, float(np.concatenate(rest).mean())],
    ]
    frames = sum(map(len, moving))
    return "\n".join([
        facts(model),
        f"{len(moving)} sequences of the held-out split, {frames} frames at 30 per second.",
        "",
        table(["", *(METRICS[column][0] for column in COLUMNS)], rows),
        "- Smoothing is what `mpsnet run` does by default.",
        "- Without time: the regressor on each frame's own feature, MoCA and HAFI left out; "
        + (f"that of {facts(still_model)}" if options.still else "the weights' own regressor."),
        "- Mean person: average rotations and betas of the training data, for every frame. Truly "
        "turned: the root's rotation is the true one, which no network is given.",
        "- Constant velocity: joints that do not accelerate have the truth's own acceleration for "
        "an error, whether they move evenly or stand still. It is also how far, in mm, "
        "2x₍ₙ₋₁₎ − x₍ₙ₋₂₎ of two true frames is from the third.",
    ])  # fmt: skip


def held_out_sequences(folder: Path, model: Model, cache: Path, report: Reporter) -> list[Sequence]:
    """Return the sequences of a held-out folder, with features, which are kept in `cache`."""
    digest, count = read_recipe(folder, kind="sequences", split="held-out")
    path = cache / f"sequences-{count}-{digest[:12]}-{model.weights.sha256[:12]}.npz"
    if not path.is_file():
        save_sequences(path, shard_features(folder, model, report=report))
    return load_sequences(path)


def crops(options: argparse.Namespace, report: Reporter) -> str:
    """Measure backbone and regressor on single pictures, by what is seen of the person."""
    body = load_body("free-1")
    model = load_model(options.still or options.weights, device=options.device, report=report)
    size = model.config.crop_size
    digest, count = read_recipe(options.data, kind="crops", split="held-out", size=size)
    path = options.cache / f"crops-{count}-{digest[:12]}-{model.weights.sha256[:12]}.npy"
    known = np.load(path) if path.is_file() else None
    found: list[Floats] = []
    true: list[Floats] = []
    groups: list[dict[str, NDArray[np.bool_]]] = []
    with report.stage("crops", total=count) as advance:
        for shard in iter_shards(options.data):
            batch = shard.batch
            found.append(model.features(batch.images).numpy() if known is None else known[:0])
            true.append(to_common14(batch.before_crops()[1], "smpl24"))
            groups.append({**orientation(batch), **visibility(batch)})
            advance(len(batch.images))
    if known is None:
        known = np.concatenate(found)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, known)

    prediction = static(model, torch.from_numpy(known))
    pose = matrix_to_axis_angle(prediction.rotmats.numpy()).reshape(-1, 72)
    joints = to_common14(body.joints(pose, prediction.betas.numpy()), "smpl24")
    mean = mean_of_training(options.train)
    nobody = to_common14(body.joints(*(value[None] for value in mean)), "smpl24")
    truth = root_aligned(np.concatenate(true), HIPS)
    columns = []
    for guess in (joints, np.broadcast_to(nobody, joints.shape)):
        aligned = root_aligned(guess, HIPS)
        columns += [pa_mpjpe(aligned, truth), mean_distance(aligned, truth)]
    rows: list[list[object]] = []
    for name in ("all", *groups[0]):
        of = np.concatenate([g[name] for g in groups]) if name != "all" else np.full(count, True)
        means = [float(column[of].mean()) if of.any() else None for column in columns]
        rows.append([name, int(of.sum()), *means])
    header = ("crops", "", "PA-MPJPE", "MPJPE", "mean person: PA-MPJPE", "MPJPE")
    return "\n".join([
        facts(model),
        f"Backbone and regressor alone, on {count} pictures of the held-out split.",
        "",
        table(header, rows),
        f"- Frontal, side, back: the camera stands less than {SIDEWAYS[0]:.0f}° to a side of where "
        f"the pelvis faces, up to {SIDEWAYS[1]:.0f}°, or beyond.",
        "- Cut: a joint of the 24 is outside the crop or the image. Occluded: none is, but one is "
        "behind somebody or something else. Whole: neither.",
    ])  # fmt: skip


def orientation(batch: CropBatch) -> dict[str, NDArray[np.bool_]]:
    """Sort people by the side that the camera sees them from: in their own frame, about y."""
    towards = -(batch.joints3d[:, 0] + batch.transl)  # from the pelvis to the camera
    turned = np.einsum("nba,nb->na", axis_angle_to_matrix(batch.pose[:, :3]), towards)
    angle = np.degrees(np.abs(np.arctan2(turned[:, 0], turned[:, 2])))
    front, back = angle < SIDEWAYS[0], angle > SIDEWAYS[1]
    return {"frontal": front, "side": ~front & ~back, "back": back}


def visibility(batch: CropBatch) -> dict[str, NDArray[np.bool_]]:
    """Sort people by what hides some of their joints: an edge, something else, or nothing."""
    centre, side = batch.bboxes[:, None, :2], batch.bboxes[:, None, 2:]
    pixels = centre + batch.joints2d * side / 2
    inside = (np.abs(batch.joints2d) <= 1) & (pixels >= 0) & (pixels <= batch.image_size[:, None])
    uncut = np.logical_and.reduce(inside, axis=(1, 2))
    unhidden = np.logical_and.reduce(batch.visible, axis=1)
    return {"whole": uncut & unhidden, "cut": ~uncut, "occluded": uncut & ~unhidden}


def walk(options: argparse.Namespace, report: Reporter) -> str:  # noqa: ARG001
    """Run `mpsnet eval` on the example clip, as a user would."""
    rows: list[list[object]] = []
    warnings: list[str] = []
    event: dict[str, Any] = {}
    for name, arguments in WALKS.items():
        command = [sys.executable, "-m", "mpsnet_cli", "eval", "examples/walk.mp4", "--json"]
        command += ["--truth", "examples/walk.npz", "--device", options.device, *arguments]
        command += ["--weights", str(options.weights)] if options.weights else []
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        *events, event = map(json.loads, done.stdout.splitlines())
        warnings += [each["text"] for each in events if each["event"] == "warning"]
        people = event["people"]
        found = f"{people['true'] - people['missed']} of {people['true']}"
        for errors in (event["pooled"], *event["sequences"]):
            label = name if errors is event["pooled"] else f"– {errors['name']}"
            coverage = (found, people["spurious"]) if errors is event["pooled"] else ("", "")
            rows.append([label, *coverage, *(errors.get(metric) for metric in CLIP_COLUMNS)])
    header = ["", "person-frames found", "nobody's"]
    header += [", ".join(METRICS[metric]) for metric in CLIP_COLUMNS]
    trained = "" if event["trained"] else "; **untrained: the figures mean nothing**"
    digest = file_sha256(find_weights(options.weights))
    return "\n".join([
        f"{event['weights']}, sha256 {digest[:12]}…{trained}. `mpsnet eval examples/walk.mp4 "
        "--truth examples/walk.npz`:",
        "",
        table(header, rows),
        *(f"- The tool said: {sentence}" for sentence in dict.fromkeys(warnings)),
        "- camera, image: joints compared where they stand, with nothing aligned.",
    ])  # fmt: skip


def detector(options: argparse.Namespace, report: Reporter) -> str:
    """Measure a detector on synthetic scenes, and on real clips against another detector."""
    ours = Detector(options.detector, device=options.device, report=report)
    lines = [f"{ours.path.name}, sha256 {file_sha256(ours.path)[:12]}…, on {ours.device}.", ""]
    if options.data:
        _, count = read_recipe(options.data, kind="scenes", split="held-out")
        found: list[Detections] = []
        true: list[Floats] = []
        with report.stage("scenes", total=count) as advance:
            for shard in iter_scenes(options.data):
                for first in range(0, len(shard.jpegs), BATCH):
                    images = [decode(jpeg) for jpeg in shard.jpegs[first : first + BATCH]]
                    found += ours.detect(images)
                    advance(len(images))
                true += shard.boxes
        precision = average_precision([d.boxes for d in found], [d.scores for d in found], true)
        row = [count, sum(map(len, true)), f"{precision:.3f}"]
        lines += [
            table(("held-out scenes", "people", "AP50"), [row]),
            f"- Boxes of a score below {MIN_SCORE}, which the tool never looks at, are left out.",
            "",
        ]
    if options.reference:
        reference = Detector(options.reference, device=options.device, report=report)
        rows: list[list[object]] = []
        for clip in options.clips:
            shares = compare_detectors(
                _some_frames(clip, options.every, report),
                ours,
                reference,
                score=TRACKED,
                reference_score=CERTAIN,
            )
            rows.append([clip.name, *(f"{share:.3f}" for share in shares)])
        name = reference.path.stem
        lines += [
            table(("real clip", f"of {name}'s boxes found", f"of the found known to {name}"), rows),
            f"- Every {options.every}th frame; boxes of score ≥ {TRACKED}, with which a track "
            f"begins, against the reference's of score ≥ {CERTAIN}, which are no truth.",
            "- Boxes agree with an intersection over union ≥ 0.5.",
        ]
    return "\n".join(lines)


def _some_frames(clip: Path, every: int, report: Reporter) -> Iterator[NDArray[np.uint8]]:
    video = probe(clip)
    with report.stage(clip.name, total=video.frame_count) as advance:
        for frame in read_frames(video, report=report):
            if frame.index % every == 0:
                yield frame.image
            advance(1)


def dancer(options: argparse.Namespace, report: Reporter) -> str:  # noqa: ARG001
    """Hold the joints of a result of `mpsnet run`, in the image, against independent ones."""
    frames, marked, source = read_marked(options.joints)
    people = [Motion.load(path) for path in sorted(options.result.glob("person_*.npz"))]
    if not people:
        raise InputError(f"{options.result} is no result of mpsnet run: it holds nobody.")
    person = max(people, key=len)
    common, rows, marked_rows = np.intersect1d(person.frame_ids, frames, return_indices=True)
    body = load_body(person.body)
    vertices = np.stack(list(camera_vertices(person, body, rows)))
    keypoints = body.keypoints(vertices)[:, [KEYPOINT_NAMES.index(name) for name in MARKED_NAMES]]
    found = project(
        keypoints, focal_length=person.focal_length, principal_point=person.principal_point
    )
    unit, marked = torso_length(marked), marked[marked_rows]
    apart = np.linalg.norm(found - marked, axis=-1) / unit
    still = np.linalg.norm(np.nanmedian(marked, axis=0) - marked, axis=-1) / unit
    swapped = np.linalg.norm(found[:, mirrored()] - marked, axis=-1) / unit
    backwards = int((np.nanmean(swapped, axis=1) < np.nanmean(apart, axis=1)).sum())
    rows_of_table = [
        [name, *quartiles(apart[:, of]), f"{np.nanmedian(still[:, of]):.2f}"]
        for name, of in {"**all**": [*range(len(MARKED_NAMES))], **_limbs()}.items()
    ]
    trained = "" if person.trained else " (**untrained: the figures mean nothing**)"
    digest = json.loads((options.result / RESULT_MANIFEST).read_text())["weights"]["sha256"]
    return "\n".join([
        f"{person.weights}, sha256 {digest[:12]}…{trained}: the result {options.result.name} of "
        f"`mpsnet run`, person {person.track_id} of {len(people)}. Distance in the image "
        "between its keypoints and independent joints, in torso lengths "
        f"({unit:.0f} px: middle of the shoulders to middle of the hips, the independent ones', "
        "median over the clip).",
        "",
        table(["", "joints", "quartile", "median", "quartile", "stands still"], rows_of_table),
        f"- {len(common)} of the {len(frames)} frames with independent joints have the person.",
        f"- In {backwards} frames the joints would be nearer with left and right exchanged.",
        "- Stands still: the median for someone whose joints all stay at their own median place.",
        f"- Independent joints: {source}.",
    ])  # fmt: skip


def _limbs() -> dict[str, list[int]]:
    """Find the rows of each pair of joints in MARKED_NAMES."""
    return {MARKED_NAMES[k].split("_")[1] + "s": [k, k + 1] for k in range(0, 12, 2)}


def mirrored() -> list[int]:
    """Return the rows of MARKED_NAMES with left and right exchanged."""
    return [k + 1 - 2 * (k % 2) for k in range(len(MARKED_NAMES))]


def quartiles(values: Floats) -> list[str]:
    """Format how many values there are that are numbers, and their quartiles."""
    known = values[np.isfinite(values)]
    return [str(len(known)), *(f"{value:.2f}" for value in np.percentile(known, (25, 50, 75)))]


def torso_length(joints: Floats) -> float:
    """Measure MARKED_NAMES (N, 12, 2), px: from mid-shoulder to mid-hip, median over frames."""
    return float(np.nanmedian(np.linalg.norm(
        joints[:, :2].mean(axis=1) - joints[:, 6:8].mean(axis=1), axis=-1
    )))  # fmt: skip


def read_marked(path: Path) -> tuple[NDArray[np.int64], Floats, str]:
    """Read frames (N,), MARKED_NAMES (N, 12, 2) in px, nan where unknown, and who says so.

    The .npz has `format`, `frame_ids`, `names` in any order, `joints2d` and `source`.
    """
    found, arrays = read_npz(path, what="file of 2D joints")
    if found != MARKED_FORMAT:
        raise InputError(f"{path} is not a {MARKED_FORMAT} file (found: {found}).")
    names = arrays["names"].tolist()
    order = [names.index(name) for name in MARKED_NAMES]
    return arrays["frame_ids"], arrays["joints2d"][:, order], str(arrays["source"])


SECTIONS: dict[str, Callable[[argparse.Namespace, Reporter], str]] = {
    "sequences": sequences,
    "crops": crops,
    "walk": walk,
    "detector": detector,
    "dancer": dancer,
}
NEEDED = {  # options of a section
    "sequences": ("data", "train"),
    "crops": ("data", "train"),
    "dancer": ("result",),
}


def main() -> None:
    """Measure what one section says, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("section", choices=SECTIONS)
    parser.add_argument("--weights", type=Path, help="default: what `mpsnet run` would use")
    parser.add_argument("--still", type=Path, help="weights to use for single pictures")
    parser.add_argument("--data", type=Path, help="held-out samples of mpsnet synth")
    parser.add_argument("--train", type=Path, help="samples that the weights were trained on")
    parser.add_argument("--result", type=Path, help="a clip's folder, of mpsnet run")
    parser.add_argument(
        "--joints", type=Path, default=MARKS, help="2D joints of that clip, from elsewhere"
    )
    parser.add_argument("--detector", default="person-starter", help="a file, or a name")
    parser.add_argument("--reference", type=Path, help="another detector, to compare on clips")
    parser.add_argument("--clips", type=Path, nargs="+", default=[], help="real ones")
    parser.add_argument("--every", type=int, default=10, help="of how many frames of them one")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    for name in NEEDED.get(options.section, ()):
        if getattr(options, name) is None:
            parser.error(f"{options.section} needs --{name}")
    text = SECTIONS[options.section](options, make_reporter(None))
    document = options.output.read_text() if options.output.is_file() else HEAD
    options.output.write_text(with_section(document, options.section, text))
    print(text)


if __name__ == "__main__":
    main()
