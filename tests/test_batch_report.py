from __future__ import annotations

import base64
import errno
import json
import os
import time
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote, urlsplit

import cv2
import numpy as np
import pytest
from clips import make_clip, number
from outcomes import UNTRAINED, make_outcome

from mpsnet_cli.batch import report as module
from mpsnet_cli.batch import strip as strips
from mpsnet_cli.batch.outcome import Outcome
from mpsnet_cli.batch.report import Report
from mpsnet_cli.batch.strip import STRIP, keep_strip
from mpsnet_cli.errors import OutputError

HOSTILE = [
    "<script>alert(1)</script>",
    '"onmouseover="alert(1)',
    "'><img src=http://127.0.0.1:9/x onerror=alert(1)>",
    "</style></title><b>",
    "a\nb",
    "a  b",
    "&lt;b&gt;",
    "100% #1?x=y",
    "javascript:alert(1)",
    "{{ 7 * 7 }}{% endfor %}",
    "caf\udce9",
    "שלום",
    "x" * 200,
]


class Page(HTMLParser):
    """What a browser would make of a page, as far as the tests ask."""

    VOID = ("meta", "link", "img", "input", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[tuple[str, str]] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: dict[str, list[str]] = {}  # by the tag, or its class, that they are in
        self.feed(text)
        self.close()
        assert self.open == []  # all that was opened is closed, in the right order

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(key, value or "") for key, value in attrs]
        if tag not in self.VOID:
            kinds = [tag, *(dict(attrs).get("class") or "").split()]
            self.open.append((tag, " ".join(kinds)))
            for kind in kinds:
                self.texts.setdefault(kind, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for _, kinds in self.open:
            for kind in kinds.split():
                self.texts[kind][-1] += data

    def text(self, kind: str) -> list[str]:
        return [" ".join(text.split()) for text in self.texts.get(kind, [])]

    def values(self, key: str) -> list[str]:
        return [value for name, value in self.attributes if name == key]


def write(out: Path, *outcomes: Outcome, unfinished: int = 0, **arguments: Any) -> Page:
    report = Report(out, arguments=arguments, started=time.time() - 100)
    for outcome in outcomes:
        report.add(outcome)
    report.write(unfinished=unfinished)
    return read(out)


def read(out: Path) -> Page:
    return Page((out / "report.html").read_text("utf-8"))


def record(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text())


def failed(name: str, sentence: str = "It is empty.", **fields: Any) -> Outcome:
    return Outcome(Path(f"/footage/{name}.mp4"), name, "failed", sentence, **fields)


@pytest.fixture(scope="module")
def overlay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("overlay") / "overlay.mp4")


def pictures(page: Page) -> list[bytes]:
    urls = [url for url in page.values("src") if url.startswith("data:image/jpeg;base64,")]
    return [base64.b64decode(url.partition(",")[2], validate=True) for url in urls]


def numbers(jpeg: bytes, width: int = 64) -> list[int]:
    """The numbers of the frames of a strip."""
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    step = width + strips.GAP
    return [number(image[:, left : left + width]) for left in range(0, image.shape[1], step)]


# --- the page ------------------------------------------------------------------------------------


def test_failures_stand_first_then_clips_in_the_order_of_their_numbers(
    tmp_path: Path, overlay: Path
) -> None:
    names = ["b/clip10", "b/clip9", "a/Clip2", "a/clip1"]
    outcomes = [make_outcome(tmp_path, name, overlay=overlay) for name in names]
    partial = make_outcome(tmp_path, "torn", "partial", overlay=overlay, sentence="Only a part.")
    page = write(tmp_path, *outcomes[:2], partial, failed("z"), *outcomes[2:], failed("c"))
    assert page.text("name")[1:] == [
        *("c", "z", "torn"),
        *("a/clip1", "a/Clip2", "b/clip9", "b/clip10"),
    ]
    assert page.text("h1") == ["2 failed, 1 partly read, 4 of 7 clips done"]
    assert page.text("sentence") == ["It is empty.", "It is empty.", "Only a part."]


def test_a_batch_without_failures_says_so(tmp_path: Path, overlay: Path) -> None:
    page = write(tmp_path, make_outcome(tmp_path, "a", overlay=overlay))
    assert page.text("h1") == ["The clip is done"]
    assert page.text("failed") == page.text("note") == []
    assert page.text("facts")[0] == "1 person 10 frames 0.4 s at 25 fps 64×48 px"
    assert page.text("facts")[1] == (
        "10.0 s of work, 1.0 frames/s detect 1.5 s reconstruct 6.0 s overlay 2.5 s"
    )
    assert write(tmp_path).text("h1") == ["No clips"]


def test_what_is_to_come_is_counted(tmp_path: Path, overlay: Path) -> None:
    page = write(tmp_path, make_outcome(tmp_path, "a", overlay=overlay), unfinished=3)
    assert page.text("h1") == ["1 of 4 clips done"]
    assert page.text("note")[0].startswith("3 clips to go when this was written")
    assert record(tmp_path)["unfinished"] == 3


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_shown_and_linked_whatever_they_are(
    tmp_path: Path, overlay: Path, name: str
) -> None:
    out = tmp_path / "out"
    weights = {"name": name, "sha256": "", "trained": True}
    outcome = make_outcome(out, name, overlay=overlay, warnings=[name], weights=weights)
    bad = failed(f"{name} too", f"{name} is bad.\nSo it is.", traceback=name)
    page = write(out, outcome, bad, clips=[name])
    seen = name.replace("\udce9", "\\udce9")
    assert page.texts["name"][1:] == [f"{seen} too", seen]
    assert page.texts["sentence"] == [f"{seen} is bad.\nSo it is."]
    assert page.texts["pre"] == [seen]
    plain = write(
        tmp_path / "plain",
        make_outcome(tmp_path / "plain", "a", overlay=overlay, warnings=["w"]),
        failed("b", traceback="t"),
        clips=["c"],
    )
    assert page.tags == plain.tags  # the name made no element
    assert sorted(key for key, _ in page.attributes) == sorted(key for key, _ in plain.attributes)
    links = [urlsplit(link) for link in page.values("href")]
    for link in links:
        assert link.netloc == link.query == link.fragment == "" or link.fragment == "clips"
    paths = [out / os.fsdecode(unquote(link.path, errors="surrogateescape")) for link in links]
    paths = [path for path, link in zip(paths, links, strict=True) if not link.scheme and link.path]
    assert len(paths) == 5  # overlay, person, meshes, folder, report.json
    assert all(path.exists() for path in paths)
    assert {link.scheme for link in links} == {"", "data"}


def test_characters_that_show_nothing_are_shown(tmp_path: Path) -> None:
    page = write(tmp_path, failed("\u202egpj.exe\x1b[31m\u2028"))
    assert page.texts["name"][1:] == ["\\u202egpj.exe\\x1b[31m\\u2028"]


def test_nothing_is_loaded_and_nothing_runs(tmp_path: Path, overlay: Path) -> None:
    page = write(tmp_path, make_outcome(tmp_path, "a", overlay=overlay), failed("b"))
    assert "script" not in page.tags
    assert not any(key.startswith("on") for key, _ in page.attributes)
    assert all(url.startswith("data:") for url in page.values("src"))
    policy = next(value for value in page.values("content") if "default-src" in value)
    assert policy.startswith("default-src 'none'; img-src data:;")
    css = page.texts["style"][0]
    assert "url(" not in css
    assert "@import" not in css


@pytest.mark.parametrize(
    ("weights", "note"),
    [
        ({"name": "m", "trained": True}, None),
        ({"name": "m (partly trained)", "trained": True}, "Partly trained weights."),
        ({"name": "untrained (random)", "trained": False}, "Untrained weights."),
    ],
)
def test_weights_that_are_not_trained_are_called_that(
    tmp_path: Path, overlay: Path, weights: dict[str, Any], note: str | None
) -> None:
    weights = {"sha256": "0" * 64, **weights}
    odd = make_outcome(tmp_path, "a", overlay=overlay, weights=weights)
    page = write(tmp_path, odd)
    if note is None:
        assert page.text("note") == []
        return
    (said,) = page.text("note")
    assert said.startswith(note)
    assert said.endswith("All results were made with them.")
    (said,) = write(tmp_path, odd, make_outcome(tmp_path, "b", overlay=overlay)).text("note")
    assert said.endswith("1 result was made with them.")


def test_a_warning_of_every_clip_stands_once(tmp_path: Path, overlay: Path) -> None:
    warnings = [[UNTRAINED], [UNTRAINED, "The frame rate is not constant."]]
    outcomes = [
        make_outcome(tmp_path, name, overlay=overlay, warnings=each)
        for name, each in zip("ab", warnings, strict=True)
    ]
    page = write(tmp_path, *outcomes)
    assert page.text("common") == [f"Every clip: {UNTRAINED}"]
    assert page.text("warnings")[1:] == ["The frame rate is not constant."]
    assert "with warnings 1" in page.text("label")
    page = write(tmp_path, outcomes[0])
    assert page.text("common") == []
    assert page.text("warnings") == [UNTRAINED]


def test_only_the_kinds_that_there_are_can_be_chosen(tmp_path: Path, overlay: Path) -> None:
    done = make_outcome(tmp_path, "a", overlay=overlay)
    assert write(tmp_path, done).text("label") == []
    nobody = make_outcome(
        tmp_path, "b", "nobody", people=0, clip=overlay, sentence="Nobody was found in it."
    )
    page = write(tmp_path, done, nobody, failed("c"))
    assert page.text("label") == ["all 2", "done 1", "nobody found 1"]
    assert page.values("value") == ["all", "done", "nobody"]


def test_many_people_are_not_all_linked(tmp_path: Path, overlay: Path) -> None:
    page = write(tmp_path, make_outcome(tmp_path, "a", overlay=overlay, people=30))
    assert [text for text in page.text("a") if text.startswith("Person")] == [
        f"Person {number}" for number in range(1, 9)
    ]
    assert "22 more in the folder" in page.text("links")[0]


def test_what_it_was_made_with(tmp_path: Path, overlay: Path) -> None:
    outcomes = [
        make_outcome(tmp_path, "a", overlay=overlay),
        make_outcome(tmp_path, "b", overlay=overlay),
        make_outcome(tmp_path, "c", overlay=overlay, detector={"boxes": "full", "sha256": ""}),
    ]
    page = write(tmp_path, *outcomes, clips=["x", Path("y")], boxes=None, people=(), quiet=False)
    facts, options = page.text("table")
    assert "Weights mps-net, sha256 abababababab… Body free-1" in facts
    assert "yolo11n.pt (2 clips) boxes: full (1 clip)" in facts
    assert options == "clips x y quiet False"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 0 s"),
        (185.4, "3 min 5 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 0 min"),
        (25931, "7 h 12 min"),
        (7_200_000, "2,000 h 0 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert module._duration(seconds) == text


# --- the record ----------------------------------------------------------------------------------


def test_the_record_holds_everything(tmp_path: Path, overlay: Path) -> None:
    began = time.time() - 50
    report = Report(tmp_path, arguments={"clips": [Path("x")]}, started=began)
    done = make_outcome(tmp_path, "in/a", overlay=overlay, people=2, seconds=12.5)
    kept = make_outcome(tmp_path, "b", "kept", overlay=overlay, seconds=0.0)
    bad = failed("c", attempts=2, seconds=3.25, traceback="line 1")
    for outcome in (done, kept, bad):
        report.add(outcome)
    report.write(unfinished=0)
    found = record(tmp_path)
    assert found["format"] == "mpsnet-batch/1"
    assert found["arguments"] == {"clips": ["x"]}
    assert datetime.fromisoformat(found["started"]).timestamp() == pytest.approx(began, abs=1)
    totals = found["totals"]
    assert 50 <= totals.pop("wall_seconds") < 60
    assert 10 / 60 - 0.01 < totals.pop("frames_per_second") <= 10 / 50  # not the kept one's
    assert totals == {
        "clips": 3, "failed": 1, "stopped": 0, "partial": 0, "done": 1, "kept": 1, "nobody": 0,
        "people": 3, "frames": 20, "video_seconds": 0.8, "work_seconds": 15.75,
    }  # fmt: skip
    assert [clip["name"] for clip in found["clips"]] == ["c", "b", "in/a"]
    assert found["clips"][0] == {
        "clip": "/footage/c.mp4", "name": "c", "status": "failed", "sentence": "It is empty.",
        "folder": None, "manifest": None, "seconds": 3.25, "attempts": 2, "traceback": "line 1",
    }  # fmt: skip
    assert found["clips"][2]["folder"] == "in/a"
    assert found["clips"][2]["manifest"] == done.manifest


def test_a_later_outcome_takes_the_place_of_an_earlier_one(tmp_path: Path, overlay: Path) -> None:
    report = Report(tmp_path, arguments={}, started=time.time())
    report.add(failed("a"))
    report.write(unfinished=1)
    report.add(make_outcome(tmp_path, "a", overlay=overlay))
    report.write(unfinished=0)
    assert [clip["status"] for clip in record(tmp_path)["clips"]] == ["done"]
    assert len(pictures(read(tmp_path))) == 1
    report.add(failed("a"))
    report.write(unfinished=0)
    assert pictures(read(tmp_path)) == []


def test_a_full_disk_leaves_the_older_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, failed("a"))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"report.json", "report.html"}
    write_bytes = Path.write_bytes

    def half(path: Path, content: bytes) -> NoReturn:
        write_bytes(path, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OutputError, match=r"report\.json cannot be written: No space left"):
        write(tmp_path, failed("b"))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_out_that_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OutputError, match=r"out/report\.json cannot be written: "):
        write(tmp_path / "out")


# --- strips --------------------------------------------------------------------------------------


def test_a_strip_shows_frames_spread_over_the_overlay(tmp_path: Path, overlay: Path) -> None:
    (jpeg,) = pictures(write(tmp_path, make_outcome(tmp_path, "a", overlay=overlay)))
    assert numbers(jpeg) == [1, 3, 6, 8]
    assert (tmp_path / "a" / STRIP).read_bytes() == jpeg


def test_without_an_overlay_it_shows_the_part_of_the_clip_that_was_asked_for(
    tmp_path: Path,
) -> None:
    clip = make_clip(tmp_path / "clip.mp4", frames=50)
    asked = {"start": 0.4, "end": 1.2}  # frames 10 to 29
    page = write(
        tmp_path, make_outcome(tmp_path, "a", clip=clip, overlay=None, people=0, arguments=asked)
    )
    assert numbers(pictures(page)[0]) == [12, 17, 22, 27]
    assert page.values("alt") == ["Frames of the clip"]


@pytest.mark.parametrize(("frames", "shown"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2])])
def test_a_short_overlay_shows_what_it_has(tmp_path: Path, frames: int, shown: list[int]) -> None:
    clip = make_clip(tmp_path / "clip.mp4", frames=frames)
    strip = keep_strip(make_outcome(tmp_path, "a", overlay=clip))
    assert strip is not None
    assert numbers(strip.jpeg) == shown


@pytest.mark.parametrize(
    ("size", "fitted"), [((640, 360), (256, 144)), ((360, 640), (81, 144)), ((640, 2), (256, 1))]
)
def test_frames_are_made_to_fit(
    tmp_path: Path, size: tuple[int, int], fitted: tuple[int, int]
) -> None:
    clip = make_clip(tmp_path / "clip.mp4", frames=4, size=size)
    strip = keep_strip(make_outcome(tmp_path, "a", overlay=clip))
    assert strip is not None
    width, height = fitted
    assert (strip.width, strip.height) == (4 * width + 3 * strips.GAP, height)
    image = cv2.imdecode(np.frombuffer(strip.jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert image.shape[1::-1] == (strip.width, strip.height)


def test_a_strip_is_decoded_once(
    tmp_path: Path, overlay: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = make_outcome(tmp_path, "a", overlay=overlay)
    made = keep_strip(outcome)
    monkeypatch.setattr(strips, "probe", lambda path: pytest.fail(f"{path} is decoded again"))
    assert keep_strip(outcome) == made
    assert len(pictures(write(tmp_path, outcome))) == 1


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xffno", b"\0" * (strips.LARGEST + 1)])
def test_what_is_no_strip_is_replaced(tmp_path: Path, overlay: Path, content: bytes) -> None:
    outcome = make_outcome(tmp_path, "a", overlay=overlay)
    (tmp_path / "a" / STRIP).write_bytes(content)
    strip = keep_strip(outcome)
    assert strip is not None
    assert numbers(strip.jpeg) == [1, 3, 6, 8]
    assert (tmp_path / "a" / STRIP).read_bytes() == strip.jpeg


@pytest.mark.parametrize("broken", ["gone", "no video", "cut"])
def test_what_does_not_decode_has_no_strip(tmp_path: Path, overlay: Path, broken: str) -> None:
    outcome = make_outcome(tmp_path, "a", overlay=overlay)
    file = tmp_path / "a" / "overlay.mp4"
    if broken == "gone":
        file.unlink()
    else:
        file.write_bytes(b"none" if broken == "no video" else overlay.read_bytes()[:500])
    page = write(tmp_path, outcome)
    assert pictures(page) == []
    assert page.text("name")[1:] == ["a"]
    assert not (tmp_path / "a" / STRIP).exists()


def test_the_clip_of_a_failure_is_not_touched(
    tmp_path: Path, overlay: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be what killed two processes."""
    monkeypatch.setattr(strips, "probe", lambda path: pytest.fail(f"{path} is opened"))
    bad = Outcome(overlay, "a", "failed", "The process died (signal 11) twice.", attempts=2)
    page = write(tmp_path, bad)
    assert page.text("path") == [str(overlay), "Begun 2 times."]


def test_pictures_are_left_out_before_the_page_grows_too_large(
    tmp_path: Path, overlay: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = [make_outcome(tmp_path, name, overlay=overlay) for name in "abc"]
    (size,) = {(len(keep_strip(each).jpeg) + 2) // 3 * 4 for each in outcomes}  # type: ignore[union-attr]
    monkeypatch.setattr(module, "MAX_PICTURES", 2 * size)
    page = write(tmp_path, *outcomes)
    assert len(pictures(page)) == 2
    assert "leaves out the pictures of 1 clip; they are strip.jpg" in page.text("footer")[0]
    assert (tmp_path / "c" / STRIP).exists()
