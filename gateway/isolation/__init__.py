"""Models in child processes: `isolation: process`. See docs/isolation.md.

| side | modules |
|---|---|
| both | `arena`, `memory`, `channel`, `messages`: shared memory and the way to the other side |
| gateway | `nursery` starts children, `dispatcher` sends calls to one and outlives its crashes |
| gateway | `watch` ends children that hang, `guard` what is left when the gateway is killed |
| child | `bootstrap`, `child`, `serving`, `home`: the runtime's model and its own dispatcher |
"""
