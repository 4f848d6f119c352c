"""The engine of ``sluice bench``: schedules, clients, what they measured.

``plan`` says what is to be sent, ``point.run_point`` sends it and measures, ``results`` is what
came of it. Inside: ``processes`` start ``worker``, which sends through ``clients`` at the times
that ``arrivals`` says; ``recorder`` counts what it reports, ``warmup`` says from when, ``summary``
makes a `Point` of it, ``confidence`` its intervals, ``health`` what is to be said of the client,
and ``watch`` reads what the server says. The command is ``gateway/cli/bench.py``; other load tests
call ``run_point`` themselves.
"""
