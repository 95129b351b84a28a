"""The folder that a run leaves: whole or not there, loads in peft and in transformers as it was trained."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from app.errors import InputError
from app.models.files import whole_folder
from app.models.rope import PositionConfig
from app.train.tune.lora import add_adapter, trained_parameters
from app.train.tune.output import is_finished, read_base, write_output
from app.train.tune.recipe import LoraRecipe
from tests import tiny
from tests.train.tune.tuning import recipe

COUNTS = {"steps": 1, "tokens": 2}


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def base(tmp_path, request):
    config = tiny.model().config
    config.tie_word_embeddings = request.param
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    tiny.byte_tokenizer().save_pretrained(tmp_path / "base")
    return read_base(str(tmp_path / "base"))


def changed(base, lora):
    """The base with an adapter that changes everything it learns."""
    model = add_adapter(base.load(torch.float32), lora, str(base.folder))
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in trained_parameters(model).values():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(torch.tensor([tiny.token_ids(30)])).logits


@pytest.mark.parametrize(
    "lora",
    [LoraRecipe("ko"), LoraRecipe("none"), LoraRecipe("all", embeddings=False, norms=False, token_rows=(7, 9))],
    ids=["ko", "none", "rows"],
)
def test_peft_reads_the_adapter_as_it_was_trained(base, tmp_path, lora):
    model = changed(base, lora)
    write_output(tmp_path / "out", model, recipe(lora), base, COUNTS)
    again = PeftModel.from_pretrained(base.load(torch.float32), tmp_path / "out")
    torch.testing.assert_close(logits(again), logits(model), atol=1e-6, rtol=1e-6)
    merged = again.merge_and_unload(safe_merge=True)
    torch.testing.assert_close(logits(merged), logits(model), atol=1e-4, rtol=1e-4)


def test_embeddings_and_norms_are_in_the_one_file(base, tmp_path):
    write_output(tmp_path / "out", changed(base, LoraRecipe("ko")), recipe(), base, COUNTS)
    with safe_open(tmp_path / "out" / "adapter_model.safetensors", "pt") as file:
        names = {name.removeprefix("base_model.model.") for name in file.keys()}
    assert {"model.embed_tokens.weight", "model.norm.weight", "model.layers.1.input_layernorm.weight"} <= names
    assert ("lm_head.weight" in names) == base.config["tie_word_embeddings"]
    assert len([name for name in names if "lora" in name]) == 8
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "lectern.json",
    }  # fmt: skip
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["inference_mode"]


def test_a_checkpoint_comes_out_where_all_weights_learnt(base, tmp_path):
    lora, positions = LoraRecipe(full=True), PositionConfig("ntk", (4,))
    model = changed(base, lora)
    wanted = logits(model)
    write_output(tmp_path / "out", model, recipe(lora), base, COUNTS)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    torch.testing.assert_close(logits(again), wanted, atol=1e-5, rtol=1e-5)
    assert again.config.tie_word_embeddings == base.config["tie_word_embeddings"]
    assert (tmp_path / "out" / "tokenizer.json").exists() and (tmp_path / "out" / "chat_template.jinja").exists()
    given = recipe(lora, tables={"positions": positions})
    write_output(tmp_path / "far", model, given, base, COUNTS)
    rope = json.loads((tmp_path / "far" / "config.json").read_text())["rope_parameters"]
    entry = json.loads((tmp_path / "far" / "lectern.json").read_text())["rope"]
    assert rope["rope_theta"] == entry["theta"] == pytest.approx(10_000 * 4 ** (8 / 6))
    assert (entry["method"], entry["pretrained_tokens"], entry["factor"]) == ("ntk", 64, 4)


def test_nothing_half_written_is_left(tmp_path):
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "out") as new:
        (new / "part").write_text("")
        assert new.parent == tmp_path and 1 / 0
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written: Not a directory; choose another folder with --out"):
        with whole_folder(tmp_path / "file" / "out"):
            pass


def test_what_is_there_is_left_alone(base, tmp_path):
    given, out = recipe(), tmp_path / "out"
    assert not is_finished(out, given)
    write_output(out, changed(base, LoraRecipe("ko")), given, base, COUNTS)
    assert is_finished(out, given)
    for wrong, folder in ((recipe(steps=9), out), (given, base.folder)):
        with pytest.raises(InputError, match="is there already; delete it, or choose another folder with --out"):
            is_finished(folder, wrong)
    with pytest.raises(InputError, match="is there already"):
        write_output(out, changed(base, LoraRecipe("ko")), given, base, COUNTS)
