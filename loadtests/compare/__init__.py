"""The gateway and ``tritonserver`` side by side under ``h2load``: see ``loadtests/README.md``.

Run it with ``python -m loadtests.compare``. Nothing is imported here, so that the small
processes of this package (the verifier, the bare loop) start quickly.
"""
