"""Quantiles of the beta distribution: scipy's stats.beta.ppf."""

import math

TERMS = 1000
PRECISION = 1e-16


def beta_cdf(x: float, a: float, b: float) -> float:
    """Regularised incomplete beta function, by Lentz's way with its continued fraction.

    NIST, Digital Library of Mathematical Functions, 8.17.22.
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # there the fraction of the other side converges faster
        return 1 - beta_cdf(1 - x, b, a)
    scale = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    value = d
    for k in range(2, TERMS):
        m = k // 2
        if k % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        c, d = 1 + term / c, 1 / (1 + term * d)
        value *= c * d
        if abs(c * d - 1) < PRECISION:
            break
    return value * math.exp(scale + a * math.log(x) + b * math.log1p(-x)) / a


def beta_quantile(p: float, a: float, b: float) -> float:
    """Where the distribution function is p: Newton's method, kept inside a shrinking bracket."""
    if p <= 0 or p >= 1:
        return float(p >= 1)
    scale = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    low, high, x = 0.0, 1.0, 0.5
    for _ in range(200):
        miss = beta_cdf(x, a, b) - p
        low, high = (low, x) if miss > 0 else (x, high)
        density = math.exp(scale + (a - 1) * math.log(x) + (b - 1) * math.log1p(-x))
        following = x - miss / density
        if not low < following < high:
            following = (low + high) / 2
        if abs(following - x) <= PRECISION * x or not 0 < following < 1:
            break
        x = following
    return x
