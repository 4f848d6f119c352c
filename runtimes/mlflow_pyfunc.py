"""Models of MLflow's python_function flavour: whatever Python its author wrote."""

from __future__ import annotations

import difflib
import threading
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, Final

from gateway.errors import (
    InferenceFailed,
    InvalidInput,
    ModelLoadError,
    SluiceError,
    printable,
    without_folders,
)
from gateway.model_settings import ModelSettings
from gateway.tensors import Array, Parameter
from runtimes.interface import Model
from runtimes.mlflow_code import CodeFolder
from runtimes.mlflow_document import Document
from runtimes.mlflow_library import import_pyfunc
from runtimes.mlflow_signature import Field, Signature, read_signature
from runtimes.mlflow_values import column, params, tensor, values_of

FLAVOR: Final = "python_function"
CONFIG: Final = "config."
FILES: Final = ("code", "data", "model_path", "python_model", "pickled_model")
"""Keys of a flavour that name files of the model."""
_INVALID: Final = "INVALID_PARAMETER_VALUE"
_path_lock: Final = threading.Lock()


def load_pyfunc(document: Document, settings: ModelSettings) -> Model:
    """The model of the document's python_function flavour. Raises `ModelLoadError`."""
    flavor = document.flavors[FLAVOR]
    check_files(document, flavor)
    config = parse_options(settings, flavor)
    signature = read_signature(document.signature, settings)
    pyfunc = import_pyfunc()
    code = None
    if flavor.get("code"):
        code = CodeFolder(document.inside(flavor["code"], "code"))
    try:
        # It changes sys.path, by replacing it.
        with _path_lock:
            loaded = pyfunc.load_model(str(document.root), model_config=config or None)
    except BaseException as error:
        if code is not None:
            code.close()
        if isinstance(error, (Exception, SystemExit)):
            raise ModelLoadError(_cause(error)) from error
        raise
    return PyFuncModel(loaded, signature, settings.instances or 1, code)


def parse_options(settings: ModelSettings, flavor: Mapping[str, Any]) -> dict[str, Any]:
    """What ``options`` put in the place of the model's own configuration.

    Raises `ModelLoadError` for anything else that is set and would do nothing.
    """
    if settings.device != "auto" or settings.gpus:
        key = "gpus" if settings.gpus else "device"
        raise ModelLoadError(
            f"'{key}' does nothing for python_function models, which choose their device "
            f"themselves; remove it (MLflow's own models take options: {{config.device: cuda}})"
        )
    known = flavor.get("config") or {}
    if not isinstance(known, dict):
        raise ModelLoadError("MLmodel: 'config' of python_function must hold keys and values")
    config: dict[str, Any] = {}
    for name, value in settings.options.items():
        if name == "flavor":
            continue
        if name == "dataframe":
            if type(value) is not bool:
                raise ModelLoadError("option 'dataframe' must be true or false")
            continue
        key = name.removeprefix(CONFIG)
        if key == name or key not in known:
            options = ["dataframe", "flavor", *(f"{CONFIG}{each}" for each in known)]
            close = difflib.get_close_matches(name, options, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise ModelLoadError(
                f"a python_function model has no option '{printable(name)}'{hint} "
                f"(known here: {', '.join(options)})"
            )
        config[key] = value
    return config


def check_files(document: Document, flavor: Mapping[str, Any]) -> None:
    """Raises `ModelLoadError` when a file that the flavour names is not in its folder."""
    for key in FILES:
        if flavor.get(key):
            document.inside(flavor[key], key)
    script = flavor.get("model_code_path")
    if isinstance(script, str) and script:  # as it was when it was saved; beside MLmodel now
        document.inside(PurePath(script).name, "model_code_path")
    artifacts = flavor.get("artifacts") or {}
    for name, each in artifacts.items() if isinstance(artifacts, dict) else ():
        if isinstance(each, dict) and each.get("path"):
            document.inside(each["path"], f"artifact {printable(name)}")


def code_of(document: Document) -> str:
    """What of the flavour runs as code, in words."""
    loader = document.flavors[FLAVOR].get("loader_module")
    return f"the python_function flavour of MLmodel ({printable(loader)})"


class PyFuncModel(Model):
    """`loaded` is mlflow's; `infer` runs its `predict`."""

    platform = "mlflow_python_function"

    def __init__(
        self, loaded: Any, signature: Signature, instances: int, code: CodeFolder | None = None
    ) -> None:
        self.inputs = tuple(field.spec for field in signature.inputs)
        self.outputs = tuple(field.spec for field in signature.outputs)
        self.instances = instances
        self.batch_dimension = all(
            spec.shape[:1] == (-1,) for spec in (*self.inputs, *self.outputs)
        )
        self.parameters_matter = bool(signature.params)
        self._loaded = loaded
        self._signature = signature
        self._code = code

    def infer(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        parameters: Mapping[str, Parameter],
    ) -> Mapping[str, Array]:
        """As the interface says."""
        loaded, signature = self._loaded, self._signature
        if loaded is None:
            raise InferenceFailed("the model is closed")
        data = self._data(inputs)
        try:
            if signature.params:
                result = loaded.predict(data, params=params(signature.params, parameters))
            else:
                result = loaded.predict(data)
        except SluiceError:
            raise
        except Exception as error:
            code = getattr(error, "error_code", None)
            # Said by the check against the signature, before the model ran.
            kind = InvalidInput if code == _INVALID else InferenceFailed
            raise kind(_cause(error)) from error
        # All of them, wanted or not: by position all are needed to know which is which.
        return values_of(signature.outputs, result)

    def _data(self, inputs: Mapping[str, Array]) -> Any:
        """What the model takes: a DataFrame, an array, or arrays by name."""
        fields = self._signature.inputs
        for field in fields:
            array = inputs.get(field.name)
            if array is not None and not _fits(field, array):
                raise InvalidInput(
                    f"input '{field.name}' takes shape {list(field.shape)} (-1 is any size), but "
                    f"{list(array.shape)} was sent"
                )
        given = [field for field in fields if field.name in inputs]
        if self._signature.columns:
            return _frame(given, inputs)
        if len(fields) == 1 and (fields[0].own is None or not self._named()):
            return tensor(fields[0], inputs[fields[0].name])
        return {str(f.own): tensor(f, inputs[f.name]) for f in given}

    def _named(self) -> bool:
        """Whether the model itself names its input."""
        metadata = getattr(self._loaded, "metadata", None)
        return metadata is not None and metadata.get_input_schema() is not None

    def close(self) -> None:
        """Drops the model, and its modules with the last version that uses them."""
        self._loaded = None
        code, self._code = self._code, None
        if code is not None:
            code.close()


def _fits(field: Field, array: Array) -> bool:
    return array.ndim == len(field.shape) and all(
        want in (-1, got) for want, got in zip(field.shape, array.shape, strict=True)
    )


def _frame(fields: Sequence[Field], inputs: Mapping[str, Array]) -> Any:
    import pandas

    rows = {field.name: len(inputs[field.name]) for field in fields}
    if len(set(rows.values())) > 1:
        raise InvalidInput(
            "all inputs need the same number of rows, but "
            + ", ".join(f"'{name}' has {count}" for name, count in rows.items())
        )
    frame = pandas.DataFrame({n: column(f, inputs[f.name]) for n, f in enumerate(fields)})
    if all(field.own is not None for field in fields):
        frame.columns = [field.own for field in fields]
    return frame


def _cause(error: BaseException) -> str:
    """One line about what the library or the model said, without our folders."""
    if isinstance(error, ModuleNotFoundError):
        return (
            f"the model needs the Python module '{printable(error.name)}', which is not installed; "
            "type: pip install -r requirements.txt (the one beside MLmodel)"
        )
    text = " ".join(str(error).split())
    # MLflow puts all the data into what it says of it.
    _, found, after = text.rpartition(" Error: ")
    text = without_folders(after if found else text)
    return printable(f"{type(error).__name__}: {text}" if text else type(error).__name__, 400)
