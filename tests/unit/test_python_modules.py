"""Each model's modules are its own, come without traces and go without leaks."""

from __future__ import annotations

import gc
import importlib
import sys
import threading
import types
import weakref
from pathlib import Path

import pytest

from gateway.errors import ModelLoadError
from gateway.registries.files import fingerprint
from runtimes.python.modules import PREFIX, ModelModules, import_file
from tests.support.gateway import wait_until


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return folder / "model.py"


def load(file: Path, **bound: types.ModuleType) -> tuple[ModelModules, types.ModuleType]:
    return import_file(file, [file.parent], bound)


def test_helpers_of_the_same_name_do_not_mix(tmp_path: Path) -> None:
    code = (
        "import helper\nfrom helper import WHO\n"
        "def who():\n    import helper as h\n    return h.WHO\n"
    )
    one = load(write(tmp_path / "one", model=code, helper="WHO = 'one'"))
    two = load(write(tmp_path / "two", model=code, helper="WHO = 'two'"))
    try:
        for (_, module), name in ((one, "one"), (two, "two")):
            assert module.WHO == module.helper.WHO == module.who() == name
            found: list[str] = []
            thread = threading.Thread(target=lambda m=module, f=found: f.append(m.who()))
            thread.start()
            thread.join()
            assert found == [name], "also in a thread of the model's own"
        assert "helper" not in sys.modules
    finally:
        one[0].close()
        two[0].close()


def test_helpers_import_helpers_packages_and_libraries(tmp_path: Path) -> None:
    file = write(
        tmp_path / "m",
        model=(
            "import pack.inner\nimport pack.inner as direct\nfrom pack import other, inner\n"
            "from pack.deep import *\nfrom . import helper as relative\nimport json, os.path\n"
            "total = pack.inner.VALUE + other.VALUE + direct.VALUE + DEEP + relative.VALUE\n"
        ),
        helper="from pack.inner import VALUE\nimport collections.abc\n",
        pack__inner="VALUE = 1\n",
        pack__other="from . import inner\nfrom .inner import VALUE as V\nVALUE = V + 10\n",
        pack__deep="__all__ = ['DEEP']\nfrom helper import VALUE\nDEEP = VALUE * 100\n",
    )
    (file.parent / "pack" / "__init__.py").touch()
    modules, module = load(file)
    try:
        assert module.total == 1 + 11 + 1 + 100 + 1
        assert module.json is sys.modules["json"]
    finally:
        modules.close()


def test_a_helper_goes_before_a_library_of_its_name_for_this_model_alone(tmp_path: Path) -> None:
    modules, module = load(write(tmp_path / "m", model="import json", json="mine = True"))
    try:
        assert module.json.mine
        assert not hasattr(sys.modules["json"], "mine")
    finally:
        modules.close()


def test_an_empty_folder_hides_no_library(tmp_path: Path) -> None:
    (tmp_path / "m" / "numpy").mkdir(parents=True)
    modules, module = load(write(tmp_path / "m", model="import numpy"))
    try:
        assert module.numpy.zeros(1).size == 1
    finally:
        modules.close()


def test_nothing_is_written_into_the_folder(tmp_path: Path) -> None:
    file = write(tmp_path / "m", model="import helper", helper="")
    before = sorted(path.name for path in file.parent.rglob("*"))
    load(file)[0].close()
    assert sorted(path.name for path in file.parent.rglob("*")) == before


def test_reloads_leave_nothing_behind(tmp_path: Path) -> None:
    file = write(
        tmp_path / "m",
        model="import helper\nclass Big:\n    data = bytes(9)\n    def f(self): return helper\n",
        helper="data = bytearray(10**6)",
    )
    seen = []
    finders = len(sys.meta_path)
    for _ in range(20):
        modules, module = load(file)
        seen += [weakref.ref(module), weakref.ref(module.helper), weakref.ref(module.Big)]
        assert module.Big().f() is module.helper
        modules.close()
        del modules, module

    def gone() -> bool:
        gc.collect()
        return all(ref() is None for ref in seen)

    wait_until(gone, "all of it to be gone")
    assert not [name for name in sys.modules if name.startswith(PREFIX)]
    assert len(sys.meta_path) == finders


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    for value in (1, 2):  # within the same second, with the same size
        modules, module = load(
            write(tmp_path / "m", model="from helper import V", helper=f"V = {value}")
        )
        assert value == module.V
        modules.close()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("x = 1\ndef broken(:\n", "model.py, line 2: SyntaxError: "),
        ("\n\nraise ValueError('no\\nway')", "model.py, line 3: ValueError: no way"),
        ("import helper", "helper.py, line 2: ZeroDivisionError: division by zero"),
        ("import nowhere_to_be_found", "No module named 'nowhere_to_be_found'; install it"),
        ("open('/etc/secret/folder/file.txt')", "FileNotFoundError: [Errno 2] No such file"),
        ("import sys; sys.exit(3)", "ended the process when imported: 3"),
    ],
)
def test_what_went_wrong_is_one_line_with_its_place(tmp_path: Path, code: str, said: str) -> None:
    file = write(tmp_path / "m", model=code, helper="\n1 / 0")
    with pytest.raises(ModelLoadError) as caught:
        load(file)
    text = str(caught.value)
    assert said in text
    assert "\n" not in text
    assert str(tmp_path) not in text
    assert "/etc/secret" not in text
    assert not [name for name in sys.modules if name.startswith(PREFIX)]


def test_bound_modules_are_each_models_own_and_lent_to_installed_packages(tmp_path: Path) -> None:
    first, second = types.ModuleType("bound_thing"), types.ModuleType("bound_thing")
    file = write(tmp_path / "m", model="def get():\n    import bound_thing\n    return bound_thing")
    one, module_one = load(file, bound_thing=first)
    two, module_two = load(file, bound_thing=second)
    assert module_one.get() is first
    assert module_two.get() is second
    assert sys.modules["bound_thing"] is second
    two.close()
    assert sys.modules["bound_thing"] is first
    two.close()
    assert module_one.get() is first
    one.close()
    assert "bound_thing" not in sys.modules


def test_somebody_elses_module_stays_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = types.ModuleType("bound_thing")
    monkeypatch.setitem(sys.modules, "bound_thing", theirs)
    modules, module = load(
        write(tmp_path / "m", model="import bound_thing"), bound_thing=types.ModuleType("ours")
    )
    assert module.bound_thing is not theirs
    assert sys.modules["bound_thing"] is theirs
    modules.close()
    assert sys.modules["bound_thing"] is theirs


def test_compiled_files_of_others_are_no_change_of_the_model(tmp_path: Path) -> None:
    file = write(tmp_path / "m", model="x = 1")
    before = fingerprint(str(file.parent))
    (file.parent / "__pycache__").mkdir()
    (file.parent / "__pycache__" / "model.cpython-311.pyc").write_bytes(b"x")
    assert fingerprint(str(file.parent)) == before
    (file.parent / "helper.py").write_text("")
    assert fingerprint(str(file.parent)) != before


def test_importlib_of_a_model_finds_its_modules(tmp_path: Path) -> None:
    code = (
        "import importlib, importlib.util\nfrom importlib import import_module\n"
        "import importlib.metadata as metadata\n"
        "name = importlib.import_module('helper').WHO + import_module('.helper', __package__).WHO\n"
        "inner = importlib.import_module('pack.inner').VALUE\n"
        "json = importlib.import_module('json')\nfound = importlib.util.find_spec('json')\n"
    )
    pack = {"pack__inner": "VALUE = 7", "pack____init__": ""}
    one = load(write(tmp_path / "one", model=code, helper="WHO = 'one'", **pack))
    two = load(write(tmp_path / "two", model=code, helper="WHO = 'two'", **pack))
    try:
        assert (one[1].name, two[1].name) == ("oneone", "twotwo")
        assert one[1].inner == 7 and one[1].json is sys.modules["json"] and one[1].found
        assert one[1].metadata is sys.modules["importlib.metadata"]
        assert "helper" not in sys.modules and "pack" not in sys.modules
    finally:
        one[0].close()
        two[0].close()


PICKLES = """
import io, pickle
import plain_helper
from plain_helper import Thing
BYTES = pickle.dumps(Thing(3))
def there_and_back():
    thing = pickle.loads(b"cplain_helper\\nThing\\n(I5\\ntR.")
    return isinstance(thing, Thing) and thing.value, pickle.loads(BYTES).value
"""


def test_in_a_process_of_its_own_a_model_unpickles_its_classes(tmp_path: Path) -> None:
    helper = (
        "import json\nclass Thing:\n    def __init__(self, value):\n        self.value = value\n"
    )
    file = write(tmp_path / "m", model=PICKLES, plain_helper=helper, json="mine = True")
    (tmp_path / "m" / "plain_folder").mkdir()
    first = import_file(file, [file.parent], {}, isolated=True)
    second = import_file(file, [file.parent], {}, isolated=True)  # another instance
    try:
        for _, module in (first, second):
            assert module.there_and_back() == (5, 3)
            assert module.plain_helper is sys.modules["plain_helper"]
        assert sys.modules["plain_helper"].json.mine, "what a library is called stays the model's"
        assert not hasattr(sys.modules["json"], "mine")
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("plain_folder")
        assert fingerprint(str(file.parent)) and not list(file.parent.rglob("*.pyc"))
    finally:
        first[0].close()
        second[0].close()
    assert "plain_helper" not in sys.modules
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("plain_helper")


def test_a_file_alone_imports_nothing_beside_it(tmp_path: Path) -> None:
    for code in (
        "import helper",
        "from . import helper",
        "import importlib as i\ni.import_module('helper')",
    ):
        file = write(tmp_path / "m", model=f"import json\n{code}\n", helper="x = 1", json="x = 1")
        with pytest.raises(ModelLoadError, match=r"^model\.py cannot be imported: model\.py, line"):
            import_file(file, [], {})
    file = write(tmp_path / "m", model="import json\n")
    modules, module = import_file(file, [], {})
    try:
        assert module.json is sys.modules["json"]
    finally:
        modules.close()
