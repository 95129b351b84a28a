"""What the child process does with one file that is read block by block: `events`, run by `app.ingest.worker`."""

import importlib
import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from app.ingest.blocks import About, Refused, to_parts


def events(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Read a file with `blocks(path, about)` of a module in `app.ingest.formats`.

    Args:
        request: path, reader (the module's name), encoding (that the user chose, or None).

    Yields:
        {"part", "done", "total"} for each part, {"about"}; or one {"failed", "detail"}.
    """
    about = About(encoding=request.get("encoding"))
    reader = importlib.import_module(f"app.ingest.formats.{request['reader']}")
    try:
        for part in to_parts(reader.blocks(Path(request["path"]), about)):
            yield {"part": asdict(part), "done": about.done, "total": about.total}
    except Refused as error:
        yield {"failed": "refused", "detail": str(error)}
    except MemoryError:
        yield {"failed": "memory", "detail": ""}
    except OSError as error:
        yield {"failed": "system", "detail": str(error)}
    except Exception as error:  # a hostile or damaged file can break a reader in any way; the message says how
        logging.getLogger(__name__).info("reading failed", exc_info=error)
        yield {"failed": "damaged", "detail": str(error) or type(error).__name__}
    else:
        yield {"about": asdict(about)}
