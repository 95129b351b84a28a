"""What every command gets: settings, output, and the way to the app."""

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from app.cli.output import Output
from app.ingest.stream import Step
from app.records import Reading, Working
from app.settings import Settings
from app.system import duration, size_text

if TYPE_CHECKING:
    from app.chat import DocumentChat

T = TypeVar("T")


def freed_text(freed: Mapping[str, int]) -> str:
    """What was given back, in words."""
    return f"{size_text(freed['freed_bytes'])} freed"


@dataclass(frozen=True)
class Session:
    """One run of a command.

    Attributes:
        open_chat: opens the app on a data folder, as `DocumentChat.open` does.
    """

    settings: Settings
    out: Output
    open_chat: Callable[..., "DocumentChat"]

    @contextmanager
    def chat(self, *, load: bool = True) -> Iterator["DocumentChat"]:
        """The app on the data folder; stopped when the command fails or Ctrl-C ends it, closed in any case."""
        chat = self.open_chat(self.settled() if load else self.settings, load=load)
        try:
            yield chat
        except BaseException:
            chat.jobs.stop()
            raise
        finally:
            for note in chat.notes():
                self.out.say(note)
            chat.close()

    def settled(self) -> Settings:
        """The settings with a model that can be loaded: where its base is fetched, that is done first."""
        from app.models.shipped import settled

        return settled(self.settings, self.out.say)

    def model_ready(self, chat: "DocumentChat") -> Any:
        """Wait for the model, saying so."""
        if chat.model.model_state().state == "loading":
            self.out.progress("Loading the model")
        return chat.model.engine()

    def adding(self, path: Path, steps: Generator[Step, None, T]) -> T:
        """Follow the adding of a file to its end; returns what it returns. Ctrl-C stops it."""
        with closing(steps):
            while True:
                try:
                    self.out.progress(f"{path}: {next(steps).words}")
                except StopIteration as end:
                    self.out.clear()
                    return end.value

    def delete(self, id: str, of: Callable[["DocumentChat"], tuple[Callable[..., Any], Callable[..., None]]]) -> None:
        """Delete a document or a chat; `of` gives how the app finds one and how it deletes it."""
        with self.chat(load=False) as chat:
            find, delete = of(chat)
            found = find(id)
            with self.freeing(chat) as freed:
                delete(found.id)
        self.out.result({"deleted": found.id, **freed}, f"Deleted {found.title}; {freed_text(freed)}.")

    @contextmanager
    def freeing(self, chat: "DocumentChat") -> Iterator[dict[str, int]]:
        """Gives a dict that holds `freed_bytes` after the block: what deleting gave back to the disk."""
        freed: dict[str, int] = {}
        before = chat.store.finish()
        yield freed
        freed["freed_bytes"] = max(0, before - chat.store.finish())

    def reading(self, reading: Reading) -> None:
        """Show how far the reading of a document is."""
        percent = 100 * reading.tokens_done // max(1, reading.tokens_total)
        if isinstance(reading, Working):
            done = f"{reading.tokens_done:,} of {reading.tokens_total:,} parts"
            return self.out.progress(f"Going through {reading.title}: {done}, {duration(reading.eta_s)} left")
        line = f"Reading {reading.title}: {percent}%, {reading.tokens_done:,} of {reading.tokens_total:,} tokens"
        if reading.label:
            line += f", at {reading.label}"
        if reading.tokens_per_s:
            line += f", {reading.tokens_per_s:,.0f} tokens/s, {duration(reading.eta_s)} left"
        self.out.progress(line)
