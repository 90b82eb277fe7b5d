"""The command `vitq`. Exit status: 0 done, 2 a wrong parameter or input, 3 data, a device or weights are missing."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from .errors import InputError, MissingError


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    top = _Parser(prog="vitq", description="Low-bit vision networks: run, train, evaluate and compare.",
                  epilog="VITQ_DEBUG=1 shows tracebacks.", allow_abbrev=False)  # fmt: skip
    commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=_Parser)

    def command(name: str, function: Any, help: str) -> argparse.ArgumentParser:
        found = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
        found.set_defaults(function=function)
        return found

    doctor = command("doctor", _doctor, "show versions, GPU, disk, data and weights, found or missing")
    doctor.add_argument("--json", action="store_true", help="as JSON")

    run = command("run", _run, "run a notebook with checked parameters")
    run.add_argument("notebook", metavar="NOTEBOOK")
    run.add_argument("-f", "--params-file", metavar="FILE", help="YAML file of parameters")
    run.add_argument("-p", "--param", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
                     help="one parameter; wins over the file")  # fmt: skip
    run.add_argument("-o", "--out", metavar="OUT", help="executed notebook (default: in place, or below runs/)")
    run.add_argument("-q", "--quiet", action="store_true", help="do not show what the cells print")

    train = command("train", _train, "quantize, train and evaluate a model from a YAML file")
    train.add_argument("--config", required=True, metavar="FILE", help="YAML file with the fields of RunConfig")
    train.add_argument("--out", required=True, metavar="DIR", help="run folder; the same one continues a run")
    train.add_argument("--limit-batches", type=int, metavar="N", help="so many batches only, to try the path")
    train.add_argument("--nproc", type=int, default=1, metavar="N", help="processes, one a GPU, through torchrun")

    evaluate = command("evaluate", _evaluate, "accuracy of a saved quantized model")
    evaluate.add_argument("file", metavar="FILE", help="a model.safetensors that vitq has saved")
    evaluate.add_argument("--data", required=True, metavar="NAME", help="digits, glyphs, imagenet")
    evaluate.add_argument("--path", metavar="DIR", help="folder of a data set that is not embedded")
    evaluate.add_argument("--split", default="test", metavar="SPLIT", help="default: test")
    evaluate.add_argument("--images", type=int, metavar="N", help="so many images (default: all)")
    evaluate.add_argument("--batch-size", type=int, default=256, metavar="N", help="default: 256")
    evaluate.add_argument("--device", default="cpu", metavar="DEVICE", help="cpu (default) or cuda")

    from . import collect, data_check, detect_cli, labels_cli, plan_cli, quantize_cli
    from .importing import cli as import_cli

    quantize_cli.add(command("quantize", None, "quantize a pretrained transformer after training (ERQ and baselines)"))
    detect_cli.add(command("detect", None, "boxes and masks of one image, drawn into it"))
    labels_cli.add(command("labels", None, "soft labels of stored crops: make, info, check"))
    data_check.add(command("data", None, "data sets: check"))
    plan_cli.add(command("plan", None, "full runs: published accuracy, cost, done or not"))
    collect.add(command("collect", None, "records of finished full runs, from their folders"))
    import_cli.add(command("import", None, "a checkpoint that authors have released, as a file that vitq reads"))

    compare = command("compare", _compare, "reported against reproduced, with verdicts")
    compare.add_argument("claims", nargs="*", metavar="CLAIM", help="such as nagel2022_t4 (default: list the claims)")
    compare.add_argument("--records", metavar="DIR", help="folder of records (default: the book's)")

    command("models", _models, "full-precision models by name, found or missing")
    return top


def _doctor(given: argparse.Namespace) -> int:
    from . import doctor

    return doctor.report(given.json)


def _run(given: argparse.Namespace) -> int:
    from . import launch

    params = {name: value for name, value in given.param}
    result = launch.run_notebook(given.notebook, given.out, given.params_file, params, from_text=True,
                                 show_output=not given.quiet)  # fmt: skip
    record = f", record {result.record}" if result.record else ""
    print(f"{result.out}: {result.seconds:.0f} s{record}")
    return 0


def _train(given: argparse.Namespace) -> int:
    limit = [] if given.limit_batches is None else ["--limit-batches", str(given.limit_batches)]
    arguments = ["--config", given.config, "--out", given.out, *limit]
    if given.nproc != 1:
        from . import launch

        if not Path(given.config).is_file():
            raise InputError(f"config: there is no file {given.config}")
        launch.torchrun(["-m", "vitq.train", *arguments], given.nproc)
        return 0
    import json

    from .train import RunConfig, run, stop

    changes = {} if given.limit_batches is None else {"limit_batches": given.limit_batches}
    config = RunConfig.from_yaml(given.config, **changes)
    with stop.listening():
        result = run(config, given.out)
    print(json.dumps(result["metrics"]))
    return 0


def _evaluate(given: argparse.Namespace) -> int:
    import json

    from .launch import preflight

    for name in ("images", "batch_size"):
        value = getattr(given, name)
        if value is not None and value < 1:
            raise InputError(f"{name.replace('_', '-')} must be at least 1, not {value}")
    if not Path(given.file).is_file():
        raise MissingError(f"there is no file {given.file}")
    preflight({"data_path": given.path, "device": given.device}, Path.cwd())
    from . import data, load
    from .train import evaluate

    model = load(given.file)
    cfg = getattr(model, "pretrained_cfg", None) or {}
    size = cfg.get("input_size", (3, None, None))[-1] if given.data in ("glyphs", "imagenet") else None
    dataset = data.load(given.data, given.split, size=size, images=given.images, path=given.path)
    dataset = dataset.for_model(model) if hasattr(dataset, "for_model") else dataset
    result = evaluate(model.to(given.device), dataset, batch_size=given.batch_size, device=given.device)
    print(json.dumps(result))
    return 0


def _compare(given: argparse.Namespace) -> int:
    from . import comparison, records

    claims = comparison.claims()
    if not given.claims:
        for claim, row in claims.iterrows():
            print(f"{claim}  {row['statement']} ({row['source']})")
        return 0
    if unknown := [claim for claim in given.claims if claim not in claims.index]:
        near = difflib.get_close_matches(unknown[0], claims.index, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"unknown claim {unknown[0]}{hint} The claims are: {', '.join(claims.index)}")
    for claim in given.claims:
        row = claims.loc[claim]
        reported = records.published(row["published"])
        measured = records.load_records(given.records, claim)
        shown = records.compare(measured[measured["scale"] != "smoke"], reported[reported["model"] == row["model"]],
                                baseline=row["baseline"])  # fmt: skip
        print(f"{claim}: {row['statement']} ({row['source']}, {row['model']})")
        columns = ["method", "setting", "bits", "metric", "reported", "measured", "n", "scale", "verdict"]
        shown["measured"] = [_plus_minus(mean, std) for mean, std in zip(shown["mean"], shown["std"], strict=True)]
        print(shown[columns].to_string(index=False, na_rep="", float_format=lambda value: f"{value:.6g}"))
    return 0


def _plus_minus(mean: float, std: float) -> str:
    return "" if mean != mean else f"{mean:.5g}" if std != std else f"{mean:.5g} +- {std:.2g}"


def _models(given: argparse.Namespace) -> int:
    from . import zoo

    for row in zoo.names().reset_index().to_dict("records"):
        print(f"{row['name']:<18}  {row['size']:>8}  {row['source']}: {row['found']}")
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    top = parser()
    here, words = top, [argument for argument in arguments if not argument.startswith("-")]
    while commands := _commands_of(here):  # `vitq labels make` has two levels
        if not words:
            break
        if words[0] not in commands:
            raise InputError(f"unknown command {words[0]}{_near(words[0], commands)}; there are: {', '.join(commands)}")
        here = commands[words.pop(0)]
    options = [option for action in here._actions for option in action.option_strings]
    for word in arguments:  # before argparse, which would first complain of the option that the misspelt one was
        if word.startswith("--") and word.partition("=")[0] not in options:
            raise InputError(f"unknown option {word}{_near(word, options)} (see {here.prog} --help)")
    given, unknown = top.parse_known_args(arguments)
    if unknown:
        raise InputError(f"unknown argument {unknown[0]} (see {here.prog} --help)")
    return given


def _commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return found[0] if found else {}


def _near(word: str, known: Any) -> str:
    near = difflib.get_close_matches(word.partition("=")[0], list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what a command line says and return the exit status; what goes wrong is one line on stderr."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        given = _parse(arguments)
        if given.command is None:
            parser().print_help()
            return 0
        return given.function(given)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, KeyboardInterrupt) as error:
        if os.environ.get("VITQ_DEBUG") == "1":
            raise
        message, code = _explained(error)
        print(f"vitq: {' '.join(message.split())}", file=sys.stderr)
        return code


def _explained(error: BaseException) -> tuple[str, int]:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if isinstance(error, MissingError | FileNotFoundError):
        return str(error), 3
    if isinstance(error, InputError | ValueError):
        return str(error), 2
    if isinstance(error, OSError):
        return f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 3
    if isinstance(error, ModuleNotFoundError):
        return f"{error}; pip install -c requirements.lock -e '.[book,test]'", 3
    if isinstance(code := getattr(error, "code", None), int):
        return str(error), code
    return f"{type(error).__name__}: {error} (VITQ_DEBUG=1 shows where)", 1


if __name__ == "__main__":
    sys.exit(main())
