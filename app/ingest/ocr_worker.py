"""What the child process does with pages that are pictures: `events`, run by `app.ingest.worker`."""

import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

DPI = 220
NARROWED = 0.7  # of its width: a line is recognised so first, as time goes by the width; less loses narrow blanks
SURE = 0.95  # confidence below which a line is recognised again in its full width
TRIED_LINES = 5  # of a page, spread over it: when most are recognised again, its other lines are not narrowed
FIND_LINES_PIXELS = 960  # the longer side of the picture in which lines are looked for
MOST_PIXELS = 25_000_000  # of a page; a larger one is drawn smaller
MOST_THREADS = 4  # that recognise lines at once
LEAST_CONFIDENCE = 0.5  # a line below says nothing


def events(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Recognise the text of pages.

    Args:
        request: path, password, pages (indexes).

    Yields:
        {"ready": True}; then {"page", "lines"} or {"page", "error"} for each page, where a line is
        [text, left, top, right, bottom, confidence] in shares of the page; or one {"failed", "detail"}.
    """
    try:
        import pypdfium2

        engine = _engine()
    except ImportError as error:
        yield {"failed": "no-ocr", "detail": str(error)}
        return
    document = pypdfium2.PdfDocument(request["path"], password=request["password"] or None)
    yield {"ready": True}
    for index in request["pages"]:
        try:
            yield {"page": index, "lines": _lines(engine, document[index])}
        except Exception as error:  # a damaged picture; the next page may be whole
            logging.getLogger(__name__).info("page %d", index, exc_info=error)
            yield {"page": index, "error": f"OCR failed ({error or type(error).__name__})"}


def _engine() -> Any:
    """An engine that recognises each line by itself, narrowed first, on as many threads as there are cores.

    Lines in one batch are padded to the widest, and threads inside the runtime spin while they wait: both cost time.
    """
    from rapidocr import RapidOCR

    pool = ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1))

    class Engine(RapidOCR):
        def recognize_txt(self, pictures: list[Any]) -> Any:
            recognise = super().recognize_txt
            done = _recognised(pictures, lambda picture: recognise([picture]), pool)
            found = done[0]
            found.txts, found.scores = tuple(one.txts[0] for one in done), [one.scores[0] for one in done]
            found.imgs, found.word_results = pictures, tuple(one.word_results[0] for one in done)
            return found

    logging.getLogger("RapidOCR").setLevel(logging.ERROR)
    params = {"Global.log_level": "error", "Global.use_cls": False, "Rec.rec_batch_num": 1}
    params |= {"EngineConfig.onnxruntime.intra_op_num_threads": 1, "EngineConfig.onnxruntime.inter_op_num_threads": 1}
    return Engine(params=params | {"Det.limit_type": "max", "Det.limit_side_len": FIND_LINES_PIXELS})


def _recognised(pictures: list[Any], recognise: Callable[[Any], Any], pool: ThreadPoolExecutor) -> list[Any]:
    """What is found in each line of one page.

    A few lines tell whether the page's type is too narrow already; so it comes out the same at every reading.
    """

    def whole(picture: Any) -> list[Any]:
        return [recognise(picture)]

    def narrowed(picture: Any) -> list[Any]:
        found = recognise(_narrow(picture))
        return [found] if found.scores[0] >= SURE else [found, recognise(picture)]

    step = -(-len(pictures) // TRIED_LINES)
    tried = list(pool.map(narrowed, pictures[::step]))
    in_vain = 2 * sum(len(found) > 1 for found in tried) > len(tried)
    others = pool.map(whole if in_vain else narrowed, (one for at, one in enumerate(pictures) if at % step))
    trials = iter(tried)
    found = (next(others if at % step else trials) for at in range(len(pictures)))
    return [max(one, key=lambda reading: reading.scores[0]) for one in found]


def _narrow(picture: Any) -> Any:
    import cv2

    height, width = picture.shape[:2]
    size = (round(width * NARROWED), height)
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA) if width > 2 * height else picture


def _lines(engine: Any, page: Any) -> list[list[Any]]:
    width, height = page.get_size()
    scale = min(DPI / 72, (MOST_PIXELS / max(1.0, width * height)) ** 0.5)
    image = page.render(scale=scale).to_pil().convert("RGB")
    found = engine(image)
    if found.txts is None:
        return []
    lines = []
    for corners, text, confidence in zip(found.boxes, found.txts, found.scores, strict=True):
        if confidence >= LEAST_CONFIDENCE and text.strip():
            across, down = [float(x) / image.width for x, _ in corners], [float(y) / image.height for _, y in corners]
            sides = [min(across), min(down), max(across), max(down)]
            lines.append([text.strip(), *(round(side, 5) for side in sides), round(float(confidence), 4)])
    return lines
