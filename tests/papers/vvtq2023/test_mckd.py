"""Soft cross-entropy (T11), epoch accounting (T13) and a training run on stored labels."""

import pytest
import torch
import torch.nn.functional as F

from vitq import data, zoo
from vitq.data.multi_crop import MultiCropSource
from vitq.data.soft_labels import CropSettings, make
from vitq.errors import InputError
from vitq.papers.vvtq2023 import MultiCropDistillation, SoftCrossEntropy, epoch_plan, pass_learning_rate
from vitq.train import TrainConfig, fit
from vitq.train.losses import kl_divergence

IMAGENET = 1_281_167


@pytest.fixture
def logits_and_labels():
    torch.manual_seed(0)
    return torch.randn(8, 11, dtype=torch.float64, requires_grad=True), torch.randn(8, 11).double().softmax(-1)


def test_soft_cross_entropy_is_kl_plus_entropy(logits_and_labels):
    logits, labels = logits_and_labels
    entropy = -(labels * labels.log()).sum(-1).mean()
    loss = SoftCrossEntropy()(logits, labels)
    assert torch.allclose(loss, -(labels * logits.log_softmax(-1)).sum() / 8)
    assert torch.allclose(loss, kl_divergence(logits, labels.log()) + entropy)


def test_its_gradient_is_softmax_minus_labels_over_the_batch(logits_and_labels):
    logits, labels = logits_and_labels
    SoftCrossEntropy()(logits, labels).backward()
    assert torch.allclose(logits.grad, (logits.detach().softmax(-1) - labels) / 8)


def test_one_hot_labels_give_the_ordinary_cross_entropy(logits_and_labels):
    logits, labels = logits_and_labels
    hard = labels.argmax(-1)
    wanted = F.cross_entropy(logits, hard)
    assert torch.allclose(SoftCrossEntropy()(logits, F.one_hot(hard, 11).double()), wanted)
    assert SoftCrossEntropy()(logits, hard).equal(wanted)


def test_the_plan_of_150_epochs():
    plan = epoch_plan(IMAGENET, batch_size=512, epochs=150, crops=4)
    assert [part.epoch for part in plan] == [*range(0, 148, 4), 148, 149]
    assert [part.crops for part in plan] == [4] * 37 + [1] * 2 and sum(part.crops for part in plan) == 150
    assert {part.steps for part in plan[:37]} == {10_010} and {part.steps for part in plan[37:]} == {2_503}
    half = epoch_plan(IMAGENET, batch_size=1024, epochs=150, crops=4)
    assert (half[0].steps, half[-1].steps) == (5_005, 1_252)


@pytest.mark.parametrize("epochs", [1, 3, 4, 5, 8, 9, 150, 151])
@pytest.mark.parametrize("crops", [1, 2, 4])
@pytest.mark.parametrize("warmup", [0, 1])
def test_passes_add_up_to_the_epochs(epochs, crops, warmup):
    plan = epoch_plan(1000, 64, epochs, crops, warmup)
    assert sum(part.crops for part in plan) == epochs
    starts = [part.epoch for part in plan]
    assert starts == [sum(part.crops for part in plan[:i]) for i in range(len(plan))]
    assert all((part.crops == 1) == (part.epoch < warmup or part.epoch >= epochs - crops or crops == 1)
               for part in plan)  # fmt: skip


def test_learning_rates_of_the_recipe():
    wanted = {0: 5e-4, 40: 4.17e-4, 75: 2.5e-4, 100: 1.25e-4, 144: 1.97e-6, 148: 2.2e-7, 149: 5.5e-8}
    for epoch, rate in wanted.items():
        assert pass_learning_rate(epoch, 150, 5e-4) == pytest.approx(rate, rel=0.01)
    assert pass_learning_rate(150, 150, 5e-4) == 0


@pytest.mark.parametrize("given", [{"images": 0}, {"batch_size": 0}, {"epochs": 0}, {"crops": 1.5},
                                   {"warmup_epochs": 151}])  # fmt: skip
def test_wrong_plans_are_refused(given):
    with pytest.raises(InputError, match=next(iter(given))):
        epoch_plan(**({"images": 10, "batch_size": 4} | given))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("VITQ_CACHE", str(tmp_path_factory.mktemp("cache")))
    dataset = data.load("glyphs", images=82)
    store = make(tmp_path_factory.mktemp("labels"), dataset, zoo.load("vit_micro"), CropSettings(crops=8),
                 progress=False)  # fmt: skip
    patch.undo()
    return MultiCropDistillation(MultiCropSource(dataset, store, 32, 4), epochs=6)


def test_a_whole_run_is_one_source(run):
    assert [(part.epoch, part.crops, part.steps) for part in run.plan] == [(0, 4, 11), *((e, 1, 3) for e in (4, 5))]
    batches = [batch for epoch in range(3) for batch in run.iterate(epoch)]
    assert run.steps == len(batches) == 17 and len(run) == 11  # single-crop epochs together are the last, shorter epoch
    for start in (1, 10, 11, 13, 14, 16):
        rest = list(run.iterate(*divmod(start, 11)))
        assert len(rest) == (11 if start < 11 else 17) - start
        assert all(a[0].equal(b[0]) and a[1].equal(b[1]) for a, b in zip(rest, batches[start:], strict=False))


@pytest.mark.parametrize("warmup", [0, 1, 2])
def test_its_learning_rate_is_that_of_the_pass(run, warmup):
    whole = MultiCropDistillation(run.sources[4], 6, warmup)
    settings = TrainConfig(epochs=6, learning_rate=1e-3, batch_size=32, schedule_per="epoch", warmup_epochs=warmup)
    settings = whole.settings(settings)
    starts = [part.epoch for part in whole.plan for _ in range(part.steps)]
    assert settings.steps == len(starts) == whole.steps
    for step, epoch in enumerate(starts):
        wanted = 1e-6 + (1e-3 - 1e-6) * epoch / 2 if epoch < warmup == 2 else pass_learning_rate(epoch, 6, 1e-3)
        if epoch >= warmup or warmup == 2:
            assert settings.rate(step, whole.steps, len(whole)) == pytest.approx(wanted)
    assert settings.cut(3).rate(2, 3, len(whole)) == settings.rate(2, whole.steps, len(whole))
    assert len([batch for epoch in range(7) for batch in whole.iterate(epoch)]) == whole.steps


def test_training_follows_the_teacher_and_goes_on_after_a_stop(run, tmp_path):
    class Stop(Exception):
        pass

    def trained(out=None, stop_at=None):
        torch.manual_seed(0)
        student = zoo.load("vit_micro", pretrained=False)
        seen = []

        def loss(logits, labels):
            if len(seen) == stop_at:
                raise Stop
            seen.append(run.loss(logits, labels))
            return seen[-1]

        config = TrainConfig(epochs=6, batch_size=32, learning_rate=3e-3, optimizer="adamw", checkpoint_every=5,
                             evaluate_every=0, device="cpu")  # fmt: skip
        fit(student, run, run.settings(config), loss=loss, out=out)
        return student, seen

    student, seen = trained(tmp_path / "a")
    assert sum(seen[-5:]) < sum(seen[:5])
    with pytest.raises(Stop):
        trained(tmp_path / "b", stop_at=13)
    again, rest = trained(tmp_path / "b")
    assert len(rest) == 7  # from the checkpoint at step 10
    for one, two in zip(student.parameters(), again.parameters(), strict=True):
        assert one.equal(two)
