"""A step: a named, versioned, pure function from columns to one column. All that a scientist adds is a step.

>>> @enrich(gives={"colour": "float32"})
... def nearby(ra, dec, *, scale=1.0):
...     return {"colour": alerts.values(ra) * scale}
>>> nearby.needs
('ra', 'dec')

The names of the positional parameters are the columns it needs: `SCHEMA`'s, the survey's own struct (`ztf`, `rubin`),
another step's name, or `cutout_science` and so on for the bytes of a cutout. Keyword-only parameters are its settings,
under `[steps.NAME]`. Row *i* of the result may depend on row *i* of the inputs alone, never on the batch it came in:
`raybroker.checks` proves it.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from raybroker import alerts as alerts
from raybroker.errors import SettingsError, did_you_mean

Kind = Literal["cut", "enrich", "score", "filter"]
Columns = Mapping[str, pa.Array]
SCIENCE_FOLDERS = ("cuts", "crossmatch", "features", "scores", "filters")


@dataclass(frozen=True)
class Step:
    """One column of the result, and how it is made.

    `call` gets the needed columns as `pyarrow.Array`s, in the order of `needs`, and `settings` as keywords. It returns
    an array (Arrow or NumPy; NaN becomes null), or a mapping of field name to array where `gives` is a struct.
    A cut and a filter give booleans: a cut that says null keeps the alert (only what is known to be bad goes),
    a filter that says null does not send it.
    """

    name: str
    kind: Kind
    call: Callable[..., Any]
    needs: tuple[str, ...]
    gives: pa.DataType
    version: int = 1
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    about: str = ""

    def run(self, columns: Columns, rows: int) -> pa.Array:
        """The column for these inputs, checked for type and length."""
        made = self.call(*(columns[name] for name in self.needs), **self.settings)
        column = to_column(made, self.gives)
        if len(column) != rows:
            raise ValueError(f"step '{self.name}' gave {len(column)} rows for {rows} alerts")
        return column

    def with_settings(self, given: Mapping[str, Any]) -> Step:
        """The same step with some settings replaced; an unknown one is an error."""
        known = dict(self.settings)
        for key in given:
            if key not in known:
                near = did_you_mean(key, known)
                raise SettingsError(f"steps.{self.name}.{key}: step '{self.name}' has no such setting{near}")
        return dataclasses.replace(self, settings=known | dict(given))

    def describe(self) -> dict[str, Any]:
        """What the plan stores of it."""
        return {
            "name": self.name,
            "kind": self.kind,
            "version": self.version,
            "needs": list(self.needs),
            "gives": str(self.gives),
            "settings": dict(self.settings),
        }


def to_column(made: Any, gives: pa.DataType) -> pa.Array:
    """An Arrow array of type `gives` from what a step returned; NaN becomes null, a wrong shape or type raises."""
    if isinstance(made, pa.ChunkedArray):
        made = made.combine_chunks()
    if isinstance(made, pa.Array):
        return made if made.type == gives else made.cast(gives)
    if pa.types.is_struct(gives) and isinstance(made, Mapping):
        names = [gives.field(i).name for i in range(gives.num_fields)]
        if set(made) != set(names):
            raise ValueError(f"fields {sorted(made)} were given, {sorted(names)} were declared")
        return pa.StructArray.from_arrays(
            [to_column(made[n], gives.field(n).type) for n in names], fields=list(gives)
        )
    return pa.array(np.asarray(made), from_pandas=True).cast(gives)


def cut(call: Callable[..., Any] | None = None, *, name: str = "", version: int = 1) -> Any:
    """Decorator: a cut, True where the alert is kept."""
    return _decorate("cut", pa.bool_(), call, name, version)


def filter(call: Callable[..., Any] | None = None, *, name: str = "", version: int = 1) -> Any:
    """Decorator: a filter, True where the alert goes to the topic of that name."""
    return _decorate("filter", pa.bool_(), call, name, version)


def enrich(
    gives: Mapping[str, Any] | pa.DataType | str, *, name: str = "", version: int = 1
) -> Callable[[Callable[..., Any]], Step]:
    """Decorator: a step that adds one column; `gives` maps its fields to Arrow types or their names."""
    return lambda function: from_function(function, "enrich", data_type(gives), name=name, version=version)


def data_type(gives: Mapping[str, Any] | pa.DataType | str) -> pa.DataType:
    """An Arrow type from a type, its name, or a mapping of struct fields to either."""
    if isinstance(gives, Mapping):
        return pa.struct([(field, data_type(kind)) for field, kind in gives.items()])
    return pa.type_for_alias(gives) if isinstance(gives, str) else gives


def _decorate(
    kind: Kind, gives: pa.DataType, call: Callable[..., Any] | None, name: str, version: int
) -> Any:
    def make(function: Callable[..., Any]) -> Step:
        return from_function(function, kind, gives, name=name, version=version)

    return make if call is None else make(call)


def from_function(
    function: Callable[..., Any], kind: Kind, gives: pa.DataType, *, name: str = "", version: int = 1
) -> Step:
    """A step from a function (or a callable object): its parameters say what it needs and what can be set."""
    parameters = inspect.signature(function).parameters.values()
    needs = tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
    settings = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    step_name = name or function.__name__
    unset = [key for key, value in settings.items() if value is inspect.Parameter.empty]
    if unset:
        raise SettingsError(f"step '{step_name}': setting '{unset[0]}' needs a default")
    about = inspect.getdoc(function) or ""
    return Step(step_name, kind, _Function.of(function), needs, gives, version, settings, about)


@dataclass(frozen=True)
class _Function:
    """A decorated function that pickles by reference, though its module's name now holds the Step."""

    module: str
    name: str
    function: Callable[..., Any] = dataclasses.field(compare=False)

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Callable[..., Any]:
        importable = inspect.isfunction(function) and "<locals>" not in function.__qualname__
        return cls(function.__module__, function.__qualname__, function) if importable else function

    def __call__(self, *columns: Any, **settings: Any) -> Any:
        return self.function(*columns, **settings)

    def __reduce__(self) -> Any:
        file = getattr(sys.modules.get(self.module), "__file__", None)
        return _load_function, (self.module, self.name, file)


def _load_function(module: str, name: str, file: str | None) -> Any:
    if module not in sys.modules and importlib.util.find_spec(module) is None and file:
        load_file(Path(file), module)
    found = getattr(importlib.import_module(module), name)
    return found.call if isinstance(found, Step) else found


def load_file(path: Path, module: str = "") -> Any:
    """Import a user's Python file, once per process."""
    module = module or f"raybroker_steps_{path.stem}"
    if module in sys.modules:
        return sys.modules[module]
    spec = importlib.util.spec_from_file_location(module, path)
    if spec is None or spec.loader is None:
        raise SettingsError(f"steps.paths: {path} is not a Python file")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[module] = loaded
    try:
        spec.loader.exec_module(loaded)
    except Exception as error:
        del sys.modules[module]
        raise SettingsError(f"steps.paths: {path} cannot be imported: {error!r}") from error
    return loaded


def discover(paths: Iterable[Path] = ()) -> dict[str, Step]:
    """Every step there is, by name: built in, in the entry-point group `raybroker.steps`, in the user's folders.

    Two steps of one name are an error, which names both files.
    """
    found: dict[str, Step] = {}
    origin: dict[str, str] = {}
    for module in [*_built_in(), *_plugins(), *_files(paths)]:
        for step in vars(module).values():
            if not isinstance(step, Step) or found.get(step.name) is step:
                continue
            if step.name in found:
                raise SettingsError(
                    f"step '{step.name}' is defined twice: in {origin[step.name]} and in {module.__name__}"
                )
            found[step.name], origin[step.name] = step, module.__name__
    return found


def _built_in() -> Iterable[Any]:
    for folder in SCIENCE_FOLDERS:
        package = importlib.import_module(f"raybroker.{folder}")
        for module in pkgutil.iter_modules(package.__path__):
            yield importlib.import_module(f"{package.__name__}.{module.name}")


def _plugins() -> Iterable[Any]:
    return [entry.load() for entry in entry_points(group="raybroker.steps")]


def _files(paths: Iterable[Path]) -> Iterable[Any]:
    for path in paths:
        files = sorted(path.glob("*.py")) if path.is_dir() else [path]
        yield from (load_file(file) for file in files if file.exists())
