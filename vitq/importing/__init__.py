"""Checkpoints that authors have released, as files that `vitq.load` reads.

One file a paper (`ofq`, `vvtq`) holds its table of names: what a tensor is called here, and what there. The names are
**assumed**: they follow the released code and the shapes of the specification, but no released checkpoint was at hand
to try them on. Where a file has others, a YAML file replaces entries of the table; nothing else has to be changed.

An import is strict. Every tensor of the file is either mapped or left out for a stated reason, after its value was
checked; a tensor that is absent, unknown or of another shape is refused by name. Pickled checkpoints are read with
`weights_only=True`: no code of theirs runs.
"""

import difflib
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from vitq.errors import InputError, MissingError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vitq.importing.table import Imported

__all__ = ["PAPERS", "import_checkpoint", "names", "paper"]

PAPERS = ("ofq", "vvtq")


def paper(source: str) -> ModuleType:
    """The module of a paper, a name in `PAPERS`."""
    from importlib import import_module

    if source not in PAPERS:
        raise InputError(f"from must be one of {', '.join(PAPERS)}, got {source!r}")
    return import_module(f"vitq.importing.{source}")


def names(source: str, file: str | Path | None = None) -> dict[str, str]:
    """The table of names of a paper, here to there, with the entries of a YAML file put in.

    Args:
        source: A name in `PAPERS`.
        file: YAML mapping of entries to replace; None for the table as it is.

    Raises:
        MissingError: There is no such file.
        InputError: It is no mapping of names to names, or has an entry that the table lacks.
    """
    table = dict(paper(source).NAMES)
    if file is None:
        return table
    import yaml

    try:
        given: Any = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise MissingError(f"names={str(file)!r}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"names={str(file)!r} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(given, dict) or not all(isinstance(value, str) and value for value in given.values()):
        raise InputError(f"names={str(file)!r}: give a mapping of names to names, as vitq import --list-names prints")
    for name in given:
        if name not in table:
            near = difflib.get_close_matches(str(name), table, n=1)
            raise InputError(f"names={str(file)!r}: {source} has no entry {name!r}"
                             f"{f'; did you mean {near[0]!r}?' if near else ''}")
    return table | given


def import_checkpoint(file: str | Path, source: str, model: str, bits: int, out: str | Path,
                      names_file: str | Path | None = None) -> "Imported":
    """Read a released checkpoint, and write it as a file for `vitq.load`.

    Args:
        file: The released file: a state dict, bare or under "state_dict" or "model", with "module." or without.
        source: Its paper, a name in `PAPERS`.
        model: The network, as in `vitq.zoo.load`, such as "timm:deit_tiny_distilled_patch16_224".
        bits: Bits of weights and activations.
        out: The .safetensors file to write.
        names_file: YAML file that replaces entries of the table of names.

    Returns:
        What was mapped and what was left out.

    Raises:
        MissingError: There is no such file, or `out` cannot be written.
        InputError: A wrong argument, or a tensor that does not fit; the first one is named.
    """
    from vitq import saving
    from vitq.importing import table

    if Path(out).suffix != ".safetensors":
        raise InputError(f"out={str(out)!r} must end in .safetensors")
    module, known = paper(source), names(source, names_file)
    state = table.read(file)
    head = state.get(table.renamed("head.weight", known))
    classes = None if head is None or head.dim() != 2 else len(head)
    network = target(source, model, bits, classes)
    found = table.fill(network, module.entries(network, bits, known), state, str(file))
    module.finish(network, found.left_out, known)
    saving.save(network, out, name=model, **({} if classes is None else {"num_classes": classes}))
    return found


def target(source: str, model: str, bits: int, classes: int | None = None) -> "nn.Module":
    """The quantized network that a checkpoint is to be loaded into, its scales sized by one random image."""
    import torch

    import vitq
    from vitq import convert_attention, zoo

    network = zoo.load(model, pretrained=False, num_classes=classes)
    if not any(convert_attention.modules(network)):
        raise InputError(f"model={model!r}: {source} released vision transformers; give a ViT, DeiT or Swin")
    quantized = vitq.quantize(network, paper(source).spec(network, bits))
    size = zoo.preprocessing(network)["size"]
    image: Tensor = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    return vitq.calibrate(quantized, [image])
