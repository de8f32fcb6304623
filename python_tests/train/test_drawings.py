"""Experiments figure11 and figure12: the numbers of the drawings are those of what is drawn."""

import math

import pytest
import torch

from vqdm_train.experiments import figure11, figure12
from vqdm_train.experiments.common import new_axes
from vqdm_train.experiments.plane import draw_cells


@pytest.mark.parametrize("case", figure11.CASES)
def test_features_lie_nearest_to_their_own_code(case: str) -> None:
    cell = figure11._cell(figure11.FULL, case)
    assert sorted(cell["counts"]) == sorted(figure11.CASES[case])
    p = [count / sum(cell["counts"]) for count in cell["counts"]]
    assert cell["U"] == sum(share > 0 for share in p) / len(p)
    assert cell["C"] == pytest.approx(math.prod(share**-share for share in p if share))


def test_neither_use_nor_perplexity_alone_tells_a_collapse() -> None:
    half, uneven, even = (figure11._cell(figure11.FULL, case) for case in figure11.CASES)
    assert (half["U"], uneven["U"], even["U"]) == (0.5, 1, 1)
    assert uneven["C"] < half["C"] < even["C"]
    assert even["C"] == pytest.approx(8)


def test_a_step_moves_codes_towards_the_mean_of_their_features() -> None:
    z, start = torch.tensor(figure12.FEATURES), torch.tensor(figure12.CODES)
    nearest = torch.cdist(z, start).argmin(1)
    assert nearest.unique().tolist() == [0, 1, 2]
    cell = figure12._cell(figure12.FULL, 1)
    g = figure12.FULL.decay
    for k in range(3):
        own = z[nearest == k]
        # Counts start at 1.
        expected = (g * start[k] + (1 - g) * own.sum(0)) / (g + (1 - g) * len(own))
        torch.testing.assert_close(torch.tensor(cell["codes"][k]), expected, rtol=1e-4, atol=1e-5)
    assert cell["moved"][3] < 1e-4


def test_the_unused_code_stays_and_the_others_arrive() -> None:
    z = torch.tensor(figure12.FEATURES)
    cell = figure12._cell(figure12.FULL, 20)
    for k in range(3):
        mean = z[[i for i, index in enumerate(cell["indices"]) if index == k]].mean(0)
        torch.testing.assert_close(torch.tensor(cell["codes"][k]), mean, rtol=0, atol=0.02)
    assert 3 not in cell["indices"]
    assert cell["moved"][3] < 0.005
    assert cell["U"] == 0.75


def test_cells_are_those_of_the_nearest_codes() -> None:
    _, (ax,) = new_axes(1, 1, size=(4, 3), title="")
    draw_cells(ax, torch.tensor([[0.2, 0.5]]), torch.tensor([[0.5, 0.5], [1.5, 0.5]]), size=(2.0, 1.0))
    image = ax.images[0].get_array()
    assert image is not None
    rows, columns = image.shape[:2]
    assert (rows, columns) == (300, 600)
    used, unused, border = image[10, 10], image[10, -10], image[10, 300]
    assert used[2] > used[0] + 0.1, "blue"
    assert unused[0] == pytest.approx(unused[2]), "grey"
    assert max(border) < 0.5
