"""The loss on region scores: what it measures, what it moves, and that it leaves the model as it was."""

import pytest
import torch

from app.kernels.regions import sub_means
from app.train.attention import TrainingAttention, install, uninstall
from app.train.pretrain.region_loss import RegionProbe, region_loss, region_mass
from tests import tiny

REGION, SUB, DIM = 8, 2, 16


def fine_of(keys: torch.Tensor) -> torch.Tensor:
    return sub_means(keys, SUB).unflatten(2, (-1, REGION // SUB))


def test_mass_is_the_attention_that_goes_far():
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(1, 4, 3, DIM, generator=generator)
    keys = torch.randn(1, 2, 48, DIM, generator=generator)
    rows = torch.tensor([[5, 20, 47]])
    mass = region_mass(queries, keys, rows, REGION, 0.25)
    for head in range(4):
        for i, row in enumerate(rows[0].tolist()):
            weights = torch.softmax(queries[0, head, i] @ keys[0, head // 2, : row + 1].T * 0.25, dim=-1)
            for region in range(6):
                far = 1 <= region < row // REGION - 1
                wanted = weights[region * REGION : (region + 1) * REGION].sum() if far else torch.tensor(0.0)
                torch.testing.assert_close(mass[0, head, i, region], wanted)


def test_a_query_like_the_right_region_costs_less_and_other_texts_cost_more():
    generator = torch.Generator().manual_seed(1)
    keys = torch.randn(1, 1, 6 * REGION, DIM, generator=generator)
    mass = torch.zeros(1, 1, 1, 6)
    mass[..., 3] = 0.5
    fine = fine_of(keys)
    right, wrong = (4 * fine[:, :, region, 0][:, :, None] for region in (3, 1))
    bank = torch.randn(1, 32, REGION // SUB, DIM, generator=generator)
    assert region_loss(right, fine, mass, None) < region_loss(wrong, fine, mass, None)
    assert region_loss(right, fine, mass, bank) > region_loss(right, fine, mass, None)
    assert region_loss(right, fine, torch.zeros_like(mass), bank) == 0


def test_queries_and_keys_both_learn():
    generator = torch.Generator().manual_seed(2)
    queries = torch.randn(1, 2, 3, DIM, generator=generator, requires_grad=True)
    keys = torch.randn(1, 1, 6 * REGION, DIM, generator=generator, requires_grad=True)
    mass = torch.rand(1, 2, 3, 6, generator=generator)
    region_loss(queries, fine_of(keys), mass, None).backward()
    assert queries.grad.abs().sum() > 0 and keys.grad.abs().sum() > 0


@pytest.mark.parametrize("tokens", [64, 128])
def test_the_model_stays_what_it_is(tokens):
    ids = torch.tensor([tiny.token_ids(tokens)] * 2)
    model = tiny.model()
    with torch.no_grad():
        stock = model(ids).logits
        probe = RegionProbe(region_tokens=REGION, key_sub=SUB)
        install(model, TrainingAttention("full", probe=probe))
        probe.start(torch.tensor([[tokens - 1, tokens // 2]] * 2))
        probed = model(ids).logits
        assert len(probe.losses) == len(model.model.layers) and all(loss > 0 for loss in probe.losses.values())
        uninstall(model)
        again = model(ids).logits
    torch.testing.assert_close(probed, stock, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again, stock)


def test_the_bank_holds_the_latest_regions_and_no_more():
    model = tiny.model()
    probe = RegionProbe(region_tokens=REGION, key_sub=SUB, bank_regions=20)
    install(model, TrainingAttention("full", probe=probe))
    with torch.no_grad():
        for seed in range(3):
            probe.start(torch.tensor([[63]]))
            model(torch.tensor([tiny.token_ids(64, seed=seed)]))
    probe.start(None)
    assert {bank.shape[1] for bank in probe.bank.values()} == {20}
