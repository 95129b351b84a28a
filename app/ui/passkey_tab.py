"""The Passkey tab: a number hidden in a long text, asked back, at every length and depth."""

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import gradio as gr

from app.errors import CancelledError, ConfigError
from app.eval.passkey import PasskeyCell, PasskeyConfig
from app.settings import POLICIES
from app.ui import format
from app.ui.ask_tab import GPU, PRIVATE

if TYPE_CHECKING:
    from app.chat import DocumentChat

TIMES = (1, 2, 4, 8, 16)
UNTRAINED = 2048  # offered while no model is loaded to tell its trained length
EARLIER_RUNS = 20
ENOUGH = 0.8  # of the numbers of a length have to be found
WORDS_PER_TOKEN = 0.75

Run = Callable[..., Iterator[PasskeyCell]]


def lengths(trained_tokens: int) -> list[tuple[str, int]]:
    """(what is shown, tokens) of the lengths to choose from: multiples of the trained length."""
    trained = trained_tokens or UNTRAINED
    return [(f"{format.count(trained * times)} ({times}×)", trained * times) for times in TIMES]


def grid(cells: Sequence[dict[str, Any]], wanted: Sequence[int] = (), depths: Sequence[float] = ()) -> str:
    """The heat map: a row per length, a column per depth; cells that are not there yet stay empty."""
    columns = sorted({cell["depth"] for cell in cells} | set(depths))
    rows = sorted({cell["tokens"] for cell in cells} | set(wanted))
    known = {(cell["tokens"], cell["depth"]): cell for cell in cells}
    head = "".join(f'<th scope="col">{depth:.0%}</th>' for depth in columns)
    body = "".join(
        f'<tr><th scope="row">{format.count(length)}</th>'
        + "".join(_cell(known.get((length, depth))) for depth in columns)
        + "</tr>"
        for length in rows
    )
    return (
        '<div class="lt-scroll"><table class="lt-heat"><caption>Right answers by length (tokens) and depth in the '
        f"text</caption><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(cell: dict[str, Any] | None) -> str:
    if cell is None or not cell["trials"]:
        return '<td class="lt-todo" aria-label="not run yet"></td>'
    right, trials = cell["right"], cell["trials"]
    return f'<td style="--right:{right / trials:.2f}">{right}/{trials}</td>'


def score(cells: Sequence[dict[str, Any]]) -> str:
    """The sum of the cells: 19 of 20 right."""
    right, trials = sum(cell["right"] for cell in cells), sum(cell["trials"] for cell in cells)
    return f"{right} of {trials} right"


def verdict(cells: Sequence[dict[str, Any]]) -> str:
    """What the cells mean, in everyday words: "Yes, in texts of up to 6,300 words: 10 of 10 right."."""
    rates: dict[int, list[dict[str, Any]]] = {}
    for cell in cells:
        rates.setdefault(cell["tokens"], []).append(cell)
    good = 0
    for tokens, row in sorted(rates.items()):
        right, trials = sum(cell["right"] for cell in row), sum(cell["trials"] for cell in row)
        if right < ENOUGH * trials:
            break
        good = tokens
    if not good:
        return f"No: what stands in the middle of a long text it mostly does not find; {score(cells)}."
    words = f"{round(good * WORDS_PER_TOKEN, -2):,.0f} words"
    if good == max(rates):
        return f"Yes, in texts of up to {words} at least: {score(cells)}."
    return f"In texts of up to about {words}; in longer ones not reliably: {score(cells)}."


def earlier(chat: "DocumentChat") -> str:
    """HTML of the runs that are kept, newest first."""
    try:
        runs = [run for run in chat.store.passkey_runs(EARLIER_RUNS) if run["cells"]]
    except Exception as error:
        return format.failure(error)
    if not runs:
        return '<p class="lt-nothing">No runs yet.</p>'
    return "".join(
        f'<details class="lt-run"><summary><b>{score(run["cells"])}</b>'
        f"<span>{escape(' · '.join((run['model'], format.when(run['created']))))}</span></summary>"
        f'<p class="lt-space">Memory policy {escape(run["policy"])}</p>{grid(run["cells"])}</details>'
        for run in runs
    )


def _events(run: Run, engine: object, config: PasskeyConfig, stop: threading.Event) -> Iterator[Any]:
    """Cells and (done, total) progress as they come. The run works on its own thread: its progress is a callback."""
    events: queue.SimpleQueue[Any] = queue.SimpleQueue()
    end = object()

    def work() -> None:
        try:
            progress = lambda done, total: events.put((done, total))  # noqa: E731
            for cell in run(engine, config, on_progress=progress, cancelled=stop.is_set):
                events.put(cell)
        except Exception as error:
            events.put(error)
        finally:
            events.put(end)

    worker = threading.Thread(target=work, name="passkey", daemon=True)
    worker.start()
    try:
        while (event := events.get()) is not end:
            if isinstance(event, Exception):
                raise event
            yield event
    finally:  # the page was closed: the model must not go on by itself
        stop.set()
        worker.join()


def test(
    chat: "DocumentChat", chosen: Sequence[int], trials: int, bands: int, run: Run, policy: str = ""
) -> Iterator[tuple[str, str]]:
    """Run the test on the loaded model and keep its cells; yields (status HTML, heat map HTML).

    Args:
        policy: what later tokens attend to; "" is what the model was started with.
    """
    cells: list[dict[str, Any]] = []
    wanted: list[int] = sorted(chosen)
    depths = [(band + 0.5) / bands for band in range(bands)]
    status = format.waiting("Waiting for the model")
    try:
        if not wanted:
            raise ConfigError("Choose at least one length.")
        config = PasskeyConfig(lengths=tuple(wanted), trials=int(trials), depth_bands=int(bands))
        yield status, grid(cells, wanted, depths)
        chat.model.engine()  # what is said of the model waits for it
        with chat.jobs.claim("testing passkeys") as job:
            model = chat.model.model_state()
            policy = policy or model.policy
            engine = chat.model.engine_under(policy)
            kept = chat.store.start_passkey_run(model.name, policy, _settings(config))
            for event in _events(run, engine, config, job.cancel):
                if isinstance(event, PasskeyCell):
                    cell = {k: v for k, v in asdict(event).items() if k in ("tokens", "depth", "right", "trials")}
                    chat.store.add_passkey_cell(kept, **cell)
                    cells.append(cell)
                else:
                    status = _progress(*event)
                yield status, grid(cells, wanted, depths)
        yield format.notice(verdict(cells)), grid(cells, wanted, depths)
    except CancelledError:
        yield format.notice(f"Stopped. {score(cells)}; these cells are kept."), grid(cells, wanted, depths)
    except Exception as error:
        yield format.failure(error), grid(cells, wanted, depths) if cells else ""


def _progress(done: int, total: int) -> str:
    percent = format.share(done, total)
    return format.progress(f"<span>Reading and asking</span><span><b>{percent}%</b></span>", percent)


def _settings(config: PasskeyConfig) -> dict[str, Any]:
    settings = asdict(config)
    settings["lengths"] = list(config.lengths)
    settings["filler_file"] = str(config.filler_file) if config.filler_file else None
    return settings


@dataclass(frozen=True)
class PasskeyTab:
    """Parts that the page needs."""

    lengths: gr.CheckboxGroup
    earlier: gr.HTML


def build(chat: "DocumentChat", run: Run) -> PasskeyTab:
    """Lay the tab out inside the current gr.Tab and wire it."""
    gr.HTML(
        "<h2>Can it still find things in long texts?</h2><p>A five-digit number is hidden in a long text and asked "
        "back, the same way as with a document of yours, at several places and lengths.</p>",
        elem_classes="lt-welcome",
    )
    with gr.Row(elem_classes="lt-bar"):
        start = gr.Button("Check now", variant="primary", elem_id="passkey-run", scale=0, min_width=120)
        stop = gr.Button("Stop", visible=False, elem_id="passkey-stop", scale=0, min_width=120)
    with gr.Accordion("Details", open=False, elem_classes="lt-settings"):
        with gr.Row(elem_classes="lt-controls"):
            chosen = gr.CheckboxGroup(
                lengths(0),
                value=[UNTRAINED, UNTRAINED * 4],
                label="Lengths in tokens (times the trained length)",
                scale=3,
            )
            bands = gr.Slider(1, 10, 5, step=1, label="Depths", min_width=180)
            trials = gr.Slider(1, 40, 5, step=1, label="Trials per length", min_width=180)
            policy = gr.Dropdown(
                [("as started", ""), *((name, name) for name in POLICIES)],
                value="",
                label="Policy",
                min_width=180,
                elem_id="passkey-policy",
            )
    status = gr.HTML(elem_id="passkey-status")
    heat = gr.HTML(elem_id="heat")
    gr.HTML("<h3>Earlier runs</h3>")
    kept = gr.HTML(elem_id="runs")

    def running(lengths: list[int], trials: int, bands: int, policy: str) -> Iterator[tuple[Any, ...]]:
        yield gr.skip(), gr.skip(), gr.skip(), gr.update(visible=False), gr.update(visible=True)
        for line, cells in test(chat, lengths, trials, min(trials, bands), run, policy):
            yield line, cells, gr.skip(), gr.skip(), gr.skip()
        yield gr.skip(), gr.skip(), earlier(chat), gr.update(visible=True), gr.update(visible=False)

    start.click(running, [chosen, trials, bands, policy], [status, heat, kept, start, stop], **GPU, **PRIVATE)
    stop.click(chat.jobs.stop, None, None, queue=False, **PRIVATE)
    return PasskeyTab(chosen, kept)
