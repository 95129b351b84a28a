"""Turns are the ids that the model's own template gives, encoded whole, in the app and in training."""

from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from app.errors import InputError, ModelError
from app.models.turns import Turns
from app.runtime.chat_text import ChatText
from app.train.tune.packing import Encoder
from app.train.tune.instructions import Entry
from tests import tiny

LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'system' %}{{ '<<SYS>>' + m['content'] + '<</SYS>>' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for m in messages %}"
    "{% if loop.first and m['role'] != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TRIMS = (
    "{{ bos_token }}{% for m in messages %}{{ '<|user|>' + m['role'] + '\n\n' + m['content'] | trim + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|user|>assistant\n\n' }}{% endif %}"
)
ASKED = [{"role": "user", "content": "Who saw the sea?"}]
TALK = [*ASKED, {"role": "assistant", "content": "Parkins"}, {"role": "user", "content": "When?"}]


def pieces(scheme: str) -> PreTrainedTokenizerFast:
    """Byte pairs of SentencePiece, as in Llama 2 ("prepend") and as newer files have them (a scheme of Metaspace)."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if scheme == "prepend":
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    words = "Who saw the sea? Parkins saw the sea. When? [INST] x [/INST] ".split() * 9
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    made.train_from_iterator([f"{a} {b}" for a, b in zip(words, words[1:], strict=False)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=LLAMA2
    )


def chatml() -> PreTrainedTokenizerFast:
    """As SmolLM2 has it: the BOS is a marker of turns, and text began with another."""
    tokens = tiny.byte_tokenizer()
    tokens.add_special_tokens(
        {"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|endoftext|>"], "bos_token": "<|im_start|>"}
    )
    tokens.chat_template = CHATML
    return tokens


def stock(tokens, messages, **options) -> list[int]:
    return list(tokens.apply_chat_template(messages, tokenize=True, return_dict=False, **options))


def chat_text(tokens, system_prompt: str = "", configured=None) -> ChatText:
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=configured))
    return ChatText(model, tokens, system_prompt)


@pytest.mark.parametrize("scheme", ["prepend", "first", "always", "never"])
@pytest.mark.parametrize("marker", ["", " </s> "])
def test_turns_of_sentencepiece_models_are_the_templates(scheme, marker):
    """Blanks at borders are the stock's. Where a question spells a marker, it stays text."""
    tokens = pieces(scheme)
    text = chat_text(tokens)
    whole = stock(tokens, TALK)
    first = stock(tokens, ASKED)
    assert [1, *text.encode_turn(ASKED)] == first
    assert text.encode_turn(TALK, last_token=2) == whole[whole.index(2) + 1 :]
    assert text.encode_turn(TALK, last_token=9) == whole[whole.index(2) :]
    ids, owners = text.turns.chat(TALK)
    assert [1, *ids] == whole
    assert tokens.decode([id for id, owner in zip(ids, owners, strict=True) if owner == 1]) == "Parkins</s>"
    if marker:
        spoiled = text.encode_turn([{"role": "user", "content": f"Who{marker}saw"}])
        assert 2 not in spoiled and tokens.decode(spoiled) == f"[INST] Who{marker}saw [/INST]"


def test_training_and_app_give_the_same_ids():
    tokens = pieces("prepend")
    text = chat_text(tokens, "Say")
    turns = tuple((message["role"], message["content"]) for message in TALK)
    encoded = Encoder(tokens, system_prompt="Say")(Entry("x", "the sea", (*turns, ("assistant", "saw"))))
    begin = [1, *text.text_tokenizer.encode("the sea", add_special_tokens=False).ids]
    told = [*begin, *text.encode_turn(ASKED)]
    assert encoded.token_ids[: len(told)].tolist() == told
    answer = encoded.token_ids.tolist().index(2) + 1
    more = text.encode_turn(TALK, last_token=2)
    assert encoded.token_ids[answer : answer + len(more)].tolist() == more
    assert encoded.weights[: len(told)].sum() == 0 and encoded.weights[answer : answer + len(more)].sum() == 0


def test_a_bos_that_marks_turns_is_said_and_begins_no_document():
    tokens = chatml()
    text = chat_text(tokens)
    assert text.bos_id == tokens.convert_tokens_to_ids("<|endoftext|>")
    assert text.encode_turn(ASKED) == stock(tokens, ASKED, add_generation_prompt=True)
    ids, owners = text.turns.chat(TALK[:2])
    assert ids == stock(tokens, TALK[:2])
    assert tokens.decode([id for id, owner in zip(ids, owners, strict=True) if owner == 1]) == "Parkins<|im_end|>"
    end = tokens.convert_tokens_to_ids("<|im_end|>")
    assert text.stop_ids == {tokens.eos_token_id, end} and tokens.eos_token_id != end
    assert chat_text(tokens, configured=[5, 7]).stop_ids == {5, 7, tokens.eos_token_id, end}


def test_a_bos_written_out_once_is_stripped():
    tokens = tiny.byte_tokenizer()
    for bos in ("{{ bos_token }}", "<|bos|>"):
        tokens.chat_template = bos + tiny.TEMPLATE
        turns = Turns(tokens)
        assert turns.start_id == 1 and [1, *turns.question(ASKED)] == stock(tokens, ASKED, add_generation_prompt=True)


def test_contents_are_trimmed_where_the_template_trims_them():
    tokens = tiny.byte_tokenizer()
    padded = [{"role": "user", "content": "\n  Who?\n "}]
    for template, bos in ((TRIMS, [1]), (tiny.TEMPLATE, []), (TRIMS.replace("| trim", ".lstrip('\n')"), [1])):
        tokens.chat_template = template
        assert [*bos, *Turns(tokens).question(padded)] == stock(tokens, padded, add_generation_prompt=True)


def test_the_system_line_goes_where_the_template_has_a_place():
    tokens = tiny.byte_tokenizer()
    system = [{"role": "system", "content": "Be short."}]
    assert Turns(tokens, "Be short.").question(ASKED) == stock(tokens, system + ASKED, add_generation_prompt=True)
    folded = [{"role": "user", "content": "Be short.\n\nWho saw the sea?"}]
    for refusing in (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + tiny.TEMPLATE,
        "{% for m in messages %}{% if m['role'] != 'system' %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endif %}"
        "{% endfor %}",
    ):
        tokens.chat_template = refusing
        assert Turns(tokens, "Be short.").question(ASKED) == stock(tokens, folded, add_generation_prompt=True)


def test_a_start_that_is_no_token_is_refused():
    with pytest.raises(ModelError, match="document_start = '<begin>': is no token"):
        Turns(tiny.byte_tokenizer(), document_start="<begin>")
    assert Turns(tiny.byte_tokenizer(), document_start="<|pad|>").start_id == 0


def test_turns_that_a_template_refuses_are_told():
    tokens = tiny.byte_tokenizer()
    tokens.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InputError, match="refuses the turns user: roles must alternate"):
        Turns(tokens).question(ASKED)
