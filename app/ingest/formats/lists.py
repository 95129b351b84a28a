"""Numbers and marks of list items, as a reader sees them."""

from lxml import etree

from app.ingest.formats.parse import local

BULLET = "- "


def html_markers(element: etree._Element, name: str) -> dict[etree._Element, str]:
    """What stands before each item of an HTML list."""
    items = [child for child in element if local(child) == "li"]
    if "none" in element.get("style", "").partition("list-style")[2].partition(";")[0] or element.get("type") == "none":
        return dict.fromkeys(items, "")
    if name != "ol":
        return dict.fromkeys(items, BULLET)
    step = -1 if element.get("reversed") is not None else 1
    number = _integer(element.get("start"), len(items) if step < 0 else 1)
    markers = {}
    for item in items:
        number = _integer(item.get("value"), number)
        markers[item] = f"{numeral(number, element.get('type', '1'))}. "
        number += step
    return markers


def numeral(number: int, form: str) -> str:
    """A number as lists write it: form 1, a, A, i or I."""
    if form in ("a", "A") and number > 0:
        text = ""
        while number:
            number, digit = divmod(number - 1, 26)
            text = chr(97 + digit) + text
        return text if form == "a" else text.upper()
    if form in ("i", "I") and 0 < number < 4000:
        text = "".join(
            digits[number // unit % 10]
            for unit, digits in zip((1000, 100, 10, 1), map(_roman, ("m", "cdm", "xlc", "ivx")), strict=True)
        )
        return text if form == "i" else text.upper()
    return str(number)


def _roman(letters: str) -> list[str]:
    if len(letters) == 1:
        return [letters * i for i in range(10)]
    one, five, ten = letters
    return ["", one, one * 2, one * 3, one + five, five, five + one, five + one * 2, five + one * 3, one + ten]


def _integer(value: str | None, otherwise: int) -> int:
    try:
        return int(value or "")
    except ValueError:
        return otherwise
