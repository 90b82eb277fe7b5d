"""Dual uniform quantizer: test 20 of ERQ's specification."""

import pytest
import torch

from vitq.errors import InputError
from vitq.quantizers.affine import Affine
from vitq.quantizers.dual_uniform import DualUniform, outlier_columns
from vitq.quantizers.percentiles import ERQ_WEIGHTS


def planted(rows=120, columns=40, seed=0):
    w = torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    w[:, [3, 17, 18, 30, 31, 39]] *= 12
    return w


def test_planted_columns_are_found_and_the_groups_partition_the_inputs():
    mask = outlier_columns(planted())
    assert mask.sum() == 120 // 20 and mask.nonzero().flatten().tolist() == [3, 17, 18, 30, 31, 39]


def test_outlier_columns_equal_a_direct_count():
    w = torch.randn(400, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    seen = []
    for row in w:
        upper, lower = torch.quantile(row[row > 0], 0.99), torch.quantile(row[row < 0], 0.01)
        seen += [j for j, v in enumerate(row.tolist()) if v > upper or v < lower]
    from collections import Counter

    assert set(outlier_columns(w).nonzero().flatten().tolist()) == {j for j, _ in Counter(seen).most_common(20)}


@pytest.mark.parametrize("bits", [3, 4])
def test_error_falls_on_planted_outliers(bits):
    w = planted()
    single = Affine(bits, 0, ERQ_WEIGHTS).double()
    dual = DualUniform(bits).double()
    assert (dual(w) - w).square().mean() <= 0.5 * (single(w) - w).square().mean()
    assert dual(dual(w)).equal(dual(w))
    for columns in (dual.outlier, ~dual.outlier):
        own = Affine(bits, 0, ERQ_WEIGHTS).double()
        assert own(w[:, columns]).equal(dual(w)[:, columns])


def test_rows_of_one_sign_and_few_rows_are_no_trouble():
    w = planted().abs()
    assert torch.isfinite(DualUniform(4).double()(w)).all()
    w[:60] *= -1
    assert outlier_columns(w).sum() == 6
    few = planted(rows=19)
    assert DualUniform(4).double()(few).equal(Affine(4, 0, ERQ_WEIGHTS).double()(few))


def test_state_of_another_size_loads():
    one, other = DualUniform(4), DualUniform(4)
    w = planted().float()
    one.initialize(w)
    other.load_state_dict(one.state_dict())
    assert other(w).equal(one(w))


def test_a_kernel_is_refused():
    with pytest.raises(InputError, match="linear"):
        DualUniform(4)(torch.randn(4, 4, 3, 3))
