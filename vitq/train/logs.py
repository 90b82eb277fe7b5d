"""What a run says while it runs: JSONL metrics in its folder, and a bar or a sparse line on the terminal."""

import json
import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

from torch import Tensor

from vitq.errors import MissingError

LINE_SECONDS = 30.0


class MetricsLog:
    """History of a run, in memory and in `metrics.jsonl`.

    Args:
        path: file to append to; None to keep the history in memory only.
        step: a run that resumes at this step drops later lines, which it is about to write again.
        evaluation_due: it is about to evaluate at this step again, too.
        tensorboard: write the numbers for TensorBoard too, into the folder `tensorboard` beside the file.

    Raises:
        MissingError: TensorBoard is not installed.
    """

    def __init__(self, path: Path | None, step: int = 0, evaluation_due: bool = False, tensorboard: bool = False):
        self.path, self.history = path, []
        self.board = _board(path.parent / "tensorboard", step) if tensorboard and path is not None else None
        if path is not None:
            self.history = [line for line in _read(path) if line["step"] <= step] if step else []
            if evaluation_due:
                again = ("evaluation", step)
                self.history = [line for line in self.history if (line.get("event"), line["step"]) != again]
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_name(f".tmp-{path.name}")
            aside.write_text("".join(json.dumps(line) + "\n" for line in self.history))
            aside.replace(path)

    def write(self, **values: Any) -> None:
        """Append one line; tensors become numbers."""
        line = {name: value.item() if isinstance(value, Tensor) else value for name, value in values.items()}
        self.history.append(line)
        if self.path is not None:
            with open(self.path, "a") as file:
                file.write(json.dumps(line) + "\n")
        if self.board is not None:
            for name in sorted(line.keys() - {"event", "step"}):
                self.board.add_scalar(f"{line['event']}/{name}", line[name], line["step"])
            self.board.flush()


class Progress:
    """A tqdm bar if stderr is a terminal; otherwise a line at most every 30 s, and none inside a
    notebook or a worker process.

    Args:
        total: optimizer steps of the run.
        step: steps already done.
        active: False on all ranks but the first.
    """

    def __init__(self, total: int, step: int = 0, active: bool = True):
        self.total, self.first, self.note = total, step, ""
        self.began = self.told = time.monotonic()
        self.bar, self.lines = None, False
        if active and sys.stderr.isatty():
            from tqdm import tqdm
            self.bar = tqdm(total=total, initial=step, unit="step", leave=False)
        elif active:
            in_notebook = type(sys.stderr).__module__.startswith("ipykernel")
            self.lines = not in_notebook and multiprocessing.parent_process() is None

    def update(self, step: int) -> None:
        """One step more."""
        if self.bar is not None:
            self.bar.update(step - self.bar.n)
        elif self.lines and time.monotonic() - self.told > LINE_SECONDS:
            self.told = time.monotonic()
            left = (self.told - self.began) / max(1, step - self.first) * (self.total - step)
            print(f"step {step}/{self.total}{self.note}, about {left / 60:.1f} min left", file=sys.stderr, flush=True)

    def describe(self, loss: float) -> None:
        """Show the loss with the next line."""
        self.note = f", loss {loss:.4f}"
        if self.bar is not None:
            self.bar.set_postfix_str(self.note[2:], refresh=False)

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()


def _board(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingError("train.tensorboard=True: the package tensorboard is not installed; pip install tensorboard, "
                           "or leave it out: metrics.jsonl has the same numbers") from None
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)


def _read(path: Path) -> list[dict[str, Any]]:
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:  # a line cut short by a kill
            break
    return lines
