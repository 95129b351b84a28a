"""A GGUF file read by Lectern and by llama.cpp: the same ids, the same text; and the logits of transformers.

    python benchmarks/gguf.py --gguf FILE.gguf
    python benchmarks/gguf.py --gguf FILE.gguf --only ids,f16

Needs xllamacpp, llama.cpp in a wheel. `f16`: the file dequantized into 16 bits, so that both run the same weights;
`own`: as it is, where llama.cpp also rounds what the layers pass on and the texts may part.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import harness
from benchmarks.harness import Benchmark, Part, Values

TOKENS = 20
PROMPTS = (
    "The old lighthouse keeper climbed the stairs and",
    "In 1969 the first people to walk on the moon were",
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "| year | price |\n| --- | --- |\n| 2001 |  12.50 |\n| 2002 |",
    "Water boils at 100 degrees Celsius because",
    "Dear Sir or Madam,\n\nI am writing to",
    "import json\n\n\nclass Store:\n\tdef __init__(self, path):\n\t\t",
    "The three primary colours are",
    "To make bread you need flour, water, salt and",
    "x =  12\ny =  34\nprint(x + y)  #",
    "Chapter 1\n\n\nIt was a dark and stormy night;",
    "The mitochondria is",
    "Q: What is the largest planet?\nA:",
    "She opened the letter, read it twice, and",
    "for (int i = 0; i < 10; i++) {\n    ",
    "1, 1, 2, 3, 5, 8,",
    "<|im_start|>user\nWhat is the opposite of cold?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>user\nName two rivers of Europe.<|im_end|>\n<|im_start|>assistant\n",
)


def main(argv: list[str] | None = None) -> int:
    parser = harness.flags(__doc__ or "", "gguf")
    parser.add_argument("--gguf", type=Path, required=True, metavar="FILE", help="a model whose weights it has")
    args = parser.parse_args(argv)
    args.model = str(args.gguf)
    parts = [
        Part("ids", 20, partial(_ids, args)),
        Part("f16", 120, partial(_greedy, args, halves=True)),
        Part("own", 120, partial(_greedy, args, halves=False)),
        Part("logits", 90, partial(_logits, args)),
    ]
    return harness.main(Benchmark("gguf", {"gguf": args.gguf, "tokens": TOKENS}, parts, _table), args)


@contextmanager
def _stock(file: Path) -> Iterator[tuple[Any, Any]]:
    """The model and the tokenizer that Lectern makes of a file."""
    import torch
    from tokenizers import Tokenizer

    from app.models.gguf import describe
    from app.models.merging import load_stock

    with tempfile.TemporaryDirectory() as room:
        folder = describe(file, Path(room))
        yield load_stock(folder, torch.float32).eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))


def _ids(args: argparse.Namespace) -> Values:
    from scripts.llama_cpp import LlamaCpp

    theirs = LlamaCpp(args.gguf)
    with _stock(args.gguf) as (_, tokenizer):
        same = [tokenizer.encode(text, add_special_tokens=False).ids == theirs.encode(text) for text in PROMPTS]
    return {"texts": len(same), "equal": sum(same)}


def _greedy(args: argparse.Namespace, *, halves: bool) -> Values:
    """How many prompts are continued by the same ids; where they part, by how much our two likeliest differed."""
    with tempfile.TemporaryDirectory() as room:
        file = as_halves(args.gguf, Path(room) / args.gguf.name) if halves else args.gguf
        return _compared(file)


def _compared(file: Path) -> Values:
    import torch
    from transformers import DynamicCache

    from scripts.llama_cpp import LlamaCpp

    theirs, parted, same = LlamaCpp(file), [], 0
    with _stock(file) as (model, tokenizer), torch.inference_mode():
        for prompt in PROMPTS:
            ids = tokenizer.encode(prompt, add_special_tokens=False).ids
            wanted = theirs.go_on(ids, TOKENS)
            cache, fed = DynamicCache(config=model.config), torch.tensor([ids])
            for place, token in enumerate(wanted):
                row = model(input_ids=fed, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[0, -1]
                if int(row.argmax()) != token:
                    apart = float(row.max() - row[token])
                    parted.append({"prompt": prompt[:30], "after": place, "logits_apart": round(apart, 4)})
                    break
                fed = torch.tensor([[token]])
            else:
                same += 1
    return {"prompts": len(PROMPTS), "same": same, "parted": parted}


def _logits(args: argparse.Namespace) -> Values:
    """Ours against the model that transformers itself makes of the file, both in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    other = AutoModelForCausalLM.from_pretrained(args.gguf.parent, gguf_file=args.gguf.name, dtype=torch.float32)
    with _stock(args.gguf) as (model, tokenizer), torch.inference_mode():
        apart = []
        for prompt in PROMPTS:
            ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False).ids])
            apart.append(float((model(ids).logits - other.eval()(ids).logits).abs().max()))
    return {"prompts": len(apart), "largest": max(apart)}


def as_halves(file: Path, out: Path) -> Path:
    """A copy of a GGUF file with its matrices in 16 bits."""
    import gguf
    import numpy as np

    reader = gguf.GGUFReader(file)
    writer = gguf.GGUFWriter(out, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = gguf.LlamaFileType.MOSTLY_F16 if name == "general.file_type" else field.contents()
        writer.add_key_value(name, value, field.types[0], field.types[-1] if len(field.types) > 1 else None)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, values.astype(np.float32 if values.ndim == 1 else np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def _table(parts: Mapping[str, Values]) -> tuple[list[str], list[list[Any]]]:
    rows = []
    for name, values in parts.items():
        if "equal" in values:
            rows.append([name, f"{values['equal']} of {values['texts']} texts have llama.cpp's ids"])
        elif "same" in values:
            rows.append([name, f"{values['same']} of {values['prompts']} prompts go on as with llama.cpp"])
        else:
            rows.append([name, f"logits at most {values['largest']:.1e} from transformers' own"])
    return ["part", "found"], rows


if __name__ == "__main__":
    sys.exit(main())
