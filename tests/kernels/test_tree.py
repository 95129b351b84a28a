import pytest
import torch

from app.kernels.tree import (
    CLUSTER,
    SPAN,
    Level,
    candidate_regions,
    cluster_span,
    node_radii,
    sealed_nodes,
    search,
)

DIM = 8


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def build(fine, kind="similar"):
    """The tree over all whole spans of fine means [Hkv, M, D]."""
    levels, below = [], fine
    while below.shape[1] >= SPAN:
        parts = [cluster_span(below[:, s * SPAN : (s + 1) * SPAN], kind) for s in range(below.shape[1] // SPAN)]
        means = torch.cat([m for m, _ in parts], dim=1)
        children = torch.cat([c + s * SPAN for s, (_, c) in enumerate(parts)], dim=1)
        levels.append(Level(torch.nn.functional.pad(means, (0, 1)), children.int()))
        levels[-1].radii[:] = node_radii(fine, levels, len(levels) - 1, slice(None))
        below = means
    return levels


@pytest.mark.parametrize("kind", ["similar", "adjacent"])
def test_clusters_share_out_a_span(kind):
    nodes = random(2, SPAN, DIM)
    means, members = cluster_span(nodes, kind)
    assert members.shape == (2, SPAN // CLUSTER, CLUSTER)
    for h in range(2):
        assert sorted(members[h].flatten().tolist()) == list(range(SPAN))
        for i in (0, 17, 63):
            torch.testing.assert_close(means[h, i], nodes[h, members[h, i]].mean(0))


def test_similar_clusters_are_tighter_than_neighbours_and_find_groups():
    """64 far points, 16 nodes around each, shuffled over the span: the clusters are those groups."""
    centres = 20 * random(1, SPAN // CLUSTER, DIM)
    group = torch.randperm(SPAN, generator=torch.Generator().manual_seed(1)) % (SPAN // CLUSTER)
    nodes = centres[:, group] + 0.01 * random(1, SPAN, DIM, seed=2)
    spread = {}
    for kind in ("similar", "adjacent"):
        means, members = cluster_span(nodes, kind)
        spread[kind] = (nodes[0, members[0]] - means[0, :, None]).norm(dim=-1).mean()
    assert spread["similar"] < 0.25 * spread["adjacent"]


def test_equal_nodes_are_no_trouble():
    means, members = cluster_span(torch.ones(1, SPAN, DIM))
    assert torch.equal(means, torch.ones(1, SPAN // CLUSTER, DIM)) and members.unique().numel() == SPAN


@pytest.mark.parametrize("nodes", [64, 128])
def test_no_fine_mean_lies_farther_than_the_radius(nodes):
    fine = random(1, nodes * CLUSTER * CLUSTER, DIM)
    levels = build(fine)
    assert [level.means.shape[1] for level in levels] == [nodes * CLUSTER, sealed_nodes(nodes * CLUSTER)]
    top = levels[1]
    for i in (0, 40, 63):
        below = levels[0].children[0, top.children[0, i].long()].flatten().long()
        distances = (fine[0, below] - top.means[0, i]).norm(dim=-1)
        torch.testing.assert_close(distances.max(), top.radii[0, i])


@pytest.mark.parametrize("beam", [64, 10_000])
@pytest.mark.parametrize("count", [1, 1023, 1025, 40_000])
def test_a_search_scores_each_fine_mean_once(count, beam):
    """A beam of everything finds all fine means, any other the unsealed end."""
    fine, queries = random(2, 50_000, DIM), random(2, 5, DIM, seed=1)
    numbers, products = search(fine, build(fine), queries, count, count + 300, beam=beam)
    for h in range(2):
        there = sorted(numbers[h].tolist())
        sealed = 0 if sealed_nodes(count) <= beam else count // SPAN * SPAN
        assert len(set(there)) == len(there) and there[-(count + 300 - sealed) :] == list(range(sealed, count + 300))
        assert len(there) == min(beam * CLUSTER, sealed) + count + 300 - sealed
        torch.testing.assert_close(products[h], queries[h] @ fine[h, numbers[h]].T, atol=1e-4, rtol=1e-4)


def test_a_beam_of_a_tenth_finds_most_of_the_best():
    fine, queries = random(2, 40 * SPAN, DIM), random(2, 3, DIM, seed=1)
    numbers, _ = search(fine, build(fine), queries, 40 * SPAN, 40 * SPAN, beam=256)  # by chance 5 of 50
    for h in range(2):
        best = (queries[h] @ fine[h].T).log_softmax(-1).amax(0).topk(50).indices.tolist()
        assert len(set(best) & set(numbers[h].tolist())) >= 30


def test_the_radius_shows_the_one_member_that_answers():
    """An answer unlike everything around it, whose cluster's mean says nothing of it, at a beam of 8 of 640 nodes."""
    hits = {0.0: 0, 0.5: 0}
    for trial in range(20):
        fine, queries = random(1, 10 * SPAN, 64, seed=trial), random(1, 1, 64, seed=100 + trial)
        place = 500 * trial + 3
        fine[0, place] = 3 * queries[0, 0]
        levels = build(fine)
        for slack in hits:
            numbers, _ = search(fine, levels, queries / 8, 10 * SPAN, 10 * SPAN, beam=8, slack=slack)
            hits[slack] += place in numbers[0].tolist()
    assert hits[0.5] == 20 and hits[0.5] >= hits[0.0]


def test_candidate_regions_come_once_each_best_first():
    numbers = torch.tensor([[[9, 8, 30, 1, 31, 0]]])
    scores = torch.tensor([[[5.0, 4.0, 3.0, 2.0, 1.0, float("-inf")]]])
    regions, valid = candidate_regions(numbers, scores, 4, 5)
    assert regions[0, 0, :3].tolist() == [2, 7, 0] and valid[0, 0].tolist() == [True, True, True, False, False]
    regions, valid = candidate_regions(numbers, scores, 4, 2)
    assert regions[0, 0].tolist() == [2, 7] and valid.all()
