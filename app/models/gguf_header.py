"""The header of a GGUF file in a moment: single values and tensors by name, without vocabulary and weights.

What lists models and compares shapes needs no more; the package gguf takes seconds for a vocabulary.
"""

import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from app.errors import ModelError

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
MOST_STRING = 1 << 24
ALIGNMENT = 32
SPLIT_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


@dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself.

    Attributes:
        metadata: by key; lists are left out.
        tensors: (shape as torch has it, quantization) by llama.cpp's names.
    """

    metadata: dict[str, Any]
    tensors: dict[str, tuple[tuple[int, ...], str]]


def parts_of(path: Path) -> tuple[Path, ...]:
    """All files of a model, of which `path` is one.

    Raises:
        ModelError: a part is not there.
    """
    found = SPLIT_NAME.fullmatch(path.name)
    if not found:
        return (path,)
    count = int(found[3])
    parts = tuple(path.with_name(f"{found[1]}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1))
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise ModelError(
            f"{path}: is one of {count} parts, and {', '.join(missing)} is missing; put it beside the others"
        )
    return parts


def read_header(file: Path) -> Header:
    """Read a header.

    Raises:
        ModelError: the file is no GGUF, damaged or cut short.
    """
    try:
        with file.open("rb") as data:
            return _header(data, file.stat().st_size)
    except (OSError, ValueError, struct.error, KeyError) as error:
        raise ModelError(f"{file}: is no GGUF, or damaged or cut short ({error}); copy or download it again") from error


def _header(data: BinaryIO, size: int) -> Header:
    if data.read(4) != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    version, tensor_count, value_count = _unpack(data, "<IQQ")
    if version not in (2, 3):
        raise ValueError(f"version {version}")
    metadata: dict[str, Any] = {}
    for _ in range(value_count):
        key, (kind,) = _string(data), _unpack(data, "<I")
        value = _value(data, kind, size)
        if value is not None:
            metadata[key] = value
    tensors, end = {}, 0
    for _ in range(tensor_count):
        name, (dimensions,) = _string(data), _unpack(data, "<I")
        if dimensions > 8:
            raise ValueError(f"{name} has {dimensions} dimensions")
        shape = _unpack(data, f"<{dimensions}Q")[::-1]
        kind, offset = _unpack(data, "<IQ")
        tensors[name], length = _tensor(shape, kind)
        end = max(end, offset + length)
    alignment = int(metadata.get("general.alignment", ALIGNMENT)) or ALIGNMENT
    whole = math.ceil(data.tell() / alignment) * alignment + end
    if tensors and whole > size:
        raise ValueError(f"{size:,} bytes instead of {whole:,}")
    return Header(metadata, tensors)


def _tensor(shape: tuple[int, ...], kind: int) -> tuple[tuple[tuple[int, ...], str], int]:
    """((shape, quantization), bytes) of a tensor; those of an unknown quantization are not counted."""
    import gguf

    try:
        known = gguf.GGMLQuantizationType(kind)
        block, block_bytes = gguf.GGML_QUANT_SIZES[known]
    except (ValueError, KeyError):
        return (shape, f"number {kind}"), 0
    return (shape, known.name), math.prod(shape) // block * block_bytes


def _unpack(data: BinaryIO, layout: str) -> tuple[Any, ...]:
    return struct.unpack(layout, data.read(struct.calcsize(layout)))


def _string(data: BinaryIO) -> str:
    (length,) = _unpack(data, "<Q")
    if length > MOST_STRING:
        raise ValueError(f"a text of {length:,} bytes")
    text = data.read(length)
    if len(text) != length:
        raise ValueError("it ends early")
    return text.decode("utf-8", "replace")


def _value(data: BinaryIO, kind: int, size: int) -> Any:
    """A single value; None for a list, which is skipped."""
    if kind == STRING:
        return _string(data)
    if kind != ARRAY:
        return _unpack(data, "<" + SCALARS[kind])[0]
    inner, count = _unpack(data, "<IQ")
    if count > size:
        raise ValueError(f"a list of {count:,}")
    if inner == STRING:
        for _ in range(count):
            (length,) = _unpack(data, "<Q")
            data.seek(length, 1)
    elif inner == ARRAY:
        for _ in range(count):
            _value(data, ARRAY, size)
    else:
        data.seek(count * struct.calcsize("<" + SCALARS[inner]), 1)
    return None
