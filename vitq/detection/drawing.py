"""Detections drawn into their image."""

import colorsys

import numpy as np

from vitq.detection.model import Detections
from vitq.detection.packages import need

OPACITY = 0.45
GOLDEN = 0.618  # hues of neighbouring classes far apart


def colour(label: int) -> tuple[int, int, int]:
    """Blue, green, red of a class."""
    red, green, blue = colorsys.hsv_to_rgb(label * GOLDEN % 1, 0.8, 0.95)
    return int(255 * blue), int(255 * green), int(255 * red)


def draw(image: np.ndarray, found: Detections, classes: list[str], threshold: float = 0.3) -> np.ndarray:
    """A copy of the image with mask, box, class and score of every detection from ``threshold`` on, best on top.

    Args:
        image: Blue, green, red, uint8 (H, W, 3).
        found: Of this image.
        classes: Names.
        threshold: Of the score.
    """
    cv2 = need("cv2")
    image = image.copy()
    size = max(0.35, min(image.shape[:2]) / 1200)
    shown = [row for row in range(len(found)) if found.scores[row] >= threshold][::-1]
    masks = found.masks().cpu().numpy()
    for row in shown:
        paint, mask = np.array(colour(int(found.labels[row]))), masks[row]
        image[mask] = ((1 - OPACITY) * image[mask] + OPACITY * paint).round().astype(np.uint8)
    for row in shown:
        left, top, right, bottom = (int(v) for v in found.boxes[row].round())
        paint = colour(int(found.labels[row]))
        cv2.rectangle(image, (left, top), (right, bottom), paint, max(1, round(2 * size)))
        text = f"{classes[int(found.labels[row])]} {float(found.scores[row]):.2f}"
        at = (left, max(top - 3, int(22 * size)))
        cv2.putText(image, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, (0, 0, 0), 3, cv2.LINE_AA)
        cv2.putText(image, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, (255, 255, 255), 1, cv2.LINE_AA)
    return image
