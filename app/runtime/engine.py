"""Engine: the model, its lock, reading in segments, and the decode loop."""

import hashlib
import json
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from copy import copy
from dataclasses import asdict, fields, replace
from typing import Any

import torch
from torch import Tensor

from app.errors import CancelledError, ConfigError, ModelError
from app.kernels.backend import backend_name
from app.memory.config import GenerationConfig
from app.memory.groups import PagesLost
from app.memory.memory import RegionMemory
from app.memory.pools import Tiers
from app.memory.shape import LAYOUTS, MemoryShape
from app.models.checkpoint import Recipe
from app.models.weights import TOLD
from app.records import Ending
from app.runtime import decode, policies
from app.runtime.attention import Choosing, install
from app.runtime.cache import RegionCache
from app.runtime.chat_text import ChatText
from app.runtime.evidence import AnswerEvidence, Chosen
from app.runtime.policies import AttentionSpec, Policy
from app.runtime.recover import restore
from app.runtime.together import Floor, Together

MEMORY_FORMAT = 2
FIRST_SEGMENT_TOKENS = 512
MOST_SEGMENT_TOKENS = 8192
SEGMENT_S = 0.4  # of computing: progress is told, and blocks are stored, after each segment
LEAST_SEGMENT_TOKENS = 256  # smaller ones cost more than they are worth, unless these take as long as
SLOW_SEGMENT_S = 8.0
CUT_OPERATIONS = 140_000_000_000  # weights times tokens of a segment that is always cut alike: a second or two
MOST_CUT_TOKENS = 2048
MEASURED_TOKENS = 128  # a shorter piece says little of the speed of reading
LOGIT_ROWS = 1024


class Engine(ChatText):
    """Reads texts into memories and answers from them. One thread runs it at a time, the one that has `floor`.

    Attributes:
        weights_in: what its linear layers are multiplied in: its data type, or what is faster (`app.models.weights`).
        tensors: digest of the weights alone; tells an edited configuration from other weights.
        recipe_parts: everything that decides what a text's memory looks like, by name.
        recipe: hex digest of them.
        tokens_per_s: how fast it read last; 0 until it has.
        reselect_every: tokens of an answer that share one choice of regions, in all layers or by layer; 1 chooses for
            each.
        draft_tokens: tokens of the draft that tells which regions of long texts an answer sees; 0 drafts nothing.
        lookup: what finds those regions, `attention`, `words` or `both`.
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
        weights_in: str = "",
        tensors: str = "",
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
        super().__init__(model, tokenizer, recipe.system_prompt, recipe.document_start)
        self.model, self.name = model, name
        self.backend = backend_name(device)
        self.trained_tokens, self.demonstration = recipe.trained_tokens, recipe.demonstration
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
        self.tensors, self.weights_in = tensors, weights_in or str(model.dtype).removeprefix("torch.")
        self.recipe_parts = self._recipe_parts(weights, vocabulary)
        self.recipe = _digest(self.recipe_parts)
        self.shape = replace(self.shape, compaction=policy.compaction(self.shape), recipe=self.recipe)
        self.most_segment_tokens = MOST_SEGMENT_TOKENS
        self.segment_tokens = max(FIRST_SEGMENT_TOKENS, attends.group_tokens)
        self.tokens_per_s = 0.0
        self.reselect_every, self.draft_tokens = recipe.decode.reselect_every, recipe.decode.draft_tokens
        self.lookup = recipe.decode.lookup
        self.floor = Floor()
        self.together = Together(self.floor, model)

    def _check_room(self) -> None:
        """Refuse budgets that cannot hold what one query and one segment need."""
        shape = self.shape
        shape.tiers.open(shape)
        least = (min(self.spec.attention.budget_tokens, self.trained_tokens) + MOST_SEGMENT_TOKENS) * shape.token_bytes
        room = sum(pool.limit * pool.slot_bytes for pool in shape.tiers.hot if pool.limit is not None)
        if 0 < room < least:
            cuda = shape.device.type == "cuda"
            name, whole = ("device_budget_gb", " three quarters of") if cuda else ("host_budget_gb", "")
            part = " a quarter of" if shape.tiers.packed and not cuda else whole
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
            "codec": LAYOUTS[self.shape.codec],
        }

    def under(self, policy: Policy) -> "Engine":
        """The same model under another policy, with memories of its own. The two share the floor: one runs at a time.

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
    def cut_tokens(self) -> int:
        """Tokens of a segment where rounding depends on where texts are cut, so that a reading can be repeated; else 0.

        In float32 results do not depend on it, and on a GPU segments follow its speed.
        """
        if self.model.dtype == torch.float32 or self.model.device.type != "cpu":
            return 0
        c, s, group = self.model.config, self.shape, self.shape.attention.group_tokens
        heads = 2 * (c.num_attention_heads + s.kv_heads) * s.head_dim
        weights = s.layers * c.hidden_size * (heads + 3 * c.intermediate_size)  # however they are kept
        groups = min(CUT_OPERATIONS // weights, MOST_CUT_TOKENS, self.most_segment_tokens) // group
        return group << max(0, groups.bit_length() - 1)

    @property
    def budget_tokens(self) -> int:
        return self.spec.attention.budget_tokens

    @property
    def description(self) -> dict[str, Any]:
        """Facts for the model line of the UI and `doctor`."""
        return {
            "name": self.name,
            "device": str(self.model.device),
            "dtype": TOLD.get(self.weights_in, self.weights_in),
            "backend": self.backend,
            "policy": self.policy,
            "positions": "original" if self.spec.policy.sees_all else self.spec.attention.positions.replace("_", " "),
            "trained_tokens": self.trained_tokens,
            "budget_tokens": self.budget_tokens,
            "demonstration": self.demonstration,
            "threads": torch.get_num_threads(),
        }

    @torch.no_grad()
    def forward(self, cache: RegionCache, token_ids: Sequence[int]) -> Tensor:
        """Run tokens through the model into the cache's tail; returns hidden states [T, H]."""
        return self._whole_step(cache, token_ids, self._hidden)

    @torch.no_grad()
    def choosing_step(self, cache: RegionCache, token: int) -> Tensor:
        """Run a token of an answer that chooses regions for itself; returns the logits [V]."""
        rows = self.together.rows
        if not rows.known:
            return self.logits(self.forward(cache, [token])[-1])

        def one(cache: RegionCache, token_ids: Sequence[int]) -> Tensor:
            return rows(token_ids, [cache.held or Choosing(self.spec, cache)])

        return rows.logits(self._whole_step(cache, [token], one))[-1]

    def _whole_step(
        self, cache: RegionCache, token_ids: Sequence[int], run: Callable[[RegionCache, Sequence[int]], Tensor]
    ) -> Tensor:
        """Run tokens so that the tail has all of them or none; what is lost meanwhile is read again."""
        before, hidden, tried = cache.tail.tokens, None, set()
        for layer in self.model.model.layers:  # another policy may have run last
            layer.self_attn.lectern = self.spec
        cache.begin()
        while hidden is None:
            try:
                hidden = run(cache, token_ids)
            except PagesLost as lost:  # the store's copy is damaged or gone
                cache.take_back(before)
                restore(cache, lost, self._hidden, tried, self.cut_tokens)
            except BaseException:  # some layers may hold the tokens, others not
                cache.tail.truncate(before)
                raise
        cache.tail.token_ids += token_ids
        return hidden

    def _hidden(self, cache: RegionCache, token_ids: Sequence[int]) -> Tensor:
        rows = self.together.rows
        if rows.known and self.model.dtype == torch.bfloat16:
            return rows.segment(token_ids, Choosing(self.spec, cache))
        ids = torch.tensor([list(token_ids)], device=self.model.device)
        return self.model.model(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state[0]

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        return self.model.lm_head(hidden)

    def segments(
        self, cache: RegionCache, token_ids: Sequence[int], cancelled: Callable[[], bool] | None
    ) -> Iterator[tuple[int, int, Tensor]]:
        """Run tokens in segments that end where groups end, so that results do not depend on their size.

        The size follows the speed of the machine, whatever else runs on it. A stop waits for a short segment, or for
        one layer of a long one. A memory that drops tokens takes one stretch at a time.

        Yields:
            (start, end, hidden states [end - start, H]) of each segment, places within `token_ids`.

        Raises:
            CancelledError: before the next segment, or within one, which is taken back.
        """
        group, rule = self.shape.attention.group_tokens, self.shape.compaction
        first, total = cache.tail.tokens, len(token_ids)
        start = 0
        while start < total:
            if cancelled and cancelled():
                raise CancelledError(f"stopped after {start:,} of {total:,} tokens")
            began, busy = time.monotonic(), time.thread_time()
            cut = rule.stretch_tokens if rule else self.cut_tokens
            unit, most = (cut, 1) if cut else (group, max(1, self.segment_tokens // group))
            end = min(((first + start) // unit + most) * unit - first, total)
            try:
                cache.cancelled = cancelled if end - start >= LEAST_SEGMENT_TOKENS else None
                hidden = self.forward(cache, list(token_ids[start:end]))
            except CancelledError:
                raise CancelledError(f"stopped after {start:,} of {total:,} tokens") from None
            finally:
                cache.cancelled = None
            if hidden.is_cuda:
                torch.cuda.synchronize()  # else the time is that of the calls
            elapsed_s, busy_s = time.monotonic() - began, time.thread_time() - busy
            if end - start >= MEASURED_TOKENS and elapsed_s > 0:
                self.tokens_per_s = (end - start) / elapsed_s
            self._fit_segments(end - start, elapsed_s if hidden.is_cuda else busy_s)
            yield start, end, hidden
            start = end

    def _fit_segments(self, tokens: int, seconds: float) -> None:
        """Let the next segments be larger or smaller than one of so many tokens that took so long."""
        group = self.shape.attention.group_tokens
        if tokens > self.segment_tokens - group and seconds < SEGMENT_S / 2:
            self.segment_tokens = min(2 * self.segment_tokens, self.most_segment_tokens)
        elif seconds > SEGMENT_S:
            least = group if seconds > SLOW_SEGMENT_S else min(LEAST_SEGMENT_TOKENS, self.segment_tokens)
            self.segment_tokens = max(self.segment_tokens // 2, least, group)

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
        group, rule = self.shape.attention.group_tokens, self.shape.compaction
        memory = resume or RegionMemory(self.shape)
        if (cut := self.cut_tokens) and not rule and memory.tokens < len(token_ids):
            memory.truncate(memory.tokens // cut * cut)  # the segment that was stored in part is read again, as a whole
        memory.reserve(len(token_ids))
        cache = RegionCache(self.shape, tail=memory)
        done = memory.tokens
        for _ in self.segments(cache, token_ids[done:], cancelled):
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

    def run(self, cache: RegionCache, token_ids: Sequence[int], *, cancelled: Callable[[], bool] | None = None) -> None:
        """Run tokens into the cache's tail, all or none of them.

        Raises:
            CancelledError: `cancelled` said so.
        """
        before = cache.tail.tokens
        try:
            for _ in self.segments(cache, token_ids, cancelled):
                pass
        except CancelledError:
            cache.tail.truncate(before)
            raise

    def generate(
        self,
        cache: RegionCache,
        token_ids: Sequence[int],
        config: GenerationConfig,
        *,
        offered: Sequence[int] = (),
        cancelled: Callable[[], bool] | None = None,
    ) -> Generator[int, None, Ending]:
        """Run a prompt, then yield token after token; the stop token is run but not yielded.

        `cache.evidence` gathers where each token of the answer looked. The prompt's last token is run by itself: it is
        the query that predicts the first one. With `draft_tokens`, an answer about long texts is drafted first.

        Args:
            token_ids: the turn, as `encode_turn` gives it; at least one token.
            offered: regions of the memories that the words of the question found, best first; see `lookup`.

        Returns:
            why the answer ended.
        """
        cache.evidence, before = None, cache.tail.tokens
        try:
            decode.look_up(self, cache, token_ids, offered, cancelled)
        except CancelledError:  # half a question is not left behind
            cache.narrow(None)
            cache.tail.truncate(before)
            return ""
        try:
            return (yield from decode.answer(self, cache, token_ids[-1], config, cancelled, before))
        finally:
            cache.narrow(None)

    def glance(
        self,
        memories: Sequence[RegionMemory],
        token_ids: Sequence[int],
        tokens: int,
        *,
        cancelled: Callable[[], bool] | None = None,
    ) -> AnswerEvidence:
        """Where the first tokens of an answer to a first turn look; see `decode.glance`."""
        return decode.glance(self, self.open_chat(memories), token_ids, tokens, cancelled)

    def look_up(
        self,
        cache: RegionCache,
        token_ids: Sequence[int],
        offered: Sequence[int] = (),
        *,
        cancelled: Callable[[], bool] | None = None,
    ) -> Chosen | None:
        """What an answer to a turn sees of the memories; `cache` stays as it is.

        Returns:
            for `cache.narrow`; None where it sees all.

        Raises:
            CancelledError: `cancelled` said so.
        """
        twin = cache.fork()
        decode.look_up(self, twin, token_ids, offered, cancelled)
        return twin.narrowed

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
        for start, end, hidden in self.segments(cache, token_ids, cancelled):
            for i in range(max(start, counted_from - 1), min(end, len(token_ids) - 1), LOGIT_ROWS):
                last = min(i + LOGIT_ROWS, end, len(token_ids) - 1)
                targets = torch.tensor(list(token_ids[i + 1 : last + 1]), device=hidden.device)
                rows = torch.log_softmax(self.logits(hidden[i - start : last - start]).float(), -1)
                parts.append(rows.gather(-1, targets[:, None])[:, 0].cpu())
        return torch.cat(parts)


def _digest(recipe_parts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(recipe_parts, sort_keys=True).encode()).hexdigest()


def _foreign(theirs: MemoryShape, ours: MemoryShape) -> str:
    """In what a memory of another engine differs, for a message."""
    if theirs.recipe != ours.recipe:
        return f"was made by recipe {theirs.recipe[:12] or 'unknown'}, not by this model's {ours.recipe[:12]}"
    name = next(f.name for f in fields(ours) if f.compare and getattr(theirs, f.name) != getattr(ours, f.name))
    return f"has {name} = {getattr(theirs, name)}, where this model has {getattr(ours, name)}"
