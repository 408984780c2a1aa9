"""The exact search against a float64 brute force, on data made to be hard: clusters closer than
float32 can tell apart.
"""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from adir.retrieval.index.memory import Index
from adir.retrieval.index.search import (
    chord_to_angle,
    full_float32,
    keys_of,
    nearest_candidates,
    part_of,
    squared_distances,
)

N, D, K = 3000, 64, 20


def clusters(seed=0):
    """Float16 unit vectors in 30 tight clusters, with exact copies among them."""
    g = torch.Generator().manual_seed(seed)
    centres = functional.normalize(torch.randn(30, D, generator=g), dim=1)
    vectors = centres[torch.arange(N) % 30] + 1e-3 * torch.randn(N, D, generator=g)
    vectors[1000:1200] = vectors[:200]
    return functional.normalize(vectors, dim=1).half()


NAMES = [f"p{number:05d}" for number in np.random.default_rng(0).permutation(N)]
VECTORS = clusters()
QUERIES = functional.normalize(
    VECTORS[:6].float() + 1e-4 * torch.randn(6, D, generator=torch.Generator().manual_seed(1))
)


def brute_force(query, hidden=()):
    squares = ((VECTORS.double().numpy() - query.double().numpy()) ** 2).sum(1).tolist()
    return [name for _, name in sorted(zip(squares, NAMES, strict=True)) if name not in hidden][:K]


def test_search_is_a_float64_sort_with_ties_by_id():
    index = Index(NAMES, VECTORS)
    hidden = [set(), set(NAMES[:90]), set(), {"unknown"}, set(), set(NAMES[::2])]
    found, distances = index.search(QUERIES, K, hidden)
    assert found == [
        brute_force(query, names) for query, names in zip(QUERIES, hidden, strict=True)
    ]
    assert (distances[:, 1:] >= distances[:, :-1]).all()


@pytest.mark.parametrize("block", [1, 7, 64, 1000, 4096])
def test_every_block_gives_the_same_neighbours_and_distances(block):
    index = Index(NAMES, VECTORS)
    expected, distances = index.search(QUERIES, K)
    queries = QUERIES if block > 1 else QUERIES[:1]
    found, again = index.search(queries, K, block=block)
    assert found == expected[: len(queries)] and torch.equal(again, distances[: len(queries)])


def test_every_thread_count_gives_the_same_neighbours_and_distances():
    index, threads = Index(NAMES, VECTORS), torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(index.search(QUERIES, K))
    finally:
        torch.set_num_threads(threads)
    for found, distances in results[1:]:
        assert found == results[0][0] and torch.equal(distances, results[0][1])


def test_bfloat16_products_allowed_by_a_trainer_are_not_used():
    index, before = Index(NAMES, VECTORS), torch.get_float32_matmul_precision()
    expected = index.search(QUERIES, K)[0]
    try:
        torch.set_float32_matmul_precision("medium")
        assert index.search(QUERIES, K)[0] == expected
        assert torch.get_float32_matmul_precision() == "medium"
        with full_float32():
            assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("offset", [0, 100])
def test_candidates_hold_the_k_best_and_few_others(offset):
    vectors = functional.normalize(torch.randn(20_000, D), dim=1) + offset
    queries = functional.normalize(torch.randn(4, D), dim=1) + offset
    candidates = nearest_candidates(
        [part_of(vectors[:7000]), part_of(vectors[7000:])], queries, K, 512
    )
    for query, rows in zip(queries, candidates, strict=True):
        best = np.argsort(squared_distances(vectors.numpy(), query.numpy()), kind="stable")[:K]
        assert set(best) <= set(rows.tolist())
        assert len(rows) == len(set(rows.tolist()))
        if not offset:
            assert len(rows) < 2 * K


def test_keys_lie_within_their_bound():
    from adir.retrieval.index.search import key_error, longest_of

    part = part_of(functional.normalize(torch.randn(500, 512), dim=1).half())
    queries = functional.normalize(torch.randn(3, 512), dim=1)
    exact = (part.vectors.double() ** 2).sum(1) / 2 - queries.double() @ part.vectors.double().T
    bound = key_error(queries, longest_of([part]))
    for first, keys in keys_of([part], queries, 128):
        error = (keys - exact[:, first : first + keys.shape[1]]).abs()
        assert (error <= bound).all() and error.max() > bound.max() / 1000


def test_a_row_is_measured_alike_alone_and_among_others():
    vectors = torch.randn(300, 512).half().numpy()
    query = torch.randn(512).numpy()
    together = squared_distances(vectors, query)
    alone = np.array([squared_distances(vectors[row : row + 1], query)[0] for row in range(300)])
    assert np.array_equal(together, alone)


def test_more_ties_than_were_kept_are_all_candidates():
    vectors = functional.normalize(torch.randn(2000, D), dim=1)
    vectors[500:1500] = vectors[0]
    (rows,) = nearest_candidates([part_of(vectors)], vectors[:1], K, 512)
    assert sorted(rows.tolist()) == [0, *range(500, 1500)]


def test_what_float32_cannot_tell_apart_is_no_tie():
    # |b|^2 = 1 + 2^-48: in float32 both are 1, and the order would be that of the ids
    vectors = torch.zeros(2, 4, dtype=torch.float16)
    vectors[:, 0], vectors[1, 1] = 1, 2.0**-24
    found, _ = Index(["z", "a"], vectors, "euclidean").search(torch.zeros(1, 4), 2)
    assert found == [["z", "a"]]


@pytest.mark.parametrize("angle", [0.0, 1e-6, 1e-3, 0.3, math.pi / 2, 3.0])
def test_the_distance_of_unit_vectors_is_the_angle_between_them(angle):
    a = torch.tensor([1.0, 0.0, 0.0])
    b = torch.tensor([math.cos(angle), math.sin(angle), 0.0])
    assert chord_to_angle((a - b).norm()).item() == pytest.approx(angle, rel=1e-4, abs=1e-9)


def test_opposite_vectors_are_pi_apart_even_when_rounding_makes_the_chord_longer_than_two():
    assert chord_to_angle(torch.tensor(2.0000005)).item() == pytest.approx(math.pi)
