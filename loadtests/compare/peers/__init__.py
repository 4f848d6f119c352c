"""The other servers: one folder each.

A folder holds ``peer.py`` (its `PEER`), ``requirements.txt`` (the pins of its environment),
``NOTES.md`` (what its documentation calls the best configuration, what was chosen and why, what
it cannot do), and what it needs to serve the models (``start.sh``, ``serve.py``, ...).
"""
