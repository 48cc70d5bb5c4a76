"""Constants and accumulation rules shared by every kernel.

Impossible is ``-inf`` (or mantissa 0), so no flag may assume that infinities or NaN are absent: ``nnan`` and
``ninf`` are never in ``FASTMATH``.
"""

FASTMATH = {"nsz", "arcp", "contract", "afn", "reassoc"}

LOG2_E = 1.4426950408889634
LN_2 = 0.6931471805599453

# ln 2 in two parts: n * LN_2_HIGH is exact for the n that occur, so x - n*ln 2 keeps all its digits.
LN_2_HIGH_32, LN_2_LOW_32 = 0.693359375, -2.12194440e-4
LN_2_HIGH_64, LN_2_LOW_64 = 6.93147180369123816490e-01, 1.90821492927058770002e-10

# An int32 exponent must hold the sum of two zeros less a third number, and no path may reach the exponent of zero. A
# sample whose scores could move an exponent further than MAX_EXPONENT_32 runs in the float64 pair instead.
ZERO_EXPONENT_32 = -(2**28)
MAX_EXPONENT_32 = 2**26
ZERO_EXPONENT_64 = -1e300

# A posterior below this counts as 0: its products would be subnormal.
LEAST_POSTERIOR = 1e-290
