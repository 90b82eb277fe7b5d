"""`vitq import`: a released checkpoint of OFQ or VVTQ as a file that `vitq evaluate` and `vitq.load` read."""

import argparse

from vitq.errors import InputError


def add(parser: argparse.ArgumentParser) -> None:
    """Give the parser of `vitq import` its options."""
    parser.add_argument("file", metavar="FILE", nargs="?", help="checkpoint of the authors")
    parser.add_argument("--from", dest="source", required=True, metavar="PAPER", help="ofq or vvtq")
    parser.add_argument("--model", metavar="NAME", help="network, such as timm:deit_tiny_distilled_patch16_224")
    parser.add_argument("--bits", type=int, metavar="N", help="bits of weights and activations, 2 to 8")
    parser.add_argument("--out", metavar="OUT", help=".safetensors file to write")
    parser.add_argument("--names", metavar="FILE", help="YAML file with other names of tensors, which are assumed")
    parser.add_argument("--list-names", action="store_true", help="print the names, as such a file, and stop")
    parser.set_defaults(function=run)


def run(given: argparse.Namespace) -> int:
    """Do what `vitq import` says."""
    from vitq import importing

    known = importing.names(given.source, given.names)
    if given.list_names:
        import yaml

        print("# vitq's name: the released file's (assumed); keep the lines that differ")
        print(yaml.safe_dump(known, sort_keys=False, width=200), end="")
        return 0
    for name in ("file", "model", "bits", "out"):
        if getattr(given, name) is None:
            raise InputError(f"give {'FILE' if name == 'file' else f'--{name}'} (see vitq import --help)")
    if not 2 <= given.bits <= 8:
        raise InputError(f"bits must lie between 2 and 8, got {given.bits}")
    found = importing.import_checkpoint(given.file, given.source, given.model, given.bits, given.out, given.names)
    print("\n".join([*found.lines(), f"written: {given.out}"]))
    return 0
