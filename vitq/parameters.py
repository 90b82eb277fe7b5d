"""Notebook parameters: what the cell tagged ``parameters`` declares, and values checked against it.

The cell holds one `name: type = default  # help` a line. Papermill passes a misspelt name over in silence and turns
values into whatever YAML makes of them; here a name must exist and a value must have the declared type.
"""

from __future__ import annotations

import ast
import difflib
import io
import math
import re
import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import InputError

SCALES = ("smoke", "small", "full")
_FLOAT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_INT = re.compile(r"[+-]?(0|[1-9]\d*)")
_TYPES = {"int": int, "float": float, "bool": bool, "str": str, "list": list, "tuple": list, "dict": dict}


@dataclass(frozen=True)
class Parameter:
    """One line of the parameters cell; `default` is None with `literal` False where it is not a plain value."""

    name: str
    kind: str
    default: Any
    literal: bool
    help: str

    def __str__(self) -> str:
        return f"{self.name} ({self.kind}, default {self.default!r}{': ' + self.help if self.help else ''})"


def declared(source: str) -> dict[str, Parameter]:
    """Parameters that the source of a parameters cell declares, in order.

    Raises:
        InputError: the cell is not valid Python.
    """
    try:
        statements = ast.parse(source).body
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (SyntaxError, tokenize.TokenError) as error:
        raise InputError(f"the parameters cell is not valid Python: {error}") from None
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    found = {}
    for statement in statements:
        if isinstance(statement, ast.AnnAssign) and statement.value is not None:
            target, kind = statement.target, ast.unparse(statement.annotation).strip("'\"")
        elif isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            target, kind = statement.targets[0], ""
        else:
            continue
        if not isinstance(target, ast.Name):
            continue
        try:
            default, literal = ast.literal_eval(statement.value), True
        except ValueError:
            default, literal = None, False
        kind = kind or (type(default).__name__ if literal and default is not None else "Any")
        found[target.id] = Parameter(target.id, kind, default, literal, comments.get(statement.end_lineno or 0, ""))
    return found


def tagged(notebook: dict, tag: str) -> list[dict]:
    """Cells of a notebook (parsed JSON) that carry a tag."""
    return [cell for cell in notebook.get("cells", []) if tag in cell.get("metadata", {}).get("tags", [])]


def source(cell: dict) -> str:
    """Source of a cell, which a notebook file may store as one string or as a list of lines."""
    text = cell.get("source", "")
    return text if isinstance(text, str) else "".join(text)


def of_notebook(notebook: dict, name: str = "notebook") -> dict[str, Parameter]:
    """Parameters that a notebook declares; none if it has no parameters cell.

    Raises:
        InputError: there is more than one parameters cell.
    """
    cells = tagged(notebook, "parameters")
    if len(cells) > 1:
        raise InputError(f"{name} has {len(cells)} cells tagged 'parameters'; keep one")
    return declared(source(cells[0])) if cells else {}


def resolved(notebook: dict) -> dict[str, Any]:
    """Values that a notebook ran with: its defaults, overridden by the cell that papermill injected."""
    values = {name: parameter.default for name, parameter in of_notebook(notebook).items()}
    for cell in tagged(notebook, "injected-parameters"):
        values.update({name: parameter.default for name, parameter in declared(source(cell)).items()})
    return values


def read_file(path: str | Path) -> dict[str, Any]:
    """Parameters from a YAML file.

    Raises:
        InputError: the file is absent, not YAML, or not a mapping of names to values.
    """
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"parameter file {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"parameter file {path} is not valid YAML: {' '.join(str(error).split())}") from None
    if values is not None and not (isinstance(values, dict) and all(isinstance(key, str) for key in values)):
        raise InputError(f"parameter file {path} must hold `name: value` lines")
    return values or {}


def check(values: dict[str, Any], valid: dict[str, Parameter], *, from_text: bool = False) -> dict[str, Any]:
    """Check values against the declared parameters and give them the declared types.

    Args:
        values: values by parameter name.
        valid: the declared parameters.
        from_text: the values are strings from a command line, to be read as the declared types. Otherwise a value
            must already have its type; only `1e-3`, which YAML 1.1 reads as a string, still counts as a float.

    Raises:
        InputError: a name is not declared (the message lists those that are) or a value has the wrong type.
    """
    checked = {}
    for name, value in values.items():
        if name not in valid:
            near = difflib.get_close_matches(name, valid, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            listing = "; ".join(str(parameter) for parameter in valid.values()) or "none"
            raise InputError(f"unknown parameter {name}{hint}; valid parameters: {listing}")
        checked[name] = _typed(valid[name], value, from_text)
        if name == "scale" and checked[name] not in SCALES:
            raise InputError(f"parameter scale must be one of {', '.join(SCALES)}, not {value!r}")
    return checked


def _typed(parameter: Parameter, value: Any, from_text: bool) -> Any:
    for kind in _alternatives(parameter.kind):
        accepted, result = _as(kind, value, from_text)
        if accepted:
            return result
    problem = f"parameter {parameter.name} must be {parameter.kind}, not {value!r}"
    if isinstance(value, str) and "int" in parameter.kind and re.fullmatch(r"0\d+", value.strip()):
        problem += f"; write {int(value)} without the leading zero"
    raise InputError(f"{problem}{' (' + parameter.help + ')' if parameter.help else ''}")


def _alternatives(kind: str) -> list[str]:
    """`int | None` and `Optional[int]` as ["int", "None"]; str comes last, since every text is one."""
    optional = re.fullmatch(r"(?:typing\.)?Optional\[(.*)\]", kind)
    kinds = [optional[1], "None"] if optional else [part.strip() for part in re.split(r"\|(?![^\[]*\])", kind)]
    return sorted(kinds, key=lambda kind: kind == "str")


def _as(kind: str, value: Any, from_text: bool) -> tuple[bool, Any]:
    """Whether a value can stand for one type without guessing, and the value in that type."""
    outer, _, inner = kind.partition("[")
    if outer == "None":
        return value is None or (from_text and value in ("None", "null")), None
    if outer == "str":
        return isinstance(value, str), value
    if isinstance(value, str) and (from_text or outer == "float"):
        return _from_text(outer, inner.rstrip("]"), value.strip(), from_text)
    if outer not in _TYPES:
        return True, value
    if outer in ("int", "float"):
        types = (int, float) if outer == "float" else int
        good = isinstance(value, types) and not isinstance(value, bool) and math.isfinite(value)
        return good, _TYPES[outer](value) if good else value
    good = isinstance(value, (list, tuple) if outer in ("list", "tuple") else _TYPES[outer])
    return _items(inner.rstrip("]"), value) if good and outer in ("list", "tuple") else (good, value)


def _items(kind: str, values: Any) -> tuple[bool, Any]:
    kinds = _alternatives(kind.split(",")[0]) if kind else ["Any"]
    results = []
    for value in values:
        fits = [result for accepted, result in (_as(kind, value, False) for kind in kinds) if accepted]
        if not fits:
            return False, values
        results.append(fits[0])
    return True, results


def _from_text(outer: str, inner: str, text: str, from_text: bool) -> tuple[bool, Any]:
    if outer == "int":
        return bool(_INT.fullmatch(text)), int(text) if _INT.fullmatch(text) else text
    if outer == "float":
        good = bool(_FLOAT.fullmatch(text)) and (from_text or "e" in text.lower())
        return good, float(text) if good else text
    if outer == "bool":
        return text.lower() in ("true", "false"), text.lower() == "true"
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return False, text
    if isinstance(value, str):
        return outer not in _TYPES, value
    return _as(f"{outer}[{inner}]" if inner else outer, value, False)
