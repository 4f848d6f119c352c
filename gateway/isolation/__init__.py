"""Models in child processes: `isolation: process`. See docs/isolation.md.

| side | modules |
|---|---|
| both | `arena`, `memory`, `channel`, `messages`: shared memory and the way to the other side |
| gateway | `nursery` starts children, `dispatcher` sends calls to one and outlives its crashes |
| gateway | `launch` starts programs; `forks` keeps fork servers, `forking` is the way to one |
| gateway | `watch` ends children that hang, `guard` what is left when the gateway is killed |
| fork server | `forkserver`: has imported what children need, and forks them |
| child | `bootstrap`, `child`, `serving`, `home`: the runtime's model and its own dispatcher |
"""
