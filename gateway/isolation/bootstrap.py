"""The first thing that runs in a child, or in a fork server: limits, ties to the gateway, where
packages are found.

It is run as a script, perhaps by an interpreter that is too old for the rest: no imports of
ours at the top, and no syntax of today.
"""

import importlib.util
import json
import os
import sys

REFUSED = 78  # EX_CONFIG: the last line of stderr is all there is to say
NEEDS = (3, 11)
PACKAGES = "numpy msgspec ml-dtypes"
PR_SET_PDEATHSIG = 1
SIGKILL = 9


def die_with(parent: int) -> None:
    """Ends when the gateway does, however that is."""
    if not sys.platform.startswith("linux"):
        return  # the lifeline alone
    import ctypes

    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it has ended before that was set
        os._exit(1)


def limit(memory: int, cpus: list) -> None:  # type: ignore[type-arg]
    """`memory` in bytes (0 = no bound), `cpus` as numbers of processors (none = all)."""
    if memory:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    if cpus and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)


def refuse(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
    os._exit(REFUSED)


class OurPackages:
    """Finds our packages where the gateway has them, without all that lies beside them there."""

    def __init__(self, packages: dict) -> None:  # type: ignore[type-arg]
        self._packages = packages

    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        folder = self._packages.get(name)
        if folder is None:
            return None
        return importlib.util.spec_from_file_location(
            name, os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
        )


def main() -> None:
    plan = json.loads(sys.argv[1])
    sys.argv[1:] = []
    die_with(plan["parent"])
    if "fork_server" not in plan:
        limit(plan["memory"], plan["cpus"])
    if sys.version_info < NEEDS:
        text = (
            "isolation.python: {} is Python {}.{}, but {needs} or newer is needed; type: "
            "python{needs} -m venv --clear {prefix}"
        )
        needs = ".".join(map(str, NEEDS))
        found = sys.version_info
        refuse(text.format(sys.executable, found[0], found[1], needs=needs, prefix=sys.prefix))
    del sys.path[0]  # this folder
    if plan["path"] is None:
        sys.meta_path.insert(0, OurPackages(plan["packages"]))  # type: ignore[arg-type]
    else:
        sys.path[:] = plan["path"]
    try:
        from gateway.isolation import child
    except ImportError as error:
        install = "{}; type: {} install {}"
        pip = os.path.join(sys.prefix, "bin", "pip")
        refuse(str(error) if plan["path"] else install.format(error, pip, PACKAGES))
    if "fork_server" in plan:
        from gateway.isolation import forkserver

        # Returns in each child.
        plan["channel"], plan["lifeline"] = forkserver.serve(plan["fork_server"], plan["modules"])
    child.main(plan["channel"], plan["lifeline"])


if __name__ == "__main__":
    main()
