"""Made labels: which images share a class, and which pairs NSCL drops with them."""

from itertools import combinations

import numpy as np
import pytest

from cltools.maths.labellings import (
    coarse_labels,
    dropped_pairs,
    noisy_labels,
    random_labels,
    shuffled_labels,
)

TRUE = np.repeat([0, 1, 2, 3, 4, 5, 6], [9, 3, 14, 5, 8, 1, 20])


def sizes(labels):
    return sorted(np.unique(labels, return_counts=True)[1].tolist())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_noise_shuffles_a_share_of_the_images_and_keeps_the_sizes(seed):
    for share in (0.0, 0.25, 1.0):
        noisy = noisy_labels(TRUE, share, seed)
        assert sizes(noisy) == sizes(TRUE)
        assert (noisy != TRUE).sum() <= round(share * len(TRUE))
    assert (noisy_labels(TRUE, 0.25, seed) != TRUE).any()
    assert (noisy != noisy_labels(TRUE, 1.0, seed + 1)).any()


@pytest.mark.parametrize("groups", [2, 3, 6])
def test_coarse_labels_never_divide_a_class(groups):
    coarse = coarse_labels(TRUE, groups, seed=4)
    of_class = {c: set(coarse[c == TRUE].tolist()) for c in range(7)}
    assert all(len(found) == 1 for found in of_class.values())
    numbers = [sum(found == {g} for found in of_class.values()) for g in range(groups)]
    assert max(numbers) - min(numbers) <= 1
    assert sum(numbers) == 7
    drawn = {coarse_labels(TRUE, groups, seed).tobytes() for seed in range(5)}
    assert len(drawn) > 1


def test_random_labels_have_classes_of_one_size():
    labels = random_labels(61, 4, seed=3)
    assert sizes(labels) == [15, 15, 15, 16]
    assert (labels != random_labels(61, 4, seed=5)).any()


@pytest.mark.parametrize(
    "labels",
    [TRUE, shuffled_labels(TRUE), coarse_labels(TRUE, 3), noisy_labels(TRUE, 0.5), TRUE * 0],
    ids=["true", "shuffled", "coarse", "noisy", "one class"],
)
def test_dropped_pairs_against_a_loop(labels):
    pairs = list(combinations(range(len(TRUE)), 2))

    def share(pairs):
        return pytest.approx(np.mean([labels[i] == labels[j] for i, j in pairs]))

    found = dropped_pairs(labels, TRUE)
    assert found.share == share(pairs)
    assert found.same_class == share([(i, j) for i, j in pairs if TRUE[i] == TRUE[j]])
    assert found.other_class == share([(i, j) for i, j in pairs if TRUE[i] != TRUE[j]])


def test_without_pairs_there_is_no_share():
    assert dropped_pairs([1], [0]) == (None, None, None)
    assert dropped_pairs([0, 0], [1, 1]) == (1.0, 1.0, None)


@pytest.mark.parametrize(
    "make",
    [lambda: random_labels(3, 4), lambda: random_labels(9, 1), lambda: coarse_labels(TRUE, 7),
     lambda: noisy_labels(TRUE, 1.5)],
)  # fmt: skip
def test_labels_that_cannot_be_made_are_refused(make):
    with pytest.raises(ValueError, match="need"):
        make()
