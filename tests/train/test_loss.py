"""The loss of long sequences: equal to plain cross entropy, and never with all logits at once."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from app.train.loss import chunked_loss, target_weights

ROWS, TOKENS, WIDTH, WORDS = 2, 300, 8, 500


def drawn(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(ROWS, TOKENS, WIDTH, generator=generator, requires_grad=True)
    head = torch.nn.Linear(WIDTH, WORDS, bias=False)
    torch.nn.init.normal_(head.weight, generator=generator)
    return hidden, head, torch.randint(0, WORDS, (ROWS, TOKENS), generator=generator)


def gradients(loss, hidden, head):
    return torch.autograd.grad(loss, (hidden, head.weight))


@pytest.mark.parametrize("chunk", [1, 7, 299, 4096])
def test_it_is_plain_cross_entropy(chunk):
    hidden, head, ids = drawn()
    expected = F.cross_entropy(head(hidden)[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    found = chunked_loss(hidden, head, ids, target_weights(torch.ones(ROWS, TOKENS)), chunk)
    torch.testing.assert_close(found, expected)
    for a, b in zip(gradients(found, hidden, head), gradients(expected, hidden, head), strict=True):
        torch.testing.assert_close(a, b)


def test_weights_say_what_counts():
    hidden, head, ids = drawn(1)
    weights = torch.rand(ROWS, TOKENS, generator=torch.Generator().manual_seed(2)).round(decimals=1) * 3
    losses = F.cross_entropy(head(hidden)[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    found = chunked_loss(hidden, head, ids, target_weights(weights), 64)
    torch.testing.assert_close(found, (losses * weights[:, 1:]).sum())


def test_nothing_to_learn_is_zero_with_a_gradient():
    hidden, head, ids = drawn()
    loss = chunked_loss(hidden, head, ids, torch.zeros(ROWS, TOKENS))
    assert loss == 0
    assert all(not g.any() for g in gradients(loss, hidden, head))


def test_no_token_is_predicted_across_documents_or_in_padding():
    documents = torch.tensor([[0, 0, 1, 1, 1, -1, -1], [4, 4, 4, 4, 5, 6, 6]])
    weights = target_weights(torch.full((2, 7), 2.0), documents)
    assert weights.tolist() == [[0, 2, 0, 2, 2, 0, 0], [0, 2, 2, 2, 0, 0, 2]]
    assert target_weights(torch.ones(1, 3)).tolist() == [[0, 1, 1]]


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def largest(loss_of):
    """(most elements of a tensor made, of all tensors kept for backward)."""
    kept = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t)
    with Largest() as made:
        with hooks:
            loss = loss_of()
        loss.backward()
    return made.elements, sum(kept)


def test_full_logits_never_exist():
    """Neither made nor kept: at most a chunk of them, and the head's own gradient."""
    hidden, head, ids = drawn()
    weights, chunk = target_weights(torch.ones(ROWS, TOKENS)), 16
    made, kept = largest(lambda: chunked_loss(hidden, head, ids, weights, chunk))
    assert made <= max(chunk * WORDS, hidden.numel(), head.weight.numel())
    assert kept < 2 * hidden.numel() < ROWS * TOKENS * WORDS
    plain, _ = largest(lambda: F.cross_entropy(head(hidden).flatten(0, 1), ids.flatten()))
    assert plain == ROWS * TOKENS * WORDS  # the counter does count
