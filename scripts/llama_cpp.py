"""llama.cpp out of the wheel xllamacpp, asked through its server. Nothing else is imported: its memory is its own."""

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class LlamaCpp:
    """llama.cpp on a GGUF file: everything in float32 and one thread, where nothing else is asked for.

    Args:
        tokens: room for keys and values.
        options: fields of CommonParams.
    """

    def __init__(self, path: Path, tokens: int = 1024, threads: int = 1, **options: Any) -> None:
        import xllamacpp

        params, exact = xllamacpp.CommonParams(), xllamacpp.ggml_type.GGML_TYPE_F32
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.warmup, params.verbosity = tokens, 1, False, -1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.cache_type_k = params.cache_type_v = exact
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        for name, value in options.items():
            setattr(params, name, value)
        self._server = xllamacpp.Server(params)

    @property
    def address(self) -> str:
        """Where its server listens."""
        return str(self._server.listening_address)

    def _open(self, path: str, values: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            f"{self.address}/{path}",
            json.dumps(values).encode(),
            {"Content-Type": "application/json"},
        )
        return urllib.request.urlopen(request, timeout=3600)

    def _ask(self, path: str, values: dict[str, Any]) -> dict[str, Any]:
        with self._open(path, values) as answer:
            return json.load(answer)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, markers taken as markers."""
        return self._ask("tokenize", {"content": text, "add_special": False, "parse_special": True})["tokens"]

    def go_on(self, ids: list[int], count: int) -> list[int]:
        """The ids that follow greedily, the end marker too."""
        values = {"prompt": ids, "n_predict": count, "temperature": 0, "cache_prompt": False, "return_tokens": True}
        return self._ask("completion", values)["tokens"]

    def stream(self, ids: list[int], count: int) -> Iterator[int]:
        """The same one by one, past end markers; what the ids share with those before is not run again."""
        values = {"prompt": ids, "n_predict": count, "temperature": 0, "cache_prompt": True, "return_tokens": True}
        with self._open("completion", {**values, "stream": True, "ignore_eos": True}) as answer:
            for line in answer:
                if line.startswith(b"data: {"):
                    yield from json.loads(line[6:])["tokens"]
