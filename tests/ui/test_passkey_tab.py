"""The Passkey tab's generator over a fake run."""

import re
import threading

import pytest

from app.ui import passkey_tab
from tests.fake_chat import FakeDocumentChat, fake_passkey_run, model_state


def run(chat: FakeDocumentChat, lengths=(8192, 2048), trials: int = 10, bands: int = 5, using=fake_passkey_run):
    return list(passkey_tab.test(chat, lengths, trials, bands, using))


def test_cells_fill_the_map_and_are_kept(chat: FakeDocumentChat) -> None:
    steps = run(chat)
    filled = [html.count("</td><td style") + html.count("</th><td style") for _, html in steps]
    assert filled == sorted(filled) and filled[0] == 0 and filled[-1] == 10
    assert any("% " in re.sub("<[^>]+>", " ", line) or "%" in line for line, _ in steps)
    assert "19 of 20 right" in steps[-1][0]
    (kept,) = chat.store.passkey_runs()
    assert len(kept["cells"]) == 10 and kept["settings"]["lengths"] == [2048, 8192] and kept["policy"] == "keep-all"


def test_map_has_a_row_per_length_and_a_column_per_depth(chat: FakeDocumentChat) -> None:
    html = run(chat)[-1][1]
    assert re.findall(r'scope="row">([\d,]+)<', html) == ["2,048", "8,192"]
    assert re.findall(r'scope="col">(\d+%)<', html) == ["10%", "30%", "50%", "70%", "90%"]
    assert '<td style="--right:0.50">1/2</td>' in html


def test_stop_keeps_finished_cells(chat: FakeDocumentChat) -> None:
    def stopped(engine, config, *, on_progress, cancelled):
        for number, cell in enumerate(fake_passkey_run(engine, config, on_progress=on_progress, cancelled=cancelled)):
            yield cell
            if number == 2:
                chat.jobs.stop()

    steps = run(chat, using=stopped)
    assert "Stopped. 6 of 6 right" in steps[-1][0]
    assert len(chat.store.passkey_runs()[0]["cells"]) == 3


def test_closing_the_page_stops_the_run(chat: FakeDocumentChat) -> None:
    steps = passkey_tab.test(chat, [2048], 10, 5, fake_passkey_run)
    for _ in range(3):
        next(steps)
    assert chat.jobs.busy() == "testing passkeys"
    steps.close()
    assert chat.jobs.busy() is None
    assert not [thread for thread in threading.enumerate() if thread.name == "passkey"]


def test_errors_are_messages(chat: FakeDocumentChat) -> None:
    assert "at least one length" in run(chat, lengths=())[-1][0]

    def broken(engine, config, *, on_progress, cancelled):
        raise RuntimeError("boom")
        yield

    line = run(chat, using=broken)[-1][0]
    assert "boom" not in line and "the log has the details" in line
    chat.state = model_state(state="failed", detail="models/x: no weights")
    assert "models/x: no weights" in run(chat)[-1][0]


@pytest.mark.parametrize(("trained", "first"), [(0, 2048), (4096, 4096)])
def test_lengths_are_multiples_of_the_trained_length(trained: int, first: int) -> None:
    offered = passkey_tab.lengths(trained)
    assert [tokens for _, tokens in offered] == [first * times for times in (1, 2, 4, 8, 16)]
    assert offered[4][0] == f"{first * 16:,} (16×)"


def test_earlier_runs_are_listed_newest_first(chat: FakeDocumentChat) -> None:
    assert "No runs yet" in passkey_tab.earlier(chat)
    run(chat, lengths=(2048,), trials=5)
    run(chat, lengths=(4096,), trials=10)
    html = passkey_tab.earlier(chat)
    assert re.findall(r"<b>(\d+ of \d+ right)</b>", html) == ["9 of 10 right", "4 of 5 right"]
    assert html.count('class="lt-heat"') == 2


def test_a_run_under_another_policy(chat: FakeDocumentChat) -> None:
    list(passkey_tab.test(chat, [2048], 10, 5, fake_passkey_run, "h2o"))
    (kept,) = chat.store.passkey_runs()
    assert chat.policies == ["h2o"] and kept["policy"] == "h2o"


@pytest.mark.parametrize(
    ("right", "said"),
    [
        ([5, 5], "Yes, in texts of up to 6,100 words at least: 10 of 10 right."),
        ([4, 3], "In texts of up to about 1,500 words; in longer ones not reliably: 7 of 10 right."),
        ([3, 5], "No: what stands in the middle of a long text it mostly does not find; 8 of 10 right."),
    ],
)
def test_the_result_is_told_in_everyday_words(right: list[int], said: str) -> None:
    cells = [{"tokens": n, "depth": 0.5, "right": r, "trials": 5} for n, r in zip((2048, 8192), right, strict=True)]
    assert passkey_tab.verdict(cells) == said
