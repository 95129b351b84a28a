"""How quick the page is in Chromium: a table, one JSON line and one file.

    python benchmarks/page.py

The page of the small model that ships, and for `turns` the page over a chat without a model (`tests/fake_server.py`),
so that 200 turns take a minute: both are served for this, in folders that go. Needs Chromium and the test packages, and
an idle computer; the load before and after is told.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from playwright.sync_api import Page, expect

from app.eval import report
from app.settings import SMALL_MODEL
from app.ui.asking import MORE_TURNS, TURNS
from benchmarks import machine
from tests.browser import Visit, chromium, visiting
from tests.serving import serving
from tests.ingest.pdf_maker import drawn, page_objects, pdf_bytes

PAGES, ASKED, LONGEST_S = 1_000, 200, 600
BARS = {
    "usable_s": 2.0, "keystroke_ms": 50.0, "viewer_ms": 300.0, "open_turns_s": 1.0, "longest_frame_ms": 100.0,
    "heap_growth": 1.25,
}  # fmt: skip
LINES = "\n".join(f"Line {number} tells of the harbour, of its lamp and of the road." for number in range(30))

# From the key until the next picture of the page, for each key.
WATCH_KEYS = """() => {
  window.keys = [];
  document.querySelector('#question textarea').addEventListener('keydown', (event) => {
    requestAnimationFrame(() => setTimeout(() => window.keys.push(performance.now() - event.timeStamp)));
  });
}"""
# Milliseconds from the click until the other page is drawn.
TURN = """async (number) => {
  const began = performance.now(), form = document.querySelector('#found-page nav form');
  form.querySelector('input').value = number;
  form.requestSubmit();
  const shown = () => {
    const page = document.querySelector('#found-page .lt-scan img');
    return page?.src.endsWith(`/${number}.jpg`) && page.complete && page.naturalWidth;
  };
  while (!shown()) await new Promise(requestAnimationFrame);
  return performance.now() - began;
}"""
# The longest time between two pictures while the chat is scrolled through.
SCROLL = """async () => {
  const talk = document.querySelector('#talk .message-wrap').parentElement;
  let last = performance.now(), longest = 0;
  for (let top = 0; top < talk.scrollHeight; top += 400) {
    talk.scrollTop = top;
    await new Promise(requestAnimationFrame);
    const now = performance.now();
    longest = Math.max(longest, now - last);
    last = now;
  }
  return longest;
}"""


def main() -> int:
    """Measure; the exit code is 1 when a bar is not met."""
    args = _arguments()
    before = os.getloadavg()[0]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        room = Path(folder)
        real = ["-m", "app.cli", "serve", "--no-browser", "--port", "0", "--model", str(SMALL_MODEL)]
        with _served(room, [*real, "--home", str(room / "home")]) as url:
            began = time.perf_counter()
            with visiting(browser, url) as visit:
                found["usable_s"] = round(time.perf_counter() - began, 2)
                found |= _viewer(visit, room)
        with _served(room / "fake", ["-m", "tests.fake_server", "0", str(room / "fake" / "home"), "0"]) as url:
            with visiting(browser, url) as visit:
                found |= _turns(visit, args.turns)
    rows = [[name, found[name], bar, "yes" if found[name] <= bar else "NO"] for name, bar in BARS.items()]
    met = {name: found[name] <= bar for name, bar in BARS.items()}
    load = {"before": before, "after": os.getloadavg()[0]}
    result = {"benchmark": "page", **found, "bars": BARS, "met": met, "load": load, **machine.describe()}
    print(report.table(["figure", "seen", "bar", "met"], rows))
    print(json.dumps(result))
    args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0 if all(met.values()) else 1


@contextmanager
def _served(room: Path, command: list[str]) -> Iterator[str]:
    room.mkdir(exist_ok=True)
    with serving(command, room) as server:
        yield server.url


def _viewer(visit: Visit, room: Path) -> dict[str, float]:
    """Typing while a PDF of 1,000 pages is read, then its pages here and there."""
    page, file = visit.page, room / "harbour.pdf"
    pages = [drawn(f"Page {number + 1}\n{LINES}") for number in range(PAGES)]
    file.write_bytes(pdf_bytes(page_objects(pages)))
    visit.tab("Library")
    page.set_input_files("#drop input", [file])
    expect(visit.row("harbour")).to_contain_text("reading", timeout=LONGEST_S * 1000)
    visit.tab("Ask")
    page.evaluate(WATCH_KEYS)
    page.locator("#question textarea").press_sequentially("What stands by the harbour?", delay=80)
    page.wait_for_timeout(300)
    keys = sorted(page.evaluate("window.keys"))
    visit.tab("Library")
    page.get_by_role("button", name="Pause").click()
    visit.row("harbour").get_by_role("button", name="Open").click()
    expect(page.locator("#found-page .lt-scan img")).to_be_visible(timeout=LONGEST_S * 1000)
    times = [page.evaluate(TURN, number) for number in (500, 17, 999, 250, 750, 3, 600, 601, 602, 420, 88)][1:]
    return {
        "keystroke_ms": round(keys[int(0.95 * (len(keys) - 1))], 1),
        "keystroke_median_ms": round(statistics.median(keys), 1),
        "viewer_ms": round(statistics.median(times), 1),
        "viewer_most_ms": round(max(times), 1),
    }


def _turns(visit: Visit, turns: int) -> dict[str, float]:
    """A chat of so many turns: the page's memory while it grows, opening it, scrolling through it."""
    page = visit.page
    heaps, answered = {}, []
    for turn in range(1, turns + 1):
        began = time.perf_counter()
        visit.ask(f"What about thing {turn}?", timeout_s=LONGEST_S)
        answered.append(time.perf_counter() - began)
        if turn in (turns // 10, turns):
            heaps[turn] = _heap_mb(page)
    page.reload()
    expect(page.locator(".lt-foot")).to_have_count(min(turns, TURNS), timeout=LONGEST_S * 1000)
    page.click("#new-chat")
    expect(page.locator("#talk")).to_be_hidden()
    page.get_by_role("button", name="Toggle Sidebar").click()
    began = time.perf_counter()
    page.locator("#side-chats .lt-side-open").first.click()
    expect(page.locator(".lt-foot")).to_have_count(min(turns, TURNS), timeout=LONGEST_S * 1000)
    opened_s = time.perf_counter() - began
    began = time.perf_counter()
    for shown in range(TURNS, turns, MORE_TURNS):
        page.locator("[data-do=earlier]").click()
        expect(page.locator(".lt-foot")).to_have_count(min(turns, shown + MORE_TURNS), timeout=LONGEST_S * 1000)
    all_s = time.perf_counter() - began
    first, last = heaps.values()
    visit.errors.clear()  # of the reload
    return {
        "open_turns_s": round(opened_s, 2),
        "show_all_turns_s": round(all_s, 2),
        "longest_frame_ms": round(page.evaluate(SCROLL), 1),
        "turn_s_first": round(statistics.median(answered[: turns // 10]), 2),
        "turn_s_last": round(statistics.median(answered[-turns // 10 :]), 2),
        "heap_first_mb": first,
        "heap_last_mb": last,
        "heap_growth": round(last / first, 2),
        "turns": turns,
    }


def _heap_mb(page: Page) -> float:
    """JavaScript's memory of the page after a collection."""
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    session.send("Performance.enable")
    metrics = {metric["name"]: metric["value"] for metric in session.send("Performance.getMetrics")["metrics"]}
    session.detach()
    return round(metrics["JSHeapUsedSize"] / 1e6, 1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=ASKED)
    parser.add_argument("--output", type=Path, default=machine.ROOT / "benchmarks" / "results" / "page.json")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
