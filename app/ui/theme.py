"""Colours and type of the page. Fonts come from Gradio or the system: nothing is fetched from outside."""

from html import escape
from pathlib import Path

from gradio.themes import Base
from gradio.themes.utils.colors import Color
from gradio.themes.utils.fonts import LocalFont

HERE = Path(__file__).parent

WORDMARK = (
    '<svg viewBox="0 0 32 32" width="26" height="26" aria-hidden="true"><path d="M4 8c5-2 9-1 12 2 3-3 7-4 12-2v15'
    'c-5-2-9-1-12 2-3-3-7-4-12-2z" fill="none" stroke="currentColor" stroke-width="2" stroke-linejoin="round"/>'
    '<path d="M16 10v15" stroke="currentColor" stroke-width="2"/></svg><span>Lectern</span>'
)

SWITCHES = (
    '<button type="button" class="lt-tool" data-here="theme" aria-label="Light or dark" title="Light or dark">◐'
    "</button>"
    '<button type="button" class="lt-tool" data-here="keys" aria-label="Keyboard shortcuts" '
    'title="Keyboard shortcuts">?</button>'
)


def signed_in(user: str) -> str:
    """Whose page it is, and the way out."""
    return (
        f'<form method="post" action="/sign-out" class="lt-user"><span>{escape(user)}</span> '
        '<button class="lt-tool">Sign out</button></form>'
    )


SIDE = '<div class="lt-side-head"><button type="button" class="lt-button" data-here="fresh">New chat</button></div>'

# Of Gradio 6.31's own font files these have Latin letters; its SemiBold files, Lora and Source Sans 3 do not.
_WEIGHTS = (400, 700)

_GREEN = Color(
    name="library", c50="#eef4f1", c100="#d8e7e0", c200="#b4d0c4", c300="#8cb7a5", c400="#619a84", c500="#417d67",
    c600="#2f6653", c700="#265244", c800="#1f4136", c900="#19342c", c950="#0e1f1a",
)  # fmt: skip
_PAPER = Color(
    name="paper", c50="#fbfaf7", c100="#f4f1ea", c200="#e7e2d7", c300="#d3ccbd", c400="#a39b8b", c500="#7a7365",
    c600="#5e584c", c700="#474239", c800="#2b2823", c900="#1f1d19", c950="#171512",
)  # fmt: skip


def theme() -> Base:
    """Paper and library green; light and dark follow the system."""
    look = Base(
        primary_hue=_GREEN,
        secondary_hue=_GREEN,
        neutral_hue=_PAPER,
        font=(LocalFont("Source Sans Pro", _WEIGHTS), "ui-sans-serif", "system-ui", "sans-serif"),
        font_mono=(LocalFont("IBM Plex Mono", _WEIGHTS), "ui-monospace", "monospace"),
    )
    return look.set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color="*neutral_900",
        body_text_color_dark="#e9e4d9",
        body_text_color_subdued="#6b6457",  # as light as WCAG AA lets it be on every ground of ours
        body_text_color_subdued_dark="*neutral_400",
        background_fill_primary="white",
        background_fill_primary_dark="*neutral_900",
        background_fill_secondary="*neutral_100",
        background_fill_secondary_dark="*neutral_800",
        border_color_primary="*neutral_200",
        border_color_primary_dark="#38342d",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_shadow="none",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_title_text_color="*neutral_600",
        block_title_text_color_dark="*neutral_400",
        input_background_fill="white",
        input_background_fill_dark="*neutral_900",
        input_border_color="*neutral_300",
        input_border_color_dark="#45403a",
        input_border_color_focus="*primary_500",
        input_border_color_focus_dark="*primary_400",
        input_placeholder_color="#6b6457",
        input_placeholder_color_dark="*neutral_400",
        input_radius="10px",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_500",
        button_primary_text_color="white",
        button_secondary_background_fill="white",
        button_secondary_background_fill_hover="*neutral_100",
        button_secondary_background_fill_dark="*neutral_900",
        button_secondary_background_fill_hover_dark="*neutral_800",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="#45403a",
        button_border_width="1px",
        button_large_radius="10px",
        button_small_radius="8px",
        layout_gap="12px",
    )


def css() -> str:
    return (HERE / "page.css").read_text(encoding="utf-8")


def head() -> str:
    """For the document's head: our scripts, and colours for the browser's own bars."""
    scripts = "".join(f"<script>{file.read_text(encoding='utf-8')}</script>" for file in sorted(HERE.glob("*.js")))
    return (
        '<meta name="theme-color" content="#fbfaf7" media="(prefers-color-scheme: light)">'
        '<meta name="theme-color" content="#171512" media="(prefers-color-scheme: dark)">'
        f"{scripts}"
    )
