"""The one attention of training: full, inside groups, or by selected regions, behind transformers' seam.

`install` puts it into a model. Before each step the trainer sets what the step draws: the rotary table, the documents
that are packed into the rows, the queries that a region loss looks at. The layers read that and change nothing, so
gradient checkpointing may replay them.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from app.errors import ConfigError
from app.kernels.ms_groups import check_options, ms_attention_groups
from app.kernels.rope import rope_table, rotate
from app.kernels.sf_attn import PATTERNS, GroupPattern, sf_attention
from app.memory.config import AttentionConfig
from app.runtime.attention import IdentityRotary
from app.train.pretrain.region_loss import RegionProbe
from app.train.reading_attention import ReadingAttention

NAME = "lectern_training"
KINDS = ("full", *PATTERNS, "ms")


class TrainingAttention:
    """What the attention layers of a model in training share.

    Attributes:
        kind: one of KINDS.
        selection: how `ms` chooses regions; with a text that fits its budget it is full attention.
        pattern: the groups of the other kinds. Of packed rows a group is that of the whole row; a document that fits
            one is seen whole.
        probe: loss on region scores, with `full`; set `probe.start(rows)` before each step.
        table: (cos, sin) [P, D] of this step, or None for the model's own. Full attention and groups look it up by
            place in the row, so P is at least T; `ms` by place among what was selected.
        readings: who sees whom in a row of readings (app/train/readings), in place of `documents`; with `full`.
    """

    def __init__(
        self,
        kind: str = "full",
        *,
        selection: AttentionConfig | None = None,
        pattern: GroupPattern | None = None,
        probe: RegionProbe | None = None,
    ) -> None:
        if kind not in KINDS:
            raise ConfigError(f"attention = {kind!r}: not known; choose one of {', '.join(KINDS)}")
        if probe is not None and kind != "full":
            raise ConfigError(f"attention = {kind!r}: the loss on region scores needs full attention; leave one out")
        self.kind, self.probe = kind, probe
        self.selection = selection or AttentionConfig()
        check_options(self.selection)
        self.pattern = pattern or PATTERNS.get(kind)
        self.table: tuple[Tensor, Tensor] | None = None
        self.readings: ReadingAttention | None = None
        self._documents: Tensor | None = None
        self._runs: list[tuple[int, bool]] | None = None
        self._inv_freq, self._rope_scaling = torch.empty(0), 1.0
        self._own_table: tuple[Tensor, Tensor] | None = None
        self._before: tuple[torch.nn.Module, str] | None = None

    @property
    def documents(self) -> Tensor | None:
        """[B, T] numbers of this step's documents, None when each row is one.

        Neighbours of equal number are one document, and attention stays in it; -1 is padding, neither read nor
        written.
        """
        return self._documents

    @documents.setter
    def documents(self, numbers: Tensor | None) -> None:
        self._documents = numbers
        self._runs = None if numbers is None else _runs(numbers)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Raw queries [B, Hq, T, D], keys and values [B, Hkv, T, D] -> [B, Hq, T, D]."""
        tokens = query.shape[2]
        if self.readings is not None:
            return self._read(layer, query, key, value, scale)
        self._check(query, key)
        selects = self.kind == "ms" and layer >= self.selection.dense_layers
        cos, sin = self._rope(self._positions(tokens, selects), query)
        q, k = (query, key) if selects else (rotate(x, cos[:tokens], sin[:tokens]) for x in (query, key))
        if self.probe is not None and self.probe.rows is not None:
            self.probe.observe(layer, query, key, q, k, scale)
        if selects:
            one = partial(ms_attention_groups, cos=cos, sin=sin, scale=scale, options=self.selection)
        elif self.pattern is not None:
            pattern = replace(self.pattern, group_tokens=self.pattern.group_for(tokens))
            one = partial(sf_attention, scale=scale, pattern=pattern)
        else:
            one = partial(
                F.scaled_dot_product_attention, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
            )
        return one(q, k, value) if self._runs is None else self._by_document(one, q, k, value)

    def _read(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        positions = self.readings.positions
        cos, sin = (x[positions] for x in self._rope(int(positions.max()) + 1, query))
        q, k = rotate(query, cos, sin), rotate(key, cos, sin)
        if self.probe is not None:
            self.probe.observe_readings(layer, self.readings, query, key, q, k, scale)
        return self.readings(q, k, value, scale)

    def _by_document(self, one: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """`one` for every document of all rows, laid end to end."""
        lengths = [length for length, _ in self._runs]
        rows = (x.transpose(0, 1).flatten(1, 2)[None].split(lengths, dim=2) for x in (q, k, v))  # [1, H, L, D] each
        parts = [
            one(*run) if is_text else torch.zeros_like(run[0])
            for run, (_, is_text) in zip(zip(*rows, strict=True), self._runs, strict=True)
        ]
        flat = torch.cat([part.to(v.dtype) for part in parts], dim=2)[0]  # [Hq, B * T, D]
        return flat.unflatten(1, q.shape[:1] + q.shape[2:3]).transpose(0, 1)

    def _check(self, query: Tensor, key: Tensor) -> None:
        batch, tokens = query.shape[0], query.shape[2]
        if key.shape[2] != tokens:
            raise ValueError(f"{key.shape[2]} keys for {tokens} queries: call the model with use_cache=False")
        if self._documents is not None and self._documents.shape != (batch, tokens):
            raise ValueError(f"documents of {tuple(self._documents.shape)} for a batch of {(batch, tokens)}: set anew")
        if self._runs is not None and self.probe is not None and self.probe.rows is not None:
            raise ValueError("the loss on region scores is taken from whole rows: set documents to None")

    def _positions(self, tokens: int, selects: bool) -> int:
        """How many positions the table must have."""
        if not selects or self.selection.positions == "original":
            return tokens
        return max(min(tokens, self.selection.budget_tokens), self.selection.score_angle + 1)

    def _rope(self, positions: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """(cos, sin) of at least `positions` positions, of the dtype and device of `like`."""
        table = self.table
        if table is None:
            if self._own_table is None or len(self._own_table[0]) < positions:
                self._own_table = rope_table(self._inv_freq, positions, self._rope_scaling, torch.float32)
            table = self._own_table
        if len(table[0]) < positions:
            raise ValueError(f"a rotary table of {len(table[0])} positions for {positions}: give a longer one")
        return table[0].to(like), table[1].to(like)


def _runs(numbers: Tensor) -> list[tuple[int, bool]] | None:
    """(length, whether it is text) of neighbours of equal number, row by row; None when every row is one document."""
    begins = torch.ones(numbers.shape, dtype=torch.bool, device=numbers.device)
    begins[:, 1:] = numbers[:, 1:] != numbers[:, :-1]
    starts = begins.flatten().nonzero()[:, 0]
    texts = (numbers.flatten()[starts] >= 0).tolist()
    if len(texts) == numbers.shape[0] and all(texts):
        return None
    ends = [*starts[1:].tolist(), numbers.numel()]
    return [(end - start, text) for start, end, text in zip(starts.tolist(), ends, texts, strict=True)]


def training_attention(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """The registered attention function: [B, Hq, T, D] in, ([B, T, Hq, D], None) out."""
    attention: TrainingAttention = module.training_attention
    return attention.attend(module.layer_idx, query, key, value, scaling).transpose(1, 2), None


def refuse_mask(*args, attention_mask: Tensor | None = None, **kwargs) -> None:
    """The registered mask function: makes no mask, and refuses to drop one unsaid."""
    if attention_mask is not None and not attention_mask.all():
        raise ValueError("attention_mask leaves tokens out: mark padding with -1 in documents instead")


def install(model, attention: TrainingAttention) -> None:
    """Put the attention into a model, plain or wrapped by peft: by name, the rotary embedding applied inside."""
    decoder = model.get_decoder()
    before = getattr(decoder.layers[0].self_attn, "training_attention", None)
    if before is not None:
        uninstall(model)
    rotary = decoder.rotary_emb
    attention._before = (rotary, model.config._attn_implementation)
    attention._inv_freq = rotary.inv_freq.detach().clone()
    attention._rope_scaling = float(rotary.attention_scaling)
    attention._own_table = None
    AttentionInterface.register(NAME, training_attention)
    AttentionMaskInterface.register(NAME, refuse_mask)
    model.set_attn_implementation(NAME)
    decoder.rotary_emb = IdentityRotary()
    for layer in decoder.layers:
        layer.self_attn.training_attention = attention


def uninstall(model) -> None:
    """Take our attention out again: the model is as transformers makes it. Nothing happens where none is installed."""
    decoder = model.get_decoder()
    attention: TrainingAttention | None = getattr(decoder.layers[0].self_attn, "training_attention", None)
    if attention is None:
        return
    rotary, name = attention._before
    decoder.rotary_emb = rotary.to(model.device)
    model.set_attn_implementation(name)
    for layer in decoder.layers:
        del layer.self_attn.training_attention


def installed_probe(model) -> RegionProbe | None:
    """The probe of a model's attention in training, if it has one."""
    attention = getattr(model.get_decoder().layers[0].self_attn, "training_attention", None)
    return attention and attention.probe
