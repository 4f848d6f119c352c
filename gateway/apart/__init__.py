"""Large JSON, read and written in a process of its own. See docs/decisions/0016.

| module | is |
|---|---|
| `wire` | what goes over the socket between the two, large buffers beside the rest |
| `child` | the process: calls one function after the other |
| `process` | the gateway's side of one: starts it, calls it, ends it |
| `processes` | all of them: hands out the work |
"""
