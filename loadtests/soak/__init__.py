"""A soak: mixed traffic for a long time, while everything that can go wrong is made to.

    python -m loadtests.soak --minutes 20

Callers of every protocol check every answer (``callers``, ``sending``), trouble is made beside
(``trouble``: swaps, kills, broken versions, bursts; ``bad_input``), the gateway's memory, file
descriptors and threads are watched (``watch``, ``growth``), and at the end nothing may be lost and
nothing may have grown (``rest``, ``verdicts``). ``session`` is the order of it all.
"""
