"""Tail probabilities of the distributions that the tests need, so that they need no scipy."""

from __future__ import annotations

import math

__all__ = ["chi_squared_tail", "kolmogorov_tail", "normal_tail"]

_TINY = 1e-300
_PRECISION = 1e-15


def normal_tail(z: float) -> float:
    """Return P(|Z| ≥ |z|) of a standard normal Z.

    Examples
    --------
    >>> round(normal_tail(1.96), 4)
    0.05
    """
    return math.erfc(abs(z) / math.sqrt(2))


def kolmogorov_tail(x: float) -> float:
    """Return P(K ≥ x) of Kolmogorov's distribution, the limit of √n · D.

    Two series of the same function: the alternating one converges fast for large x, its theta transform for small
    (Kolmogorov 1933; Marsaglia, Tsang and Wang, J. Stat. Software 8(18), 2003).

    Examples
    --------
    >>> round(kolmogorov_tail(1.3581), 4)
    0.05
    """
    if x <= 0.04:
        return 1.0
    if x < 1:
        small = sum(math.exp(-((2 * k - 1) ** 2) * math.pi**2 / (8 * x * x)) for k in range(1, 5))
        return 1 - math.sqrt(2 * math.pi) / x * small
    return 2 * sum(math.copysign(math.exp(-2 * (k * x) ** 2), k % 2 - 0.5) for k in range(1, 8))


def chi_squared_tail(x: float, degrees: int) -> float:
    """Return P(X ≥ x) of a chi-squared X: the regularised upper incomplete gamma function Q(degrees/2, x/2).

    Below its mean by the power series of P = 1 − Q, above by the continued fraction of Q, in Lentz' form
    (DLMF 8.7.1 and 8.9.2; Press et al., Numerical Recipes, 3rd ed. 2007, section 6.2).

    Examples
    --------
    >>> round(chi_squared_tail(3.8415, 1), 4)
    0.05
    """
    a, half = degrees / 2, x / 2
    if half <= 0:
        return 1.0
    front = math.exp(a * math.log(half) - half - math.lgamma(a))
    return 1 - front * _power_series(a, half) if half < a + 1 else front * _continued_fraction(a, half)


def _power_series(a: float, x: float) -> float:
    term = total = 1 / a
    n = 0
    while term > total * _PRECISION:
        n += 1
        term *= x / (a + n)
        total += term
    return total


def _continued_fraction(a: float, x: float) -> float:
    b = x + 1 - a
    c = 1 / _TINY
    d = result = 1 / b
    change, n = 0.0, 0
    while abs(change - 1) > _PRECISION:
        n += 1
        numerator = -n * (n - a)
        b += 2
        d = 1 / (numerator * d + b or _TINY)
        c = b + numerator / c or _TINY
        change = c * d
        result *= change
    return result
