"""Detections in COCO's result format, and a file that they are added to image by image."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from torch import nn

from vitq.detection.model import Detections
from vitq.errors import InputError, MissingError


def as_results(found: Detections, image_id: int, categories: list[int]) -> list[dict[str, Any]]:
    """One entry a detection: image_id, category_id, bbox [x, y, width, height], score, segmentation (run lengths)."""
    boxes = found.boxes.double().cpu()
    boxes[:, 2:] -= boxes[:, :2]
    return [{"image_id": image_id, "category_id": categories[label], "bbox": box, "score": score, "segmentation": mask}
            for box, score, label, mask in zip(boxes.tolist(), found.scores.tolist(), found.labels.tolist(),
                                               found.encoded_masks(), strict=True)]


def fingerprint(model: nn.Module) -> str:
    """Hash of all weights, quantizers included, and of the configuration."""
    digest = hashlib.sha256(json.dumps(model.config.to_dict()).encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class ResultLog:
    """Results by image in a file of JSON lines, the first of which tells what they are results of.

    A line that a crash cut short is dropped, and its image is done again.

    Args:
        path: The file, or None to keep results in memory only.
        identity: Anything JSON; a file of another identity is refused.

    Raises:
        InputError: The file holds the results of another model or set.
        MissingError: It cannot be written.
    """

    def __init__(self, path: Path | None, identity: dict[str, Any]) -> None:
        self.path, self.results = path, {}
        if path is None:
            return
        header = json.dumps({"identity": identity}, sort_keys=True)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = path.read_text("utf-8").splitlines(keepends=True) if path.exists() else []
            whole = [line for line in lines if line.endswith("\n")]
            if whole and whole[0].strip() != header:
                raise InputError(f"{path} holds the results of another model, set or setting; give another folder or "
                                 "delete it")
            if len(whole) < len(lines) or not whole:
                whole = whole or [header + "\n"]
                path.with_suffix(".part").write_text("".join(whole), "utf-8")
                os.replace(path.with_suffix(".part"), path)
        except OSError as error:
            raise MissingError(f"{path}: {error.strerror or error}") from error
        for line in whole[1:]:
            entry = json.loads(line)
            self.results[entry["image_id"]] = entry["results"]

    def add(self, image_id: int, results: list[dict[str, Any]]) -> None:
        """Keep the results of an image."""
        self.results[image_id] = results
        if self.path is not None:
            try:
                with open(self.path, "a", encoding="utf-8") as file:
                    file.write(json.dumps({"image_id": image_id, "results": results}) + "\n")
            except OSError as error:
                raise MissingError(f"{self.path}: {error.strerror or error}; free space and run the same command "
                                   "again") from error
