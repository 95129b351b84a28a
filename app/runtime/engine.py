"""Engine: the model, its lock, reading in segments, and the decode loop."""

import hashlib
import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, AutoTokenizer

from app.errors import CancelledError, ConfigError, ModelError
from app.process import memory_bytes
from app.runtime import attention, checkpoint, policies
from app.runtime.adapter import check_adapter, check_base, read_adapter
from app.runtime.cache import RegionCache
from app.runtime.checkpoint import Recipe
from app.runtime.config import GenerationConfig
from app.runtime.folder import (
    find_folder,
    fingerprint,
    first_line,
    model_files,
    read_config,
    tokenizer_files,
)
from app.runtime.memory import RegionMemory
from app.runtime.pages import PagesLost
from app.runtime.policies import Policy
from app.runtime.sampling import sample
from app.runtime.shape import MemoryShape
from app.runtime.spec import AttentionSpec
from app.runtime.stored import restore
from app.runtime.tiers import Tiers
from app.settings import Settings

log = logging.getLogger(__name__)
MEMORY_FORMAT = 2
FIRST_SEGMENT_TOKENS = 512
MOST_SEGMENT_TOKENS = 8192
SEGMENT_S = 0.4  # a stop waits for one segment
MEASURED_TOKENS = 128  # a shorter piece says little of the speed of reading
LOGIT_ROWS = 1024
HOST_SHARE = 4  # keys and values may fill a quarter of the computer's memory,
DEVICE_SHARE = 2  # and half of what the model leaves free on the GPU
NEIGHBOURS = 8  # tokens before one that decide how it is spelt
CONTENT_MARK = re.compile(r"\x02(\d+)\x03")


class IdentityRotary(nn.Module):
    """Stands in for the model's rotary embedding and leaves queries and keys un-rotated."""

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        one = torch.ones((*position_ids.shape, 1), dtype=x.dtype, device=x.device)
        return one, torch.zeros_like(one)


def install(model, spec: AttentionSpec) -> None:
    """Put region attention into a model through its public seams: attention and mask by name, and rotary module."""
    AttentionInterface.register(attention.NAME, attention.lectern_attention)
    AttentionMaskInterface.register(attention.NAME, attention.refuse_padding)
    model.set_attn_implementation(attention.NAME)
    model.model.rotary_emb = IdentityRotary()
    for layer in model.model.layers:
        layer.self_attn.lectern = spec


class Engine:
    """Reads texts into memories and answers from them. One run at a time: `lock` is shared by UI, CLI and endpoint.

    Attributes:
        recipe_parts: everything that decides what a text's memory looks like, by name.
        recipe: hex digest of them.
        text_tokenizer: tokenizers.Tokenizer that takes markers inside a text as plain characters.
        tokens_per_s: how fast it read last; 0 until it has.
    """

    def __init__(
        self,
        model,
        tokenizer,
        recipe: Recipe,
        *,
        policy: str | Policy = "keep-all",
        name: str = "",
        weights: str = "",
        vocabulary: str = "",
        kv_dtype: torch.dtype = torch.bfloat16,
        codec: str = "raw",
        tiers: Tiers | None = None,
    ) -> None:
        config = model.config
        device = model.device
        rotary = model.model.rotary_emb
        policy = policies.named(policy) if isinstance(policy, str) else policy
        self._attention, attends = recipe.attention, policy.attention(recipe.attention)
        self.spec = AttentionSpec(attends, rotary.inv_freq.detach().clone(), float(rotary.attention_scaling), policy)
        install(model, self.spec)
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.trained_tokens, self.demonstration = recipe.trained_tokens, recipe.demonstration
        self.system_prompt = recipe.system_prompt
        self.shape = MemoryShape(
            layers=config.num_hidden_layers,
            kv_heads=config.num_key_value_heads,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            attention=attends,
            # The store never holds float32; the running chat reads what the store holds, so resuming changes nothing.
            dtype=kv_dtype,
            device=device,
            codec=codec,
            tiers=tiers or Tiers(),
        )
        self._check_room()
        self.recipe_parts = self._recipe_parts(weights, vocabulary)
        self.recipe = _digest(self.recipe_parts)
        self.shape = replace(self.shape, compaction=policy.compaction(self.shape), recipe=self.recipe)
        backend = tokenizer.backend_tokenizer
        self.text_tokenizer = type(backend).from_str(backend.to_str())
        self.text_tokenizer.encode_special_tokens = True
        self.stop_ids = _stop_ids(model, tokenizer)
        self.most_segment_tokens = MOST_SEGMENT_TOKENS
        self.segment_tokens = max(FIRST_SEGMENT_TOKENS, attends.group_tokens)
        self.tokens_per_s = 0.0
        self.lock = threading.Lock()

    def _check_room(self) -> None:
        """Refuse budgets that cannot hold what one query and one segment need."""
        shape = self.shape
        shape.tiers.open(shape)
        least = (min(self.spec.attention.budget_tokens, self.trained_tokens) + MOST_SEGMENT_TOKENS) * shape.token_bytes
        room = sum(pool.limit * pool.slot_bytes for pool in shape.tiers.hot if pool.limit is not None)
        if 0 < room < least:
            name = "device_budget_gb" if shape.device.type == "cuda" else "host_budget_gb"
            part = " a quarter of" if shape.tiers.packed and shape.device.type != "cuda" else ""
            raise ConfigError(
                f"{name}:{part} it makes room for {room / 1e9:.3g} GB of keys and values, and one segment with what it "
                f"attends to takes {least / 1e9:.3g} GB; give more"
            )

    def _recipe_parts(self, weights: str, vocabulary: str) -> dict[str, Any]:
        return {
            "format": MEMORY_FORMAT,
            "weights": weights,
            "tokenizer": vocabulary,
            "attention": asdict(self.spec.attention),
            "policy": self.spec.policy.recipe(),
            "rope": [round(float(f), 12) for f in self.spec.inv_freq] + [self.spec.rope_scaling],
            "dtype": [str(self.model.dtype), str(self.shape.dtype)],
            "codec": self.shape.codec,
        }

    def under(self, policy: Policy) -> "Engine":
        """The same model under another policy, with memories of its own. The two share the lock: one runs at a time.

        Raises:
            ConfigError: the policy cannot be had with this model's budget or codec.
        """
        twin, attends, tiers = copy(self), policy.attention(self._attention), self.shape.tiers
        twin.spec = AttentionSpec(attends, self.spec.inv_freq, self.spec.rope_scaling, policy)
        twin.recipe_parts = {**self.recipe_parts, "attention": asdict(attends), "policy": policy.recipe()}
        twin.recipe = _digest(twin.recipe_parts)
        if attends.group_tokens != self.shape.attention.group_tokens:  # its slots do not fit
            tiers = Tiers(tiers.device_bytes, tiers.host_bytes)
        shape = replace(self.shape, attention=attends, compaction=None, recipe=twin.recipe, tiers=tiers)
        twin.shape = replace(shape, compaction=policy.compaction(shape))
        twin.segment_tokens = max(FIRST_SEGMENT_TOKENS, attends.group_tokens)
        return twin

    @property
    def policy(self) -> str:
        return self.spec.policy.name

    @property
    def budget_tokens(self) -> int:
        return self.spec.attention.budget_tokens

    @property
    def bos_id(self) -> int | None:
        return self.tokenizer.bos_token_id

    @property
    def description(self) -> dict[str, Any]:
        """Facts for the model line of the UI and `doctor`."""
        return {
            "name": self.name,
            "device": str(self.model.device),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "backend": "PyTorch reference",
            "policy": self.policy,
            "positions": "original" if self.spec.policy.sees_all else self.spec.attention.positions.replace("_", " "),
            "trained_tokens": self.trained_tokens,
            "budget_tokens": self.budget_tokens,
            "demonstration": self.demonstration,
            "threads": torch.get_num_threads(),
        }

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Hold the model. A plain lock: generators may be resumed by another thread than the one that began them."""
        with self.lock:
            for layer in self.model.model.layers:  # another policy may have run last
                layer.self_attn.lectern = self.spec
            yield

    @torch.no_grad()
    def _forward(self, cache: RegionCache, token_ids: Sequence[int]) -> Tensor:
        """Run tokens through the model into the cache's tail; returns hidden states [T, H]."""
        before, hidden, tried = cache.tail.tokens, None, set()
        cache.begin()
        while hidden is None:
            try:
                hidden = self._hidden(cache, token_ids)
            except PagesLost as lost:  # the store's copy is damaged or gone
                cache.take_back(before)
                restore(cache, lost, self._hidden, tried)
            except BaseException:  # some layers may hold the tokens, others not
                cache.tail.truncate(before)
                raise
        cache.tail.token_ids += token_ids
        return hidden

    def _hidden(self, cache: RegionCache, token_ids: Sequence[int]) -> Tensor:
        ids = torch.tensor([list(token_ids)], device=self.model.device)
        return self.model.model(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state[0]

    @torch.no_grad()
    def _logits(self, hidden: Tensor) -> Tensor:
        return self.model.lm_head(hidden)

    def _run(
        self, cache: RegionCache, token_ids: Sequence[int], cancelled: Callable[[], bool] | None
    ) -> Iterator[tuple[int, int, Tensor]]:
        """Run tokens in segments that end where groups end, so that results do not depend on their size.

        The size follows the speed of the machine: a stop must not wait for long. A memory that drops tokens takes one
        stretch at a time.

        Yields:
            (start, end, hidden states [end - start, H]) of each segment, places within `token_ids`.

        Raises:
            CancelledError: before the next segment.
        """
        group, rule = self.shape.attention.group_tokens, self.shape.compaction
        first, total = cache.tail.tokens, len(token_ids)
        start = 0
        while start < total:
            if cancelled and cancelled():
                raise CancelledError(f"stopped after {start:,} of {total:,} tokens")
            began = time.monotonic()
            unit, most = (rule.stretch_tokens, 1) if rule else (group, max(1, self.segment_tokens // group))
            end = min(((first + start) // unit + most) * unit - first, total)
            hidden = self._forward(cache, list(token_ids[start:end]))
            if hidden.is_cuda:
                torch.cuda.synchronize()  # else the time is that of the calls
            elapsed_s = time.monotonic() - began
            if end - start >= MEASURED_TOKENS and elapsed_s > 0:
                self.tokens_per_s = (end - start) / elapsed_s
            if end - start > self.segment_tokens - group and elapsed_s < SEGMENT_S / 4:
                self.segment_tokens = min(2 * self.segment_tokens, self.most_segment_tokens)
            elif elapsed_s > SEGMENT_S:
                self.segment_tokens = max(self.segment_tokens // 2, group)
            yield start, end, hidden
            start = end

    def read(
        self,
        token_ids: Sequence[int],
        *,
        resume: RegionMemory | None = None,
        on_progress: Callable[[int, int], None] | None = None,
        on_sealed: Callable[[int, RegionMemory], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> RegionMemory:
        """Read a text once into a memory of its own.

        Args:
            token_ids: BOS, then the text.
            resume: memory of the first groups of this very text, to go on from.
            on_progress: called with (tokens done, tokens in all) after each segment.
            on_sealed: called with each group number, as soon as its keys and values are final; not of a memory that
                drops tokens, where nothing is final before the end.

        Raises:
            CancelledError: `cancelled` said so; sealed groups stand.
        """
        steps = self.read_steps(token_ids, resume=resume, on_sealed=on_sealed, cancelled=cancelled)
        while True:
            try:
                done = next(steps)
            except StopIteration as end:
                return end.value
            if on_progress:
                on_progress(done, len(token_ids))

    def read_steps(
        self,
        token_ids: Sequence[int],
        *,
        resume: RegionMemory | None = None,
        on_sealed: Callable[[int, RegionMemory], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Iterator[int]:
        """`read` as a generator: yields the tokens done after each segment, returns the memory."""
        if not token_ids:
            raise ValueError("nothing to read: the text has no tokens")
        memory = resume or RegionMemory(self.shape)
        memory.reserve(len(token_ids))
        cache = RegionCache(self.shape, tail=memory)
        group, rule = self.shape.attention.group_tokens, self.shape.compaction
        done = memory.tokens
        with self._running():
            for _ in self._run(cache, token_ids[done:], cancelled):
                first, done = done, memory.tokens
                if done == len(token_ids):
                    memory.freeze()
                for number in range(first // group, -(-done // group)) if on_sealed and not rule else ():
                    on_sealed(number, memory)
                yield done
        return memory

    def open_chat(self, memories: Sequence[RegionMemory] = (), tail: RegionMemory | None = None) -> RegionCache:
        """A cache over attached memories, in this order, with the chat's tail after them.

        Raises:
            ModelError: a memory was made by another model, recipe or policy.
        """
        for memory in (*memories, *([tail] if tail else ())):
            if memory.shape != self.shape:
                raise ModelError(f"a memory that {_foreign(memory.shape, self.shape)}: read its text again")
        return RegionCache(self.shape, memories, tail)

    def generate(
        self,
        cache: RegionCache,
        token_ids: Sequence[int],
        config: GenerationConfig,
        *,
        cancelled: Callable[[], bool] | None = None,
    ) -> Iterator[int]:
        """Run a prompt, then yield token after token; the stop token is run but not yielded.

        `cache.evidence` gathers where each token of the answer looked. The prompt's last token is run by itself: it is
        the query that predicts the first one.

        Args:
            token_ids: the turn, as `encode_turn` gives it; at least one token.
        """
        generator = torch.Generator().manual_seed(config.seed)
        with self._running():
            cache.evidence, before = None, cache.tail.tokens
            try:
                for _ in self._run(cache, token_ids[:-1], cancelled):
                    pass
            except CancelledError:  # half a question is not left behind
                cache.tail.truncate(before)
                return
            evidence = cache.watch()
            last = self._forward(cache, [token_ids[-1]])[-1]
            for _ in range(config.max_new_tokens):
                token = sample(self._logits(last), config, generator)
                stop = token in self.stop_ids
                if not stop:
                    evidence.take()
                    yield token
                last = self._forward(cache, [token])[-1]
                if stop or (cancelled and cancelled()):
                    return

    def log_probs(
        self, token_ids: Sequence[int], *, counted_from: int = 0, cancelled: Callable[[], bool] | None = None
    ) -> Tensor:
        """Log-probability of a text's tokens, read as a document is.

        Args:
            counted_from: first token wanted; the first token of the text has none.

        Returns:
            [T - max(1, counted_from)], float32, on the CPU.
        """
        memory = RegionMemory(self.shape, len(token_ids))
        return self._scored(RegionCache(self.shape, tail=memory), token_ids, max(1, counted_from), cancelled)

    def score(
        self,
        cache: RegionCache,
        token_ids: Sequence[int],
        answer_ids: Sequence[int],
        *,
        cancelled: Callable[[], bool] | None = None,
    ) -> Tensor:
        """Log-probability of each token of a given answer after a given turn, in one pass; `cache` stays as it is.

        Args:
            token_ids: the turn, as `encode_turn` gives it; at least one token.

        Returns:
            [len(answer_ids)], float32, on the CPU.
        """
        return self._scored(cache.fork(), [*token_ids, *answer_ids], len(token_ids), cancelled)

    def _scored(
        self, cache: RegionCache, token_ids: Sequence[int], counted_from: int, cancelled: Callable[[], bool] | None
    ) -> Tensor:
        """Run tokens and return the log-probabilities of those from `counted_from` (at least 1) on."""
        parts = []
        with self._running():
            for start, end, hidden in self._run(cache, token_ids, cancelled):
                for i in range(max(start, counted_from - 1), min(end, len(token_ids) - 1), LOGIT_ROWS):
                    last = min(i + LOGIT_ROWS, end, len(token_ids) - 1)
                    targets = torch.tensor(list(token_ids[i + 1 : last + 1]), device=hidden.device)
                    rows = torch.log_softmax(self._logits(hidden[i - start : last - start]).float(), -1)
                    parts.append(rows.gather(-1, targets[:, None])[:, 0].cpu())
        return torch.cat(parts)

    def decode(self, token_ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """The text that each token adds to the ones before it."""
        ids = list(token_ids)
        starts = [max(0, i - NEIGHBOURS) for i in range(len(ids))]
        return [self.decode(ids[start : i + 1])[len(self.decode(ids[start:i])) :] for i, start in enumerate(starts)]

    def stream_text(self, tokens: Iterator[int], stop: Sequence[str] = ()) -> Iterator[str]:
        """Text of a token stream, piece by piece; ends before the first stop string. Half characters wait."""
        ids, sent = [], ""
        for token in tokens:
            ids.append(token)
            text = self.decode(ids)
            if text.endswith("\ufffd"):
                continue
            found = min((i for s in stop if (i := text.find(s)) >= 0), default=None)
            if found is not None:
                yield text[len(sent) : found]
                return
            held = max((n for s in stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
            piece = text[len(sent) : len(text) - held]
            if piece:
                sent += piece
                yield piece
        rest = self.decode(ids)[len(sent) :]
        if rest:
            yield rest

    def encode_turn(self, messages: Sequence[dict[str, str]], last_token: int | None = None) -> list[int]:
        """Token ids of what the last user message adds to the chat, the answer's opening included.

        Args:
            messages: role/content of the whole chat, ending in a user message.
            last_token: the last token of the chat that was run; None when nothing of it was.
        """
        history = list(messages)
        if self.system_prompt and history[0]["role"] != "system":
            history.insert(0, {"role": "system", "content": self.system_prompt})
        # Contents are put in after rendering: a marker that a user types stays text, and the place of the last answer
        # is known whatever its words are.
        marked = [{**message, "content": f"\x02{i}\x03"} for i, message in enumerate(history)]
        text = self._render(marked)
        answers = [message["content"] for message in marked if message["role"] == "assistant"]
        if last_token is not None and answers:
            _, found, text = text.rpartition(answers[-1])
            if not found:  # the template leaves out old answers: open the turn afresh
                text = self._render(marked[-1:])
            if last_token in self.stop_ids:  # an answer that was cut still needs its end
                text = text.removeprefix(self.tokenizer.decode([last_token]))
        if self.tokenizer.bos_token:
            text = text.removeprefix(self.tokenizer.bos_token)
        ids: list[int] = []
        for i, piece in enumerate(CONTENT_MARK.split(text)):
            if i % 2:
                ids += self.text_tokenizer.encode(history[int(piece)]["content"], add_special_tokens=False).ids
            elif piece:
                ids += self.tokenizer(piece, add_special_tokens=False)["input_ids"]
        return ids

    def _render(self, messages: list[dict[str, str]]) -> str:
        if not self.tokenizer.chat_template:
            lines = [f"{'Answer' if m['role'] == 'assistant' else 'Question'}: {m['content']}\n" for m in messages]
            return "\n" + "".join(lines) + "Answer:"
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def _digest(recipe_parts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(recipe_parts, sort_keys=True).encode()).hexdigest()


def _foreign(theirs: MemoryShape, ours: MemoryShape) -> str:
    """In what a memory of another engine differs, for a message."""
    if theirs.recipe != ours.recipe:
        return f"was made by recipe {theirs.recipe[:12] or 'unknown'}, not by this model's {ours.recipe[:12]}"
    name = next(f.name for f in fields(ours) if f.compare and getattr(theirs, f.name) != getattr(ours, f.name))
    return f"has {name} = {getattr(theirs, name)}, where this model has {getattr(ours, name)}"


def _stop_ids(model, tokenizer) -> frozenset[int]:
    """End-of-sequence ids of the tokenizer and of the model's generation config."""
    configured = model.generation_config.eos_token_id
    ids = set(configured if isinstance(configured, list) else [configured]) | {tokenizer.eos_token_id}
    return frozenset(i for i in ids if i is not None)


def default_threads() -> int:
    """Half the cores: a second thread on a busy two-core machine costs more than it gives."""
    return max(1, (os.cpu_count() or 1) // 2)


def check(settings: Settings) -> tuple[Path, Recipe, Any]:
    """Look at everything that `settings` names before any weight is loaded.

    Returns:
        (folder, recipe, tokenizer).

    Raises:
        ModelError, ConfigError: what is wrong and what to do.
    """
    folder = find_folder(settings.model, download=settings.download)
    recipe = checkpoint.read_recipe(folder, read_config(folder), settings)
    if settings.adapter:
        check_adapter(settings.adapter, folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # tokenizers raises bare Exceptions for a damaged file
        raise ModelError(f"{folder}: the tokenizer cannot be loaded: {first_line(error)}") from error
    if not tokenizer.is_fast:
        raise ModelError(f"{folder}: needs a tokenizer.json; convert the tokenizer to the fast format")
    return folder, recipe, tokenizer


def load_engine(
    settings: Settings, known: MutableMapping[str, str] | None = None, on_step: Callable[[str], None] | None = None
) -> Engine:
    """Check, load and join everything that `settings` names.

    Args:
        known: fingerprints already computed, see `folder.fingerprint`.
        on_step: told in words what begins.

    Raises:
        ModelError, ConfigError: what is wrong and what to do, before anything big is allocated.
    """
    say = on_step or (lambda step: None)
    device = checkpoint.pick_device(settings.device)
    dtype = checkpoint.pick_dtype(device)
    say("looking at its files")
    folder, recipe, tokenizer = check(settings)
    checkpoint.check_memory(folder, device, dtype, merging=settings.adapter is not None)
    torch.set_num_threads(settings.threads or default_threads())
    known = {} if known is None else known
    say("computing its fingerprint")
    if settings.adapter:
        check_base(read_adapter(settings.adapter), folder, known)
    weights = fingerprint(model_files(folder, settings.adapter), known)
    vocabulary = fingerprint(tokenizer_files(folder), known)
    say("loading its weights")
    model = checkpoint.load_model(folder, settings, device, dtype, recipe.rope)
    return Engine(
        model,
        tokenizer,
        recipe,
        policy=policies.of(settings),
        name=settings.model_name or folder.name,
        weights=weights,
        vocabulary=vocabulary,
        codec=settings.kv_codec,
        tiers=_tiers(settings, device),
    )


def _tiers(settings: Settings, device: torch.device) -> Tiers:
    """Room for keys and values, derived where the settings do not say: the model is loaded already."""
    host = memory_bytes() // HOST_SHARE if settings.host_budget_gb is None else int(settings.host_budget_gb * 1e9)
    if device.type != "cuda":
        return Tiers(host_bytes=host)
    if settings.device_budget_gb is None:
        return Tiers(torch.cuda.mem_get_info(device)[0] // DEVICE_SHARE, host)
    return Tiers(int(settings.device_budget_gb * 1e9), host)
