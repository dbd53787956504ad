"""Coefficients of the error bound that makes the fast search exact; derived in ``docs/certificate.md``.

All are upper bounds, relative to |z||e| (z a row, e a code, after centring and scaling) unless
said otherwise, and plain Python numbers that the launchers hand to the kernels.
"""

from __future__ import annotations

# Tensor cores add the products of a block and the accumulator after aligning them to the largest
# exponent, and truncate what falls below 24 bits: one unit of 2^-23 for each addend and one for the
# result. No extra alignment bits and blocks of four are assumed, the worst of any generation (Fasi
# et al. 2021, Khattak and Mikaitis 2025). Float32 additions rounded to nearest are covered as well.
TRUNCATION = 2.0**-23
BLOCK = 4

# Room for the rounding of the bound itself, which is computed in float32.
SLACK = 1.0 + 2.0**-10


def accumulation(products: int) -> float:
    """Error of the sum of ``products`` products, relative to the sum of their absolute values."""
    blocks = -(-products // BLOCK)
    return TRUNCATION * (products + 2 * blocks) * SLACK


def contract(dim: int) -> float:
    """Error of the contract's own score, the pair of ``base.py``, relative to (|x| + |e|)^2 before centring.

    gamma_{2 D}^2 with u = 2^-53 (Ogita, Rump and Oishi 2005). All backends are to agree on its winner, also
    where real arithmetic would see a difference that it cannot.
    """
    return 1.1 * (2 * dim + 4) ** 2 * 2.0**-106


def packing(bits: int) -> float:
    """Relative change of a score whose low ``bits`` bits make room for an index, and its float32 rounding."""
    return (2.0 ** (bits - 23) if bits else 0.0) + 2.0**-22
