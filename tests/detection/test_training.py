import pytest
import torch

from vitq.detection.training import DetectionSource, example, train
from vitq.errors import InputError
from vitq.train import TrainConfig


def test_examples_are_in_the_networks_pixels_and_mirrored_together(shapes):
    for image_id in shapes.image_ids:
        image, target = example(shapes, image_id)
        turned, other = example(shapes, image_id, mirrored=True)
        assert torch.equal(turned, image.flip(-1)) and torch.equal(other.masks, target.masks.flip(-1))
        for box, mask in zip(other.boxes.int().tolist(), other.masks, strict=True):
            rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
            assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_resized_examples(shapes):
    from vitq.detection.coco import CocoSet
    larger = CocoSet(shapes.file, shapes.folder, 100, 100)
    image, target = example(larger, 1, mirrored=True)
    assert image.shape == (3, 128, 128) and target.size == (100, 100) and target.masks.shape[1:] == (100, 100)
    assert image[:, 100:].eq(0).all() and image[..., 100:].eq(0).all() and image[:, :100, :100].ne(0).any()
    plain = example(shapes, 1, mirrored=True)[1]
    torch.testing.assert_close(target.boxes, plain.boxes * 100 / 64)


def test_batches_depend_on_seed_epoch_and_number_alone(shapes):
    source = DetectionSource(shapes, 2, seed=5)
    assert len(source) == 3
    whole, late = list(source.iterate(1)), list(DetectionSource(shapes, 2, seed=5).iterate(1, start=2))
    assert torch.equal(whole[2][0], late[0][0]) and len(late) == 1
    assert not torch.equal(whole[0][0], next(source.iterate(0))[0])
    parts = [next(DetectionSource(shapes, 2, seed=5, part=(rank, 2)).iterate(1)) for rank in (0, 1)]
    assert torch.equal(torch.cat([images for images, _ in parts]), whole[0][0])
    with pytest.raises(InputError, match="more than the 6 images"):
        DetectionSource(shapes, 7)


SETTINGS = dict(batch_size=2, learning_rate=2e-3, optimizer="adamw", log_every=1, device="cpu", channels_last=False)


@pytest.mark.parametrize("cascade", [False, True])
def test_the_loss_falls(tiny, shapes, cascade):
    model = tiny(classes=4, cascade=cascade, anchor_scale=2, proposals=50, mask_convs=1)
    result = train(model, shapes, TrainConfig(steps=8, **SETTINGS))
    losses = [line["loss"] for line in result.history if line["event"] == "train"]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


def test_a_run_goes_on_to_the_same_numbers(tiny, shapes, tmp_path):
    def run(out, steps):
        model = tiny(classes=4, anchor_scale=2, detections=3)
        config = TrainConfig(steps=4, checkpoint_every=2, schedule="constant", **SETTINGS)
        if steps is not None:
            from vitq.train.callbacks import Callback

            class Stop(Callback):
                def after_step(self, state):
                    if state.step == steps + 1:
                        raise KeyboardInterrupt
            with pytest.raises(KeyboardInterrupt):
                train(model, shapes, config, out=out, callbacks=[Stop()], held_out=shapes)
            return None
        return model, train(model, shapes, config, out=out, held_out=shapes).final

    run(tmp_path / "a", 2)
    (one, metrics), (two, whole) = run(tmp_path / "a", None), run(None, None)
    assert metrics == whole and {"box_AP", "mask_AP", "train_loss"} <= set(whole)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
