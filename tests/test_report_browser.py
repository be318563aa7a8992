"""The report of a batch in a real browser, which is asked what it shows."""

from __future__ import annotations

import html
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from clips import make_clip
from outcomes import UNTRAINED, make_outcome

from mpsnet_cli.batch.outcome import Outcome
from mpsnet_cli.batch.report import Report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM, reason="needs chromium, which is not on PATH"),
]
WIDTHS = (400, 800, 1600)  # px
CONTRAST = 4.5  # that WCAG 2.2 AA asks of text

# Asks the frames of a page what they show, and writes the answers into the page.
QUESTIONS = """
const rgb = text => text.match(/[\\d.]+/g).map(Number);
const light = text => {
  const [r, g, b] = rgb(text).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = element => {
  for (let e = element; e; e = e.parentElement) {
    const colour = getComputedStyle(e).backgroundColor;
    if ((rgb(colour)[3] ?? 1) === 1) return colour;
  }
  return 'rgb(255, 255, 255)';
};
const contrast = element => {
  const pair = [getComputedStyle(element).color, behind(element)].map(light).sort((a, b) => b - a);
  return (pair[0] + 0.05) / (pair[1] + 0.05);
};
const worded = document => [...document.body.querySelectorAll('*')].filter(element =>
  [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim()));
const shown = (document, what) =>
  [...document.querySelectorAll(what)].filter(e => e.getClientRects().length);
const ask = frame => {
  const page = frame.contentDocument, root = page.documentElement;
  const texts = worded(page).map(e => [contrast(e), e.textContent.trim().slice(0, 40)]);
  const filtered = {};
  for (const button of page.querySelectorAll('input')) {
    button.click();
    filtered[button.value] = shown(page, '#clips .name').map(e => e.textContent);
  }
  page.querySelector('input')?.click();
  return {
    width: frame.clientWidth,
    overflow: root.scrollWidth - root.clientWidth,
    cut: [...page.querySelectorAll('.clip, dl')].filter(e => e.scrollWidth > e.clientWidth).length,
    scripts: page.scripts.length,
    bold: page.querySelectorAll('b').length,
    background: getComputedStyle(page.body).backgroundColor,
    names: [...page.querySelectorAll('h3 .name')].map(e => e.textContent),
    pictures: [...page.images].map(e => [e.complete, e.naturalWidth, e.naturalHeight]),
    attributes: [...page.images].map(e => [+e.getAttribute('width'), +e.getAttribute('height')]),
    faint: texts.filter(text => text[0] < CONTRAST),
    headings: [...page.querySelectorAll('h1, h2, h3')].map(e => e.localName),
    tabs: shown(page, 'a, summary, input, pre').filter(e => e.tabIndex >= 0).length,
    links: page.links.length,
    filtered,
  };
};
addEventListener('load', () => {
  const answers = [...document.querySelectorAll('iframe')].map(ask);
  document.getElementById('answers').textContent = JSON.stringify(answers);
});
""".replace("CONTRAST", str(CONTRAST))


class Trap(BaseHTTPRequestHandler):
    """A server that nothing should ask."""

    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_error(404)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def trap() -> Iterator[tuple[str, list[str]]]:
    """The address of a server, and what it was asked."""
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Listening", (Trap,), {"asked": asked}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, trap: tuple[str, list[str]]) -> Path:
    """The page of a batch of clips with hostile names, of every status."""
    out = tmp_path_factory.mktemp("batch")
    overlay = make_clip(out / "overlay.mp4", size=(640, 360))
    address, _ = trap
    hostile = [
        f"<img src={address}/image onerror=console.error(1)>",
        f"'><link rel=stylesheet href={address}/style><b>",
        '"><script>console.error(2)</script>',
        f'" style="background:url({address}/css)" onclick="alert(3)',
        "</style></title></script><b>",
        "a\nb",
        "caf\udce9",
        "שלום עולם",
        "x" * 200,
    ]
    page = Report(out, arguments={"clips": hostile}, started=time.time() - 26000)
    weights = {"name": hostile[0], "sha256": "0" * 64, "trained": False}
    for name in hostile:
        clip, sentence = Path(f"/{name}.mp4"), f"{name}.mp4 is no video: give one."
        page.add(Outcome(clip, f"bad/{name}", "failed", sentence, attempts=2, traceback=name * 5))
        page.add(
            make_outcome(out, name, overlay=overlay, warnings=[name, UNTRAINED], weights=weights)
        )
    page.add(make_outcome(out, "plain", "kept", overlay=overlay, people=20, warnings=[UNTRAINED]))
    page.add(make_outcome(out, "torn", "partial", overlay=overlay, sentence="Only a part."))
    page.add(make_outcome(out, "empty", "nobody", people=0, sentence="Nobody was found."))
    page.write(unfinished=3)
    return out / "report.html"


def browse(page: Path, folder: Path, *, dark: bool = False) -> tuple[str, str]:
    """Open a page in a browser; return its elements and what the console said."""
    assert CHROMIUM
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",  # which root has none of
        "--disable-gpu",
        "--disable-background-networking",
        "--no-first-run",
        f"--user-data-dir={folder / 'profile'}",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        "--window-size=1700,1000",
        "--enable-logging=stderr",
        "--virtual-time-budget=10000",
        "--dump-dom",
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, timeout=240, check=True)
    said = done.stderr.decode(errors="replace").splitlines()
    return done.stdout.decode(), "\n".join(line for line in said if "CONSOLE" in line)


def answers(page: Path, folder: Path, *, dark: bool) -> tuple[list[dict[str, Any]], str]:
    """Ask a page at every width, and one that is too wide; return also what the console said."""
    source = html.escape(page.read_text("utf-8"))
    wide = html.escape("<!doctype html><p style='color: #888; background: #fff; width: 999px'>x")
    asking = folder / "asking.html"
    frames = [f'<iframe width={width} height=900 srcdoc="{source}"></iframe>' for width in WIDTHS]
    asking.write_text(
        f"<meta charset=utf-8><pre id=answers></pre>{''.join(frames)}"
        f'<iframe width=800 srcdoc="{wide}"></iframe><script>{QUESTIONS}</script>'
    )
    elements, console = browse(asking, folder, dark=dark)
    found = elements.partition('<pre id="answers">')[2].partition("</pre>")[0]
    return json.loads(html.unescape(found)), console


@pytest.fixture(scope="module", params=["light", "dark"])
def asked(
    request: pytest.FixtureRequest, report: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[dict[str, Any]], str, str]:
    """What the browser answered, what its console said, and the colour scheme."""
    folder = tmp_path_factory.mktemp(request.param)
    return *answers(report, folder, dark=request.param == "dark"), request.param


def test_nothing_scrolls_sideways(asked: tuple[list[dict[str, Any]], str, str]) -> None:
    *pages, wide = asked[0]
    assert [page["width"] for page in pages] == list(WIDTHS)
    assert [page["overflow"] for page in pages] == [0] * len(WIDTHS)
    assert [page["cut"] for page in pages] == [0] * len(WIDTHS)
    assert wide["overflow"] > 0  # the question has another answer


def test_text_can_be_read_in_both_schemes(asked: tuple[list[dict[str, Any]], str, str]) -> None:
    *pages, wide = asked[0]
    assert all(page["faint"] == [] for page in pages)
    assert len(wide["faint"]) == 1
    brightness = [int(part) for part in pages[0]["background"][4:-1].split(",")]
    assert all(part < 60 if asked[2] == "dark" else part > 200 for part in brightness)


def test_names_are_text(asked: tuple[list[dict[str, Any]], str, str]) -> None:
    for page in asked[0][: len(WIDTHS)]:
        assert page["scripts"] == page["bold"] == 0
        assert "bad/<img src=" in " ".join(page["names"])
        assert {"a\nb", "caf\\udce9", "שלום עולם", "x" * 200} <= set(page["names"])
        assert len(page["names"]) == 2 * 9 + 3


def test_the_console_is_silent_and_no_server_is_asked(
    asked: tuple[list[dict[str, Any]], str, str], trap: tuple[str, list[str]]
) -> None:
    assert asked[1] == ""
    assert trap[1] == []


def test_pictures_are_shown_at_the_size_they_have(
    asked: tuple[list[dict[str, Any]], str, str],
) -> None:
    for page in asked[0][: len(WIDTHS)]:
        assert page["pictures"] == [[True, 4 * 256 + 3 * 4, 144]] * 11
        assert page["attributes"] == [[1036, 144]] * 11


def test_the_kinds_of_clips_can_be_chosen_without_a_script(
    asked: tuple[list[dict[str, Any]], str, str],
) -> None:
    shown = asked[0][1]["filtered"]
    assert {kind: len(names) for kind, names in shown.items()} == {
        "all": 11,
        "done": 9,
        "kept": 1,
        "nobody": 1,
        "warned": 10,
    }
    assert shown["kept"] == ["plain"]
    assert shown["nobody"] == ["empty"]


def test_the_keyboard_reaches_all(asked: tuple[list[dict[str, Any]], str, str]) -> None:
    page = asked[0][1]
    details = 9 + 1  # tracebacks and the options, closed
    assert page["tabs"] == page["links"] + details + len(page["filtered"])
    assert page["headings"][:2] == ["h1", "h2"]


def test_the_checks_would_notice(tmp_path: Path, trap: tuple[str, list[str]]) -> None:
    """The console and the server do speak of a page that is not safe."""
    address, requests = trap
    page = tmp_path / "unsafe.html"
    page.write_text(f"<img src={address}/probe><script>console.error('unsafe')</script>")
    _, console = browse(page, tmp_path)
    assert "unsafe" in console
    assert requests == ["/probe"]
    requests.clear()


def test_the_page_itself_opens(report: Path, tmp_path: Path) -> None:
    """Not in a frame but as a file, as a user opens it."""
    elements, console = browse(report, tmp_path)
    assert console == ""
    assert "9 failed, 1 partly read, 11 of 24 clips done" in " ".join(elements.split())
    assert os.fspath(report.parent.name) in elements
