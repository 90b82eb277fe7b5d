import numpy as np
import pytest
import torch

cv2 = pytest.importorskip("cv2")

from vitq.detection import images as module  # noqa: E402
from vitq.detection.images import ImageBatch, load_image, prepare_image, read_image, resized_size  # noqa: E402
from vitq.errors import InputError, MissingError  # noqa: E402

SIZES = {  # original height and width to those of the network's image, as printed by MMDetection's rule
    (480, 640): (800, 1067), (640, 480): (1067, 800), (426, 640): (800, 1202), (640, 427): (1199, 800),
    (427, 640): (800, 1199), (375, 500): (800, 1067), (333, 500): (800, 1201), (500, 333): (1201, 800),
    (640, 640): (800, 800), (240, 640): (500, 1333), (1080, 1920): (750, 1333), (1, 1): (800, 800),
    (4000, 100): (1333, 33), (100, 4000): (33, 1333), (800, 1333): (800, 1333), (1, 5000): (1, 1333),
}


@pytest.mark.parametrize("size", SIZES)
def test_sizes_are_rounded_half_up(size):
    assert resized_size(*size) == SIZES[size]


def noise(height=40, width=60, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_resize_is_bilinear_on_bytes_before_normalization():
    batch = prepare_image(noise(), 90, 60)
    height, width = batch.sizes[0]
    assert (height, width) == (60, 90)
    grey = batch.images[0, :, :60, :90].permute(1, 2, 0).double() * torch.tensor(module.STD) + torch.tensor(module.MEAN)
    assert (grey - grey.round()).abs().max() < 1e-4  # whole grey levels
    back = cv2.resize(noise(), (90, 60), interpolation=cv2.INTER_LINEAR)[..., ::-1]
    assert np.array_equal(grey.round().numpy().astype(np.uint8), back)


def test_normalized_with_the_published_constants():
    image = np.zeros((8, 8, 3), np.uint8)
    image[..., 0], image[..., 1], image[..., 2] = 10, 20, 30  # blue, green, red
    values = prepare_image(image, 8, 8).images[0, :, 0, 0]
    expected = [(30 - 123.675) / 58.395, (20 - 116.28) / 57.12, (10 - 103.53) / 57.375]
    torch.testing.assert_close(values, torch.tensor(expected))


def test_padded_with_zeros_below_and_right_to_32():
    batch = prepare_image(noise(40, 60), 60, 40)
    assert batch.images.shape == (1, 3, 64, 64) and batch.sizes == [(40, 60)] and batch.originals == [(40, 60)]
    assert batch.images[:, :, 40:].eq(0).all() and batch.images[..., 60:].eq(0).all()
    assert batch.images[:, :, :40, :60].ne(0).all()
    assert prepare_image(noise(800, 1216)).images.shape == (1, 3, 800, 1216)


def test_scales_are_float32_quotients_axis_by_axis():
    batch = prepare_image(np.zeros((427, 640, 3), np.uint8))
    assert batch.sizes == [(800, 1199)]
    down, right = np.float32(800 / 427), np.float32(1199 / 640)
    assert batch.scales.tolist() == [[right, down, right, down]] and right != down


def test_grey_and_turned_files(tmp_path):
    from PIL import Image
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
    Image.fromarray(grey).save(tmp_path / "grey.png")
    read = read_image(tmp_path / "grey.png")
    assert read.shape == (6, 8, 3) and (read == grey[..., None]).all()
    colour = Image.fromarray(np.full((6, 8, 3), 200, np.uint8))
    exif = colour.getexif()
    exif[0x0112] = 6  # turned by a quarter
    colour.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (8, 6, 3)
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 255
    Image.fromarray(red).save(tmp_path / "red.png")
    assert read_image(tmp_path / "red.png")[0, 0].tolist() == [0, 0, 255]
    values = load_image(tmp_path / "red.png", 4, 4).images[0, :, 0, 0]
    assert values[0] > 2 and values[1] < -2 and values[2] < -1


def test_files_that_are_none(tmp_path):
    with pytest.raises(MissingError, match="does not exist"):
        read_image(tmp_path / "none.jpg")
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(InputError, match="cannot be read as an image"):
        read_image(tmp_path / "text.jpg")
    with pytest.raises(InputError, match="give uint8"):
        prepare_image(np.zeros((4, 4)))


def test_joined_batches_are_padded_to_the_largest():
    one, two = prepare_image(noise(40, 60), 60, 40), prepare_image(noise(60, 40), 60, 40)
    both = ImageBatch.join([one, two])
    assert both.images.shape == (2, 3, 64, 64) and both.sizes == [(40, 60), (60, 40)] and both.scales.shape == (2, 4)
    small = prepare_image(noise(20, 30), 60, 40)
    mixed = ImageBatch.join([two, small])
    assert mixed.sizes == [(60, 40), (40, 60)] and mixed.originals == [(60, 40), (20, 30)]
    assert mixed.scales.tolist() == [[1] * 4, [2] * 4]
    assert torch.equal(mixed.images[0], two.images[0]) and torch.equal(mixed.images[1], small.images[0])


@pytest.mark.parametrize("cascade", [False, True])
def test_extreme_images_and_order(tiny, cascade):
    """1 x 1 and 4000 x 100 pixels; what is found in an image does not depend on what came before it."""
    model = tiny(cascade=cascade, detections=5)
    batches = [prepare_image(noise(*size), 133, 80) for size in ((1, 1), (4000, 100), (40, 60))]
    assert batches[1].sizes == [(133, 3)]
    first = [model(batch)[0] for batch in batches]
    again = [model(batch)[0] for batch in reversed(batches)][::-1]
    for one, two, size in zip(first, again, ((1, 1), (4000, 100), (40, 60)), strict=True):
        assert one.size == size and torch.equal(one.boxes, two.boxes) and torch.equal(one.scores, two.scores)
        assert one.masks().shape == (len(one), *size)
        assert (one.boxes[:, 2] <= size[1] + 1e-3).all() and (one.boxes[:, 3] <= size[0] + 1e-3).all()


@torch.no_grad()
def test_padding_to_a_larger_image_would_change_the_result(tiny, shapes):
    """So the network sees one image at a time, padded to a multiple of 32 and no further."""
    from vitq.detection.evaluation import detect_all

    model = tiny(classes=4, detections=2)
    one, two = prepare_image(noise(40, 60), 60, 40), prepare_image(noise(90, 60), 90, 60)
    alone, together = model.backbone(one.images), model.backbone(ImageBatch.join([one, two]).images[:1])
    rows, columns = alone[3].shape[-2:]
    assert (alone[3] - together[3][..., :rows, :columns]).abs().max() > 1e-3
    seen = []
    handle = model.backbone.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    detect_all(model, shapes, limit=3, progress=False)
    handle.remove()
    assert seen == [(1, 3, 64, 64)] * 3
