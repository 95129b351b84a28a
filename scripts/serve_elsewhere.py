"""Serve a merged checkpoint in llama.cpp or vLLM: `python scripts/serve_elsewhere.py llama.cpp MODEL`.

For those who need throughput on short texts only: these engines know nothing of Lectern's memory, documents or
passages. Within the attention budget Lectern attends to everything, as they do; beyond it, it selects. So the context
is the model's budget, unless --context says otherwise.

Before anything is started the folder's layout is checked against what their loaders want. llama.cpp comes in the wheel
xllamacpp, and a GGUF file is written once beside the folder; vLLM has to be installed by you, with a GPU. `--check`
asks llama.cpp through its server and stock transformers the same questions, greedily, and compares the texts.
"""

import argparse
import json
import os
import shutil
import sys
import threading
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from app.errors import LecternError, ModelError  # noqa: E402
from app.models.files import expected_shapes, read_json  # noqa: E402
from app.models.folder import read_config, stored_weights  # noqa: E402
from app.models.rope import stated_rope  # noqa: E402
from scripts import to_gguf  # noqa: E402
from scripts.llama_cpp import LlamaCpp  # noqa: E402

# Classes of vLLM's registry by model type. Their loaders take these names of tensors, put q, k and v together by
# themselves, and raise on any other name.
VLLM = {
    "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM",
}  # fmt: skip
ROPES = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")
BIASES = ("q_proj.bias", "k_proj.bias", "v_proj.bias", "q_norm.weight", "k_norm.weight", "rotary_emb.inv_freq")
SYSTEM = "Answer in one sentence."
TOKENS = 48


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    try:
        problems = layout(args.model)
        if problems:
            raise ModelError(f"{args.model}: " + "; ".join(problems))
        context = args.context or budget(args.model)
        if args.engine == "vllm":
            return vllm(args.model, args.port, context)
        return llama_cpp(args.model, context, args)
    except (LecternError, OSError) as error:
        print(error, file=sys.stderr)
        return 1


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=("llama.cpp", "vllm"))
    parser.add_argument("model", type=Path, help="folder of a checkpoint, such as `merge` writes")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--context", type=int, help="tokens of a question with its answer (the model's budget)")
    parser.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="of the GGUF file"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of llama.cpp")
    parser.add_argument(
        "--check", action="store_true", help="llama.cpp: compare greedy texts with transformers', and end"
    )
    return parser.parse_args(argv)


def layout(folder: Path) -> list[str]:
    """What keeps a folder from being loaded by stock engines; [] where nothing does.

    Raises:
        ModelError: it is no checkpoint.
    """
    config, found = read_config(folder), []
    wanted = VLLM[config["model_type"]]
    if config.get("architectures") != [wanted]:
        found.append(f"architectures = {config.get('architectures')}: must be [{wanted!r}]")
    stored, shapes = stored_weights(folder), expected_shapes(config)
    found += [f"{name} is missing" for name in shapes if name not in stored]
    tied = {"lm_head.weight"} if config.get("tie_word_embeddings") else set()
    extra = [name for name in stored if name not in shapes and name not in tied and not name.endswith(BIASES)]
    found += [f"{name} is no weight of a {wanted}; merge the adapter first" for name in extra]
    found += [
        f"{name} has shape {tuple(stored[name].shape)}, not {shape}"
        for name, shape in shapes.items()
        if name in stored and tuple(stored[name].shape) != shape
    ]
    if (kind := stated_rope(config)["rope_type"]) not in ROPES:
        found.append(f"positions of type {kind} are not known there")
    if not (folder / "tokenizer.json").exists():
        found.append("tokenizer.json is missing")
    if not (folder / "chat_template.jinja").exists() and "chat_template" not in read_json(
        folder / "tokenizer_config.json"
    ):
        found.append("there is no chat template, so that /v1/chat/completions cannot be served")
    return found


def budget(folder: Path) -> int:
    """Tokens within which Lectern attends to all, as other engines do."""
    path = folder / "lectern.json"
    stated = read_json(path) if path.exists() else {}
    return stated.get("attention", {}).get("budget_tokens") or read_config(folder)["max_position_embeddings"]


def vllm(folder: Path, port: int, context: int) -> int:
    """Become vLLM's server.

    Raises:
        ModelError: it is not installed.
    """
    command = vllm_command(folder, port, context)
    found = shutil.which(command[0])
    if found is None:
        raise ModelError(
            f"vLLM is not installed; in an environment of its own: pip install vllm && {' '.join(command)}"
        )
    os.execv(found, command)


def vllm_command(folder: Path, port: int, context: int) -> list[str]:
    """The layout needs no flag: the folder is that of a stock model."""
    return [
        "vllm", "serve", str(folder), "--host", "127.0.0.1", "--port", str(port), "--served-model-name", folder.name,
        "--max-model-len", str(context), "--generation-config", "vllm",
    ]  # fmt: skip


def llama_cpp(folder: Path, context: int, args: argparse.Namespace) -> int:
    """Serve until Ctrl-C, or compare."""
    path = folder.with_name(f"{folder.name}.{args.dtype}.gguf")
    if not path.exists() or path.stat().st_mtime < max(file.stat().st_mtime for file in folder.iterdir()):
        to_gguf.convert(folder, path, args.dtype)
    server = LlamaCpp(path, context, args.threads, port=0 if args.check else args.port, model_alias={folder.name})
    if args.check:
        return compare(folder, server)
    print(f"llama.cpp serves {folder.name} at {server.address}/v1, {context:,} tokens at most", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        return 0


def questions() -> list[str]:
    """Short texts with a question each, from the sample book."""
    return [f"{text}\n\nWhat is this about?" for text in to_gguf.pieces(6)] + ["Name three seas.", "Write about bread."]


def compare(folder: Path, server: LlamaCpp) -> int:
    """Ask both the same; prints what differs.

    Returns:
        0 when all texts are equal, else 1.
    """
    asked = questions()
    theirs, ours = [answer(server, question) for question in asked], stock(folder, asked)
    for question, their, our in zip(asked, theirs, ours, strict=True):
        if their != our:
            print(f"after {question[-60:]!r}:\n  transformers: {our!r}\n  llama.cpp:    {their!r}")
    equal = sum(map(str.__eq__, theirs, ours))
    print(f"greedy text: {equal} of {len(asked)} answers equal, up to {TOKENS} tokens each")
    return 0 if equal == len(asked) else 1


def answer(server: LlamaCpp, question: str) -> str:
    """The greedy answer by the server's route for chats."""
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    body: dict[str, Any] = {"messages": messages, "temperature": 0, "max_tokens": TOKENS}
    request = urllib.request.Request(
        f"{server.address}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as reply:
        return json.load(reply)["choices"][0]["message"]["content"].strip()


def stock(folder: Path, asked: Sequence[str]) -> list[str]:
    """What stock transformers says greedily in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, said = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), []
    for question in asked:
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        made, _ = to_gguf.greedy(model, ids, tokenizer.eos_token_id)
        said.append(tokenizer.decode(made[:TOKENS], skip_special_tokens=True).strip())
    return said


if __name__ == "__main__":
    sys.exit(main())
