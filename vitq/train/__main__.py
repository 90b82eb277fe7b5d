"""`python -m vitq.train --config run.yml --out DIR`: one run from a YAML file, alone or under torchrun."""

import argparse
import json
import os
import sys

from vitq.errors import InputError, MissingError


def main(arguments: list[str] | None = None) -> int:
    """Run and print the metrics as one JSON line; exit status 0, 2 for wrong input, 3 for what is missing.

    After SIGTERM or SIGUSR1 it is 143, and the same command goes on from the step that was under way.
    """
    parser = argparse.ArgumentParser(prog="python -m vitq.train", description=__doc__)
    parser.add_argument("--config", required=True, help="YAML file with the fields of vitq.train.RunConfig")
    parser.add_argument("--out", required=True, help="folder of the run; the same folder again goes on with it")
    parser.add_argument("--limit-batches", type=int, help="try the path: so many batches of training and evaluation")
    given = parser.parse_args(arguments)
    try:
        from vitq.train.run_config import RunConfig
        changes = {} if given.limit_batches is None else {"limit_batches": given.limit_batches}
        config = RunConfig.from_yaml(given.config, **changes)
        from vitq.train import stop
        from vitq.train.runs import run
        with stop.listening():
            result = run(config, given.out)
    except (InputError, MissingError) as error:
        _say(f"error: {error}")
        return 2 if isinstance(error, InputError) else 3
    except OSError as error:  # a full disk, most of all; checkpoints say so themselves
        _say(f"error: {error.filename or given.out}: {error.strerror or error}; mend it and run the same command again")
        return 3
    except stop.Stopped as error:
        _say(str(error))
        return error.code
    if int(os.environ.get("RANK", 0)) == 0:
        print(json.dumps(result["metrics"]))
    return 0


def _say(line: str) -> None:
    if int(os.environ.get("RANK", 0)) == 0:  # under torchrun one rank speaks for all
        print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
