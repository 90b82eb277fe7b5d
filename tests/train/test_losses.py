import pytest
import torch
from torch import nn

from vitq.errors import InputError
from vitq.train import Distillation, fit, kl_divergence


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
