import pytest
import torch
from torch import nn

from vitq.errors import InputError
from vitq.train import Distillation, HardAndSoftDistillation, evaluate, fit, kl_divergence
from vitq.train.losses import class_logits


def test_kl_is_zero_for_equal_logits_and_matches_its_definition():
    student, teacher = torch.randn(2, 5, 7, dtype=torch.float64).unbind()
    assert kl_divergence(teacher, teacher, 3.0).item() == pytest.approx(0, abs=1e-12)
    p, q = (teacher / 2).softmax(1), (student / 2).softmax(1)
    assert kl_divergence(student, teacher, 2.0).item() == pytest.approx(4 * (p * (p / q).log()).sum(1).mean().item())


def test_the_teacher_is_left_alone_and_the_student_comes_to_agree(data, make_network, config):
    teacher, student = make_network(), make_network()
    fit(teacher, data, config(steps=60))
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    nn.init.normal_(student[-1].weight)
    loss = Distillation(teacher, temperature=2.0, weight=1.0).train()
    unlabelled = (data[0], torch.full_like(data[1], -1))
    result = fit(student, unlabelled, config(steps=60), loss=loss)
    assert result.final["train_loss"] < 0.3 * result.history[0]["loss"]
    assert not teacher.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_weight_mixes_the_two_terms(make_network):
    logits, labels, images = torch.randn(4, 4), torch.tensor([0, 1, 2, 3]), torch.randn(4, 3, 8, 8)
    teacher = make_network()
    parts = [Distillation(teacher, weight=weight)(logits, labels, images) for weight in (0.0, 0.25, 1.0)]
    assert parts[1].item() == pytest.approx(0.75 * parts[0].item() + 0.25 * parts[2].item(), abs=1e-6)
    assert parts[0].item() == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), abs=1e-6)


@pytest.mark.parametrize("arguments", [{"temperature": 0}, {"weight": 1.5}, {"weight": float("nan")}])
def test_bad_arguments_are_named(make_network, arguments):
    with pytest.raises(InputError, match=next(iter(arguments))):
        Distillation(make_network(), **arguments)


@pytest.fixture
def two_heads():
    """Distilled DeiT, one block wide enough for its heads to differ."""
    from timm.models.deit import VisionTransformerDistilled

    torch.manual_seed(0)
    net = VisionTransformerDistilled(img_size=8, patch_size=4, embed_dim=16, depth=1, num_heads=2, num_classes=4)
    nn.init.normal_(net.head.weight), nn.init.normal_(net.head_dist.weight)
    return net


def soft_cross_entropy(logits, target):
    return -(target.double() * logits.double().log_softmax(-1)).sum(-1).mean().item()


def test_hard_and_soft_terms_look_at_their_own_head(two_heads, make_problem):
    images, labels = make_problem(6)
    two_heads.set_distilled_training(True)
    hard, soft = two_heads.train()(images)
    teacher = two_heads.eval()(images)
    assert not torch.allclose(hard, soft) and torch.allclose(teacher, (hard + soft) / 2, atol=1e-6)
    loss = HardAndSoftDistillation(two_heads)
    target = hard.softmax(-1)  # of the class head alone, not of the average
    expected = soft_cross_entropy(hard, torch.eye(4)[labels]) + soft_cross_entropy(soft, target)
    assert loss((hard, soft), labels, images).item() == pytest.approx(expected, rel=1e-6)
    assert torch.allclose(class_logits(two_heads, images), hard, atol=1e-6)
    both = soft_cross_entropy(hard, torch.eye(4)[labels]) + soft_cross_entropy(hard, target)
    assert loss(hard, labels, images).item() == pytest.approx(both, rel=1e-6)
    assert not two_heads.training


def test_mixed_labels_are_distributions(two_heads, make_problem):
    images, labels = make_problem(6)
    mixed = 0.3 * torch.eye(4)[labels] + 0.7 * torch.eye(4)[labels.flip(0)]
    logits, loss = torch.randn(6, 4), HardAndSoftDistillation(two_heads)
    plain = loss(logits, torch.eye(4)[labels], images)
    assert plain.item() == pytest.approx(loss(logits, labels, images).item(), rel=1e-6)
    difference = soft_cross_entropy(logits, mixed) - soft_cross_entropy(logits, torch.eye(4)[labels])
    assert (loss(logits, mixed, images) - plain).item() == pytest.approx(difference, abs=1e-5)


def test_both_heads_are_trained_and_their_mean_is_evaluated(two_heads, data, config):
    import copy

    teacher = copy.deepcopy(two_heads)
    nn.init.normal_(two_heads.head.weight), nn.init.normal_(two_heads.head_dist.weight)
    before = {name: value.clone() for name, value in two_heads.state_dict().items()}
    two_heads.set_distilled_training(True)
    result = fit(two_heads, data, config(steps=40, learning_rate=0.02), loss=HardAndSoftDistillation(teacher))
    assert result.final["train_loss"] < 0.8 * result.history[0]["loss"]
    moved = {name for name, value in two_heads.state_dict().items() if not torch.equal(value, before[name])}
    assert {"head.weight", "head_dist.weight", "dist_token", "blocks.0.attn.qkv.weight"} <= moved
    logits = two_heads.eval()(data[0])
    expected = 100 * (logits.argmax(-1) == data[1]).double().mean().item()
    assert evaluate(two_heads, data)["top1"] == pytest.approx(expected)
