"""Pages for `ocr.py`: text of a book drawn as scans are, with the place of each line known."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from math import cos, radians, sin
from pathlib import Path
from textwrap import wrap

from PIL import Image, ImageDraw, ImageFilter, ImageFont

PAGE_INCHES = (6.0, 9.0)
MARGIN_INCHES = 0.75
POINTS = 11
SKEW_DEGREES = 2.0
LAYOUTS = ("plain", "skewed", "columns", "noisy", "small")


@dataclass(frozen=True)
class Page:
    """A drawn page.

    Attributes:
        lines: (text, left, top, right, bottom) in shares of the page, in reading order.
        line_height: a share of the page's height.
    """

    name: str
    image: Image.Image
    lines: list[tuple[str, float, float, float, float]]
    line_height: float

    @property
    def text(self) -> str:
        return " ".join(text for text, *_ in self.lines)


def pages(text: str, fonts: list[Path]) -> Iterator[Page]:
    """A page for each font, resolution and layout; each begins at another place of the text."""
    words = text.split()
    at = 0
    for font in fonts:
        for dpi in (300, 150):
            for layout in LAYOUTS:
                yield _page(f"{font.stem} {dpi} {layout}", words[at : at + 600], font, dpi, layout)
                at += 600


def _page(name: str, words: list[str], font_path: Path, dpi: int, layout: str) -> Page:
    width, height = (int(inches * dpi) for inches in PAGE_INCHES)
    margin, points = int(MARGIN_INCHES * dpi), 8 if layout == "small" else POINTS
    font = ImageFont.truetype(str(font_path), int(points * dpi / 72))
    pitch = int(points * dpi / 72 * 1.35)
    columns, gutter = (2, int(0.3 * dpi)) if layout == "columns" else (1, 0)
    room = (width - 2 * margin - gutter * (columns - 1)) // columns
    image = Image.new("L", (width, height), 255)
    draw = ImageDraw.Draw(image)
    rows = iter(wrap(" ".join(words), int(room / font.getlength("the quick brown fox ") * 20), break_on_hyphens=False))
    lines = []
    for column in range(columns):
        left = margin + column * (room + gutter)
        for top in range(margin, height - margin - pitch, pitch):
            if (row := next(rows, None)) is None:
                break
            draw.text((left, top), row, font=font, fill=20)
            lines.append((row, *draw.textbbox((left, top), row, font=font)))
    if layout == "skewed":
        image = image.rotate(SKEW_DEGREES, fillcolor=255, resample=Image.Resampling.BICUBIC)
        lines = [(row, *_turned(box, width, height)) for row, *box in lines]
    if layout == "noisy":
        image = _noisy(image)
    shares = [(row, left / width, top / height, right / width, low / height) for row, left, top, right, low in lines]
    return Page(name, image, shares, pitch / height)


def _turned(box: list[float], width: int, height: int) -> tuple[float, float, float, float]:
    """What stands around a box when the page is turned about its middle."""
    left, top, right, bottom = box
    angle = radians(-SKEW_DEGREES)
    corners = [(x - width / 2, y - height / 2) for x in (left, right) for y in (top, bottom)]
    xs = [x * cos(angle) - y * sin(angle) + width / 2 for x, y in corners]
    ys = [x * sin(angle) + y * cos(angle) + height / 2 for x, y in corners]
    return min(xs), min(ys), max(xs), max(ys)


def _noisy(image: Image.Image) -> Image.Image:
    """Grey paper, soft letters and specks."""
    image = image.filter(ImageFilter.GaussianBlur(0.6)).point(lambda value: 40 + value * 190 // 255)
    speck, dice = ImageDraw.Draw(image), random.Random(7)
    for _ in range(image.width * image.height // 4000):
        x, y = dice.randrange(image.width), dice.randrange(image.height)
        speck.point((x, y), fill=dice.randrange(60, 255))
    return image
