import pytest

from vitq.errors import InputError
from vitq.train import RunConfig, TrainConfig


@pytest.mark.parametrize("fields, message", [
    ({"steps": 0}, "steps=0"),
    ({}, "exactly one of steps and epochs"),
    ({"steps": 5, "epochs": 1}, "exactly one"),
    ({"steps": 5, "learning_rate": "0.1"}, "learning_rate='0.1': expected a number"),
    ({"steps": 5, "learning_rate": float("nan")}, "learning_rate=nan"),
    ({"steps": 5, "learning_rate": -1.0}, "learning_rate=-1.0"),
    ({"steps": 5, "scale_learning_rate": 0}, "scale_learning_rate=0"),
    ({"steps": 5, "scale_learning_rate": "apart"}, "with_weights"),
    ({"steps": 2.5}, "steps=2.5: expected a whole number"),
    ({"steps": True}, "steps=True"),
    ({"steps": 5, "optimizer": "adam"}, "'sgd' or 'adamw'"),
    ({"steps": 5, "precision": "fp16"}, "precision='fp16'"),
    ({"steps": 5, "batch_size": 10, "accumulation": 3}, "divisor of batch_size=10"),
    ({"steps": 5, "momentum": 1.0}, "momentum=1.0"),
    ({"steps": 5, "ema": 1.0}, "ema=1.0"),
    ({"steps": 5, "lerning_rate": 0.1}, "unknown key 'lerning_rate'; did you mean 'learning_rate'.*batch_size"),
])
def test_a_wrong_field_is_named_with_its_value(fields, message):
    with pytest.raises(InputError, match=message):
        TrainConfig.from_dict(fields)


@pytest.mark.parametrize("mapping, message", [
    ({"modle": "x"}, "did you mean 'model'"),
    ({"data": {"name": "digits", "images": 3}}, "data: unknown key 'images'.*train_images"),
    ({"data": {"train_images": 0}}, "data.train_images=0"),
    ({"train": {"steps": "many"}}, "train.steps='many'"),
    ({"teacher": {"temperature": 0}}, "teacher.temperature=0"),
    ({"bn_reestimation": {"batches": -1}}, "bn_reestimation.batches=-1"),
    ({"scale": "huge"}, "run.scale='huge'"),
    ({"seed": 1.5}, "run.seed=1.5"),
    ({"limit_batches": 0}, "limit_batches=0"),
    ({"train": [1]}, "train="),
    ({"teacher": {"kind": "hard"}}, "teacher.kind='hard': expected 'soft' or 'hard_and_soft'"),
    ({"teacher": {"kind": "hard_and_soft", "weight": 0.5}}, "teacher.weight=0.5: kind: hard_and_soft has none"),
    ({"data": {"name": "digits", "augmentation": {}}}, "data.augmentation=.*image folders.*digits is none"),
    ({"data": {"name": "imagenet", "augmentation": {"mixup": -1}}}, "data.augmentation.mixup=-1"),
    ({"data": {"name": "imagenet", "augmentation": {"cutmix": 1.0}}, "train": {"steps": 1, "batch_size": 7}},
     "train.batch_size=7: give an even number"),
    ({"continue_from": 3}, "run.continue_from=3"),
])
def test_a_wrong_section_of_a_run_is_named(mapping, message):
    with pytest.raises(InputError, match=message):
        RunConfig.from_dict(mapping)


def test_a_run_survives_the_way_through_a_mapping_and_its_hash_ignores_spelling():
    config = RunConfig.from_dict({"train": {"steps": 5, "clip": 1}, "quant": {"weight_bits": 3}})
    again = RunConfig.from_dict(config.to_dict())
    assert again == config and again.hash == config.hash
    assert RunConfig.from_dict({"train": {"steps": 6}}).hash != config.hash
