"""The benchmarks behind ``pathsum bench``: correctness first, then time, memory and accuracy beside the peers.

``cases`` says what is measured, ``peers`` holds one adapter for each implementation, ``contenders`` where each runs,
``gate`` what counts as right, ``measure`` the protocol, ``rows`` what is kept, ``report`` how it is shown. Everything
here uses pathsum's public functions only.
"""
