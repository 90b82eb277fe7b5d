"""The benchmarks of a GPU run on a processor, with tiny networks: what they report, and the recipes that they cut."""

import json
from pathlib import Path

import pytest

from vitq.train import rows


@pytest.fixture
def benches(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


@pytest.mark.slow
def test_steps_of_a_transformer_and_a_convolutional_network(benches, tmp_path, capsys):
    import bench_gpu

    out = tmp_path / "bench.json"
    status = bench_gpu.main(["--networks", "test_vit", "test_efficientnet", "--batch", "2", "--size", "160", "--steps",
                             "3", "--warm", "1", "--device", "cpu", "--no-compile", "--out", str(out)])
    found = json.loads(out.read_text())["rows"]
    assert status == 0 and len(found) == 6 and capsys.readouterr().out.count("images/s") == 6
    assert [row["kind"] for row in found] == ["full precision", "W4A4 LSQ", "W2A2 OFQ", "full precision", "W4A4 LSQ",
                                              "W2A2 StatsQ"]
    assert all(row["finite"] and row["step_ms"] > 0 for row in found)
    assert found[2]["ratio"] == pytest.approx(found[2]["step_ms"] / found[0]["step_ms"], abs=1e-3)
    assert found[2]["within"] is None, "the bar is for compiled steps"


@pytest.mark.parametrize(("ratio", "words"), [(1.34, "within 1.35"), (1.36, "EXCEEDS 1.35")])
def test_the_bar_is_printed(benches, ratio, words):
    import bench_gpu

    row = {"network": "x", "kind": "W4A4 LSQ", "compiled": True, "step_ms": 1.0, "images_per_second": 1.0,
           "peak_gb": 2.0, "finite": True, "ratio": ratio, "within": ratio <= bench_gpu.TARGET}
    assert bench_gpu.shown(row).endswith(f"{ratio} times full precision, {words}")


def test_a_recipe_is_cut_to_some_minutes_in_both_stages(benches, tmp_path, monkeypatch):
    import bench_recipe

    from vitq.train import cost

    monkeypatch.setattr(cost, "measure", lambda *args, **kwargs: cost.Speed("x", "y", 100.0, None, 0.0))
    name = bench_recipe.RECIPES["ofq"][1]
    file = bench_recipe.parameters(name, tmp_path, 5.0, "cpu", "vit_micro", 4, 32)
    made, given = rows.read(file), rows.read(name)
    for one, other, minutes in ((made, given, 0.5), (made.before, given.before, 4.5)):
        assert one.config.train.epochs == round(60 * minutes * 100 / 4 / bench_recipe.EPOCH)
        assert one.config.remedies == other.config.remedies and one.config.quant == other.config.quant
        assert one.config.teacher == other.config.teacher and one.config.scale == "smoke"
    assert bench_recipe.steps(file) == made.config.train.epochs * bench_recipe.EPOCH
    assert made.before.config.train.cooldown_epochs == made.before.config.train.warmup_epochs == 1
