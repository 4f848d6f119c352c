"""A soak: mixed traffic for a long time, while everything that can go wrong is made to.

    python -m loadtests.soak --minutes 20

Callers of every protocol check every answer (``callers``), trouble is made beside (``trouble``:
swaps, kills, broken versions, bad input, hung-up connections), the gateway's memory, file
descriptors and threads are watched (``watch``), and at the end nothing may be lost and nothing may
have grown (``verdicts``).
"""
