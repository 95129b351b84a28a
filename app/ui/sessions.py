"""What Gradio keeps of each page load is let go of when the page was left."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

LEFT_KEPT = 8  # a page whose connection broke off comes back to its own state


class Sessions:
    """The page loads of a served page. Gradio itself keeps the state of 10,000 of them, 0.4 MB each."""

    def __init__(self, blocks: gr.Blocks) -> None:
        self.blocks = blocks
        self._open = Counter[str]()

    @contextmanager
    def open(self, session: str) -> Iterator[None]:
        """A page is open during this block."""
        self._open[session] += 1
        try:
            yield
        finally:
            self._open[session] -= 1
            self._open += Counter()  # without those that are left
            self.sweep()

    def sweep(self) -> None:
        """Let go of pages that were left, but the newest ones."""
        holder = self.blocks.state_holder
        left = [session for session in list(holder.session_data) if not self._open[session]]
        for session in left[:-LEFT_KEPT]:
            holder.session_data.pop(session, None)
            holder.time_last_used.pop(session, None)
