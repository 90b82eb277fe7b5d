"""Images that break detectors, float and quantized: one pixel, a strip, grey, turned, empty; alone or in any order."""

import numpy as np
import pytest
import torch

cv2 = pytest.importorskip("cv2")
pytest.importorskip("pycocotools")

from vitq import detect_cli  # noqa: E402
from vitq.detection import ImageBatch, save  # noqa: E402
from vitq.detection.images import load_image, prepare_image  # noqa: E402
from vitq.detection.quantization import quantize  # noqa: E402

SMALL = dict(depths=(1, 1, 1, 1), proposals=20, detections=5, mask_convs=1)
LONG, SHORT = 133, 80


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """File to height and width as seen; a photograph stored turned by a quarter is seen upright."""
    from PIL import Image
    folder, found = tmp_path_factory.mktemp("images"), {}
    for name, size in (("plain.png", (40, 60)), ("pixel.png", (1, 1)), ("strip.png", (4000, 100)),
                       ("lying.png", (3, 700))):
        Image.fromarray(noise(*size)).save(folder / name)
        found[folder / name] = size
    grey = Image.fromarray(noise(30, 50)[..., 0])
    grey.save(folder / "grey.png"), grey.save(folder / "grey.jpg"), grey.convert("1").save(folder / "bits.png")
    found |= {folder / name: (30, 50) for name in ("grey.png", "grey.jpg", "bits.png")}
    clear = Image.fromarray(noise(30, 50)).convert("RGBA")
    clear.putalpha(100), clear.save(folder / "clear.png")
    found[folder / "clear.png"] = (30, 50)
    for turn in (3, 6, 8):
        picture = Image.fromarray(noise(24, 70))
        exif = picture.getexif()
        exif[0x0112] = turn
        picture.save(folder / f"turned{turn}.jpg", exif=exif)
        found[folder / f"turned{turn}.jpg"] = (24, 70) if turn == 3 else (70, 24)
    return found


@pytest.fixture(scope="module", params=["float", "cascade", "W4A4", "cascade W4A4"])
def model(request, tiny):
    own = tiny(cascade="cascade" in request.param, **SMALL)
    if "W4A4" not in request.param:
        return own
    return quantize(own, prepare_image(noise(40, 60), LONG, SHORT), "repq", 4, 4).model


def same(one, two):
    return all(torch.equal(getattr(one, name), getattr(two, name)) for name in ("boxes", "scores", "labels",
                                                                                "probabilities"))


def test_every_file_alone_and_in_any_order(model, files):
    first = {file: model(load_image(file, LONG, SHORT))[0] for file in files}
    for file in reversed(files):
        assert same(model(load_image(file, LONG, SHORT))[0], first[file])
    for file, size in files.items():
        found = first[file]
        assert found.size == size and len(found) == 5 and found.masks().shape == (5, *size)
        assert found.boxes.isfinite().all() and found.scores.isfinite().all() and found.boxes.min() >= 0
        assert (found.boxes[:, 2] <= size[1] * 1.001).all() and (found.boxes[:, 3] <= size[0] * 1.001).all()
        assert [own["size"] for own in found.encoded_masks()] == [list(size)] * 5


def test_grey_files_are_three_equal_channels_and_turned_ones_upright(files):
    by_name = {file.name: file for file in files}
    grey = load_image(by_name["grey.png"], LONG, SHORT)
    colour = prepare_image(noise(30, 50)[..., :1].repeat(3, 2), LONG, SHORT)
    assert torch.equal(grey.images, colour.images)
    turned, lying = (load_image(by_name[f"turned{n}.jpg"], LONG, SHORT) for n in (6, 3))
    assert turned.sizes == [(133, 46)] and lying.sizes == [(46, 133)]
    back = turned.images[0, :, :133, :46].rot90(1, (1, 2))  # 6: stored lying on its left side
    assert (back - lying.images[0, :, :46, :133].rot90(2, (1, 2))).abs().mean() < 0.02


@pytest.mark.parametrize("limit, threshold, expected", [(5, 0.999, 0), (1, 0.0, 1)])
def test_no_detection_and_one(model, files, limit, threshold, expected, monkeypatch):
    monkeypatch.setattr(model.roi, "limit", limit)
    monkeypatch.setattr(model.roi, "score_threshold", threshold)
    for file, size in list(files.items())[:3]:
        found, = model(load_image(file, LONG, SHORT))
        assert len(found) == expected and found.masks().shape == (expected, *size)
        assert found.labels.dtype == torch.int64 and len(found.encoded_masks()) == expected


def test_no_proposal_no_detection(model, monkeypatch):
    image = prepare_image(noise(40, 60), LONG, SHORT)
    monkeypatch.setattr(model, "propose", lambda maps, sizes: [torch.zeros(0, 5)])
    found, = model(image)
    assert len(found) == 0 and found.masks().shape == (0, 40, 60)


@pytest.mark.parametrize("size", [(1, 1), (4000, 100)])
@pytest.mark.parametrize("method", ["gptq", "erq"])
def test_calibrated_on_them(tiny, size, method):
    """One grey level in the whole image, or a strip of three pixels' width: finite weights, finite detections."""
    model = tiny(**SMALL)
    done = quantize(model, prepare_image(noise(*size), LONG, SHORT), method, 4, 4, rounds=3)
    assert all(value.isfinite().all() for value in done.model.state_dict().values() if value.is_floating_point())
    found, = done.model(prepare_image(noise(40, 60), LONG, SHORT))
    assert len(found) == 5 and found.boxes.isfinite().all()


def test_batches_of_equal_size_are_images_one_by_one(model):
    images = [prepare_image(noise(40, 60, seed), LONG, SHORT) for seed in (0, 1, 2)]
    together = model(ImageBatch.join(images))
    for found, image in zip(together, images, strict=True):
        alone, = model(image)
        torch.testing.assert_close(found.scores, alone.scores, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(found.boxes, alone.boxes, rtol=1e-3, atol=0.05)


@pytest.mark.parametrize("quantized", [False, True])
def test_the_command_draws_them(tiny, files, tmp_path, capsys, quantized):
    model = tiny(**SMALL)
    if quantized:
        model = quantize(model, prepare_image(noise(40, 60), LONG, SHORT), "repq", 4, 4).model
    file = save(model, tmp_path / "m.safetensors", classes="a,b,c", long=str(LONG), short=str(SHORT))
    parser = detect_cli.argparse.ArgumentParser()
    detect_cli.add(parser)
    for image in (file for file in files if file.name in ("grey.jpg", "turned6.jpg", "strip.png")):
        size = files[image]
        given = parser.parse_args([str(image), "--out", str(tmp_path / "out.png"), "--checkpoint", str(file),
                                   "--threshold", "0"])
        assert given.function(given) == 0 and "5 of 5 detections" in capsys.readouterr().out
        assert cv2.imread(str(tmp_path / "out.png")).shape == (*size, 3)
