"""Remedies by the names that configurations use; the modules are imported when a run asks for them."""

import importlib
import inspect
from typing import Any

from vitq.errors import InputError
from vitq.train.callbacks import Callback

_HOME = {
    "dampening": "vitq.papers.nagel2022.dampening.Dampening",
    "freezing": "vitq.papers.nagel2022.freezing.IterativeFreezing",
    "tracking": "vitq.oscillation.OscillationTracking",
    "bn_reestimation": "vitq.papers.nagel2022.bn_reestimation.BatchNormReestimation",
    "trace": "vitq.trace.WeightTrace",
    "bin_regularization": "vitq.papers.vvtq2023.obr.BinRegularization",
    "confidence_guided_annealing": "vitq.papers.ofq2023.cga.ConfidenceGuidedAnnealing",
    "scale_trace": "vitq.papers.ofq2023.mechanism.ScaleTrace",
    "query_key_trace": "vitq.papers.ofq2023.mechanism.QueryKeyTrace",
}


def register_remedy(name: str, path: str) -> None:
    """Make the callback class at `path` ("package.module.Class") known to configurations as `name`."""
    _HOME[name] = path


def build_remedy(entry: dict[str, Any], variant: str | None = None) -> Callback:
    """Make the callback that a configuration entry {"name": ..., **arguments} describes.

    Args:
        entry: name and keyword arguments of the constructor.
        variant: given to constructors that take a `variant` and whose entry names none.

    Raises:
        InputError: unknown name or argument, with the list of valid ones, or a value that the remedy refuses.
    """
    if not isinstance(entry, dict) or "name" not in entry:
        raise InputError(f"remedies: {entry!r}; give mappings with a name and its arguments, e.g. {{name: tracking}}")
    name, arguments = entry["name"], {key: value for key, value in entry.items() if key != "name"}
    if name not in _HOME:
        raise InputError(f"remedies: unknown name {name!r}; valid names: {', '.join(sorted(_HOME))}")
    module, _, attribute = _HOME[name].rpartition(".")
    build = getattr(importlib.import_module(module), attribute)
    known = [parameter for parameter in inspect.signature(build).parameters]
    for key in arguments:
        if key not in known:
            raise InputError(f"remedies: {name} has no argument {key!r}; valid arguments: {', '.join(known)}")
    if variant is not None and "variant" in known:
        arguments.setdefault("variant", variant)
    try:
        return build(**arguments)
    except InputError as error:
        raise InputError(f"remedies: {name}: {error}") from None
    except (TypeError, ValueError) as error:
        raise InputError(f"remedies: {name} with {arguments!r}: {error}") from error
