from __future__ import annotations

import numpy as np
import pytest
from scipy import special, stats

from cloudai.statistics.tails import chi_squared_tail, kolmogorov_tail, normal_tail


@pytest.mark.parametrize("degrees", [1, 2, 3, 10, 63, 500, 4095])
def test_chi_squared_tail_agrees_with_scipy_far_into_the_tail(degrees):
    for x in degrees * np.array([0.01, 0.3, 0.9, 1.0, 1.1, 2.0, 5.0]) + np.array([0, 0, 0, 0.1, 3, 30, 100]):
        assert chi_squared_tail(float(x), degrees) == pytest.approx(stats.chi2.sf(x, degrees), rel=1e-9, abs=1e-300)


def test_chi_squared_tail_of_nothing_is_one():
    assert chi_squared_tail(0.0, 3) == 1.0


@pytest.mark.parametrize("x", [0.0, 0.01, 0.04, 0.041, 0.2, 0.5, 0.999, 1.0, 1.001, 1.36, 3.0, 10.0])
def test_kolmogorov_tail_agrees_with_scipy(x):
    assert kolmogorov_tail(x) == pytest.approx(special.kolmogorov(x), rel=1e-12, abs=1e-14)


@pytest.mark.parametrize("z", [0.0, -1.0, 2.5, 12.0])
def test_normal_tail_agrees_with_scipy(z):
    assert normal_tail(z) == pytest.approx(2 * stats.norm.sf(abs(z)), rel=1e-12)
