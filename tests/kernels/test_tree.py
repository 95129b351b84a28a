import pytest
import torch

from app.kernels.tree import CLUSTER, SPAN, Level, candidate_regions, cluster_span, node_radii, search, sealed_nodes

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
        levels.append(Level(means, torch.zeros(means.shape[:2]), children.int()))
        levels[-1].radii = node_radii(fine, levels, len(levels) - 1, slice(None))
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


@pytest.mark.parametrize("count", [1, 100, 1023, 1024, 1025, 5000, 40_000])
def test_a_beam_of_everything_finds_the_best(count):
    fine, queries = random(2, 40_000, DIM), random(3, 2, 5, DIM, seed=1)
    limits = torch.tensor([count, max(1, count // 2), count])
    numbers, scores = search(fine, build(fine), queries, limits, skip=0, beam=10_000, found=20)
    for g in range(3):
        for h in range(2):
            seen = fine[h, : limits[g]]
            votes = (queries[g, h] @ seen.T).log_softmax(-1).amax(0)
            best = votes.topk(min(20, len(seen))).values
            torch.testing.assert_close(scores[g, h, : len(best)], best, atol=1e-4, rtol=1e-4)
            assert (scores[g, h, len(best) :] == float("-inf")).all()
            assert len(set(numbers[g, h, : len(best)].tolist())) == len(best)


def test_the_sinks_are_not_found():
    fine, queries = random(1, 2000, DIM), random(1, 1, 3, DIM, seed=1)
    fine[0, 3] = 10 * queries[0, 0, 0]
    for skip, there in ((0, True), (4, False)):
        numbers, _ = search(fine, build(fine), queries, torch.tensor([2000]), skip=skip, beam=64, found=20)
        assert (3 in numbers[0, 0].tolist()) == there


def test_the_radius_shows_the_one_member_that_answers():
    """An answer unlike everything around it, whose cluster's mean says nothing of it, at a beam of 8 of 640 nodes."""
    hits = {0.0: 0, 0.5: 0}
    for trial in range(20):
        fine, queries = random(1, 10 * SPAN, 64, seed=trial), random(1, 1, 1, 64, seed=100 + trial)
        place = 500 * trial + 3
        fine[0, place] = 3 * queries[0, 0, 0]
        levels = build(fine)
        for slack in hits:
            numbers, _ = search(
                fine, levels, queries / 8, torch.tensor([10 * SPAN]), skip=0, beam=8, found=50, slack=slack
            )
            hits[slack] += place in numbers[0, 0].tolist()
    assert hits[0.5] == 20 and hits[0.5] >= hits[0.0]


def test_candidate_regions_come_once_each_best_first():
    numbers = torch.tensor([[[9, 8, 30, 1, 31, 0]]])
    scores = torch.tensor([[[5.0, 4.0, 3.0, 2.0, 1.0, float("-inf")]]])
    regions, valid = candidate_regions(numbers, scores, 4, 5)
    assert regions[0, 0, :3].tolist() == [2, 7, 0] and valid[0, 0].tolist() == [True, True, True, False, False]
    regions, valid = candidate_regions(numbers, scores, 4, 2)
    assert regions[0, 0].tolist() == [2, 7] and valid.all()
