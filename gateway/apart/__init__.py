"""Large JSON, read and written in a process of its own. See docs/decisions/0016.

| module | is |
|---|---|
| `wire` | how Python objects go over the socket between the two, large buffers beside them |
| `child` | the process: calls one function after the other |
| `processes` | the gateway's side: starts them, hands out the work, ends them |
"""
