"""The coverage map as HTML: a strip along a document whose pieces open the place that they stand for."""

from html import escape

from app.chat.coverage import Cell, Coverage

LEGEND = (
    ("read", "read"),
    ("looked", "this answer looked here"),
    ("words", "words found it"),
    ("muted", "not to be seen"),
    ("worked", "gone through"),
)


def strip(covered: Coverage, do: str, key: str, here: int) -> str:
    """The strip and what its colours mean.

    Args:
        do: what a click does; its data-id is `key@part`.
        here: the part that is shown.
    """
    most = max((cell.looked for cell in covered.cells), default=0.0)
    pieces = "".join(_cell(cell, do, key, here, most) for cell in covered.cells)
    known = {kind for cell in covered.cells for kind in _kinds(cell)}
    legend = "".join(f'<span class="lt-map-{kind}">{words}</span>' for kind, words in LEGEND if kind in known)
    lost = "".join(
        f"<span>{count:,} tokens {name.removeprefix('tokens_')}</span>"
        for name, count in covered.tokens.items()
        if count and name != "tokens_kept"
    )
    return (
        f'<div class="lt-map" role="group" aria-label="Map of {escape(covered.title)}: {covered.read:.0%} read">'
        f'<div class="lt-map-cells">{pieces}</div><p class="lt-map-legend">{covered.read:.0%} {legend}{lost}</p></div>'
    )


def _kinds(cell: Cell) -> list[str]:
    found = {"read": cell.read, "looked": cell.looked, "words": cell.words, "muted": cell.muted, "worked": cell.worked}
    return [kind for kind, value in found.items() if value]


def told(cell: Cell) -> str:
    """What is known of a piece: "12, Chapter IV: read, 34% of the attention, words found it"."""
    facts = ["read" if cell.read > 0.995 else f"{cell.read:.0%} read" if cell.read else "not read yet"]
    facts += [f"{cell.looked:.0%} of the attention"] if cell.looked else []
    facts += ["words found it"] if cell.words else []
    facts += ["not to be seen"] if cell.muted else []
    facts += [f"{cell.worked:.0%} gone through"] if cell.worked else []
    return f"{cell.label}{f', {cell.chapter}' if cell.chapter else ''}: {', '.join(facts)}"


def _cell(cell: Cell, do: str, key: str, here: int, most: float) -> str:
    name = escape(told(cell))
    shade = cell.looked / most if most else 0.0
    current = " aria-current=true" if cell.part <= here <= cell.last else ""
    tab = "" if cell.looked or current else ' tabindex="-1"'  # the others are reached by the contents
    return (
        f'<button type="button" data-do="{do}" data-id="{escape(key)}@{cell.part}" title="{name}" aria-label="{name}" '
        f'class="{" ".join(f"lt-map-{kind}" for kind in _kinds(cell))}"{current}{tab} '
        f'style="--s:{max(0.002, cell.size):.4f};--r:{cell.read:.2f};--l:{shade:.2f}"></button>'
    )
