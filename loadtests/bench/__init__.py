"""The engine of ``sluice bench``: schedules, clients, what they measured.

``plan`` says what is to be sent, ``point.run_point`` sends it and measures, ``results`` is what came
of it. The command is ``gateway/cli/bench.py``; other load tests call ``run_point`` themselves.
"""
