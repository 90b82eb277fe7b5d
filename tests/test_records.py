"""Records are whole, strict and finite; published figures have sources; verdicts follow the stated rule."""

import errno
import json
import math
import os

import pandas as pd
import pytest

from vitq import comparison, records
from vitq.errors import InputError, MissingError
from vitq.records import Record


def record(**changes) -> Record:
    fields = dict(claim="nagel2022_t2", model="mobilenet_micro", method="LSQ", bits="W3", data="glyphs",
                  seeds=[0, 1, 2], metrics={"top1": [70.0, 71.0, 72.0]}, images=10_000)  # fmt: skip
    return Record(**fields | changes)


def test_round_trip_fills_in_where_it_was_made(tmp_path):
    path = record().write(tmp_path / "records")
    found = Record.read(path)
    assert found.metrics["top1"] == {"mean": 71.0, "std": 1.0, "values": [70.0, 71.0, 72.0]}
    assert found.source_hash and found.versions["python"] and found.hardware["cpu"]
    assert found.seconds > 0 and found.peak_memory_mb > 0
    assert record(bits="W4").write(tmp_path / "records") != path
    assert record().write(tmp_path / "one.json") == tmp_path / "one.json"


@pytest.mark.parametrize(
    "changes, word",
    [
        ({"scale": "tiny"}, "scale"),
        ({"status": "maybe"}, "status"),
        ({"status": "not run"}, "reason"),
        ({"bits": "3 bit"}, "bits"),
        ({"bits": ""}, "bits"),
        ({"claim": ""}, "claim"),
        ({"metrics": {}}, "metrics"),
        ({"metrics": {"top1": [1.0, math.nan, 2.0]}}, "finite"),
        ({"metrics": {"top1": "70"}}, "number"),
        ({"metrics": {"top1": [1.0, 2.0]}}, "2 values for 3 seeds"),
        ({"metrics": {"top1": {"mean": 5.0, "std": 1.0, "values": [1.0, 2.0, 3.0]}}}, "mean"),
        ({"paper": {"value": 69.5, "source": ""}}, "source"),
        ({"config": {"lr": math.inf}}, "config.lr"),
    ],
)
def test_invalid_records_are_refused(changes, word):
    with pytest.raises(InputError, match=word) as caught:
        record(**changes)
    assert "\n" not in str(caught.value)


def test_read_is_strict_and_says_so_in_one_line(tmp_path):
    path = record().write(tmp_path)
    good = path.read_text()
    content = json.loads(good)
    lacking = {name: value for name, value in content.items() if name != "bits"}
    cases = {
        good[: len(good) // 2]: "not valid JSON",
        good.replace("71.0", "NaN", 1): "NaN",
        good.replace("71.0", "1e999", 1): "out of range",
        json.dumps(content | {"extra": 1}): "unknown fields: extra",
        json.dumps(lacking): "lacks bits",
        json.dumps(content | {"schema": 99}): "schema 99",
        json.dumps([1]): "list",
        good.replace('"claim"', '"claim": "x", "claim"', 1): "twice",
    }
    for text, word in cases.items():
        path.write_text(text)
        with pytest.raises(InputError, match=word) as caught:
            Record.read(path)
        assert "\n" not in str(caught.value) and path.name in str(caught.value)
    with pytest.raises(InputError, match="absent.json"):
        Record.read(tmp_path / "absent.json")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_full_disk_keeps_the_old_record(tmp_path, monkeypatch, call):
    path = record().write(tmp_path)
    before = path.read_bytes()

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(MissingError, match="No space left on device"):
        record(metrics={"top1": [1.0, 2.0, 3.0]}).write(tmp_path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]


def test_a_method_with_a_plus_has_a_file_of_its_own():
    def name(method):
        return Record("claim", "net", method, "W4A4", "data", {"top1": 1.0}).filename

    assert name("ERQ+") == "claim-net-erq_plus-w4a4-data-small.json" != name("ERQ")
    assert name("LSQ + Freeze") == "claim-net-lsq_freeze-w4a4-data-small.json"


def test_bits_names():
    assert [records.bits_name(4, 4), records.bits_name(3), records.bits_name(None, 8), records.bits_name(None)] == [
        "W4A4", "W3", "A8", "FP32"]  # fmt: skip


def test_load_records_is_long_and_keeps_rows_that_were_not_run(tmp_path):
    record(metrics={"top1": [1.0, 2.0, 3.0], "top1_pre_bn": [0.0, 1.0, 2.0]}).write(tmp_path)
    record(bits="W8", metrics={}, seeds=[], status="not run", reason="needs a GPU").write(tmp_path)
    record(claim="other").write(tmp_path)
    table = records.load_records(tmp_path, "nagel2022_t2")
    assert sorted(table["metric"]) == ["", "top1", "top1_pre_bn"]
    assert table.set_index("metric").loc["top1", ["mean", "std", "n"]].tolist() == [2.0, 1.0, 3]
    assert records.load_records(tmp_path / "absent").empty
    assert list(records.load_records(tmp_path / "absent").columns) == list(table.columns)


def test_every_published_figure_has_a_source_and_a_number():
    names = sorted(path.stem for path in comparison.published_folder().glob("*.csv") if path.stem != "claims")
    assert {f"nagel2022_t{number}" for number in range(1, 9)} | {"nagel2022_scripts"} <= set(names)
    for name in names:
        table = records.published(name)
        assert table["value"].notna().all() and table["source"].str.strip().ne("").all(), name
        assert not table.duplicated(["model", "method", "setting", "bits", "metric"]).any(), name
        text = table.to_csv()
        assert not any(tag in text for tag in ("[MEM]", "[CMT]", "[UNK]", "[P ", "72.34", "69.72", "73.48", "70.94"))


@pytest.mark.parametrize(
    "name, where, value",
    [
        ("nagel2022_t1", {"setting": "conv3.1 (depthwise)", "metric": "kl_max"}, 55.3782),
        ("nagel2022_t2", {"model": "MobileNetV2", "bits": "W3", "metric": "top1_pre_bn"}, 64.97),
        ("nagel2022_t3", {"method": "AdaRound", "metric": "train_loss"}, 1.3070),
        ("nagel2022_t4", {"setting": "lambda cos(0,1e-3)", "metric": "top1"}, 70.37),
        ("nagel2022_t5", {"setting": "f_th cos(0.04,0.01)", "metric": "oscillating_percent"}, 0.04),
        ("nagel2022_t6", {"method": "LSQ + Freeze", "bits": "W3A3", "metric": "top1"}, 67.6),
        ("nagel2022_t7", {"method": "LSQ + Dampen", "bits": "W4A4", "metric": "top1"}, 63.7),
        ("nagel2022_t8", {"method": "LSQ", "bits": "W4A4", "metric": "top1"}, 72.3),
        ("nagel2022_scripts", {"model": "MobileNetV2", "method": "LSQ + Freeze", "bits": "W4A4",
                               "metric": "weight_decay"}, 5e-5),
    ],
)  # fmt: skip
def test_published_figures(name, where, value):
    table = records.published(name)
    for column, wanted in where.items():
        table = table[table[column] == wanted]
    assert table["value"].tolist() == [value]


def test_published_refuses_unknown_tables_and_missing_sources(tmp_path):
    with pytest.raises(InputError, match="nagel2022_t4"):
        records.published("nagel2022_t99")
    header = ",".join(comparison.PUBLISHED_COLUMNS)
    (tmp_path / "t.csv").write_text(f"{header}\n1,m,LSQ,,W3,top1,69.5,,,\n")
    with pytest.raises(InputError, match="line 2.*without a source"):
        records.published("t", tmp_path)
    (tmp_path / "t.csv").write_text(f"{header}\n1,m,LSQ,,W3,top1,high,,Table 1,\n")
    with pytest.raises(InputError, match="value"):
        records.published("t", tmp_path)


def test_standard_error_is_that_of_welch():
    from scipy import stats

    ours, base = [70.0, 71.5, 71.0, 72.0], [69.0, 70.0, 69.9]
    error = comparison.standard_error(pd.Series(ours).std(), 4, pd.Series(base).std(), 3)
    difference = sum(ours) / 4 - sum(base) / 3
    assert difference / error == pytest.approx(stats.ttest_ind(ours, base, equal_var=False).statistic)


@pytest.mark.parametrize(
    "difference, error, reported, expected",
    [
        (1.0, 0.4, 0.5, "same direction"),
        (-1.0, 0.4, -0.5, "same direction"),
        (-1.0, 0.4, 0.5, "opposite direction"),
        (1.0, 0.6, 0.5, "inconclusive within noise"),
        (1.0, 0.5, 0.5, "inconclusive within noise"),
        (1.0, 0.0, 0.5, "same direction"),
        (0.0, 0.0, 0.5, "inconclusive within noise"),
        (1.0, math.nan, 0.5, "inconclusive: one seed"),
        (1.0, 0.1, 0.0, "no direction reported"),
    ],
)
def test_verdict(difference, error, reported, expected):
    assert comparison.verdict(difference, error, reported) == expected


@pytest.fixture
def table() -> pd.DataFrame:
    rows = [("LSQ", 69.5), ("LSQ + Dampen", 70.5), ("LSQ + Freeze", 70.6), ("PACT", 61.4), ("EWGS", 70.3)]
    return pd.DataFrame(
        [dict(table="6", model="m", method=method, setting="", bits="W4A4", metric="top1", value=value, std=math.nan,
              source="Nagel 2022, Table 6", note="") for method, value in rows]
    )  # fmt: skip


def test_compare_shows_every_row_with_its_verdict(tmp_path, table):
    for method, values in {"LSQ": [60.0, 61.0, 62.0], "LSQ + Dampen": [65.0, 66.0, 67.0],
                           "LSQ + Freeze": [60.5, 61.5, 62.5], "ours": [1.0, 2.0, 3.0]}.items():  # fmt: skip
        record(method=method, bits="W4A4", metrics={"top1": values}).write(tmp_path)
    record(method="PACT", bits="W4A4", metrics={}, seeds=[], status="not run", reason="no code").write(tmp_path)
    found = records.compare(records.load_records(tmp_path), table, baseline={"method": "LSQ"}).set_index("method")
    assert found["verdict"].to_dict() == {
        "LSQ": "baseline",
        "LSQ + Dampen": "same direction",
        "LSQ + Freeze": "inconclusive within noise",
        "PACT": "not run: no code",
        "EWGS": "not run: no record yet",
        "ours": "no direction reported",
    }
    dampen = found.loc["LSQ + Dampen"]
    assert (dampen["reported_difference"], dampen["difference"], dampen["delta"]) == (1.0, 5.0, -4.5)
    assert dampen["error"] == pytest.approx(math.sqrt(2 / 3)) and dampen["n"] == 3
    assert math.isnan(found.loc["EWGS", "mean"]) and found.loc["EWGS", "reported"] == 70.3


def test_compare_without_a_measured_baseline_gives_no_verdict(tmp_path, table):
    record(method="EWGS", bits="W4A4").write(tmp_path)
    found = records.compare(records.load_records(tmp_path), table, baseline={"method": "LSQ"}).set_index("method")
    assert found.loc["EWGS", "verdict"] == "not run: its baseline has no record"
    found = records.compare(records.load_records(tmp_path), table).set_index("method")
    assert found.loc["EWGS", "verdict"] == "measured"


def test_compare_refuses_smoke_and_what_is_ambiguous(tmp_path, table):
    record(bits="W4A4", scale="smoke").write(tmp_path)
    with pytest.raises(InputError, match="smoke"):
        records.compare(records.load_records(tmp_path), table)
    dropped = records.compare(records.load_records(tmp_path), table, smoke="drop")
    assert dropped["mean"].isna().all()
    for variant in ("paper", "released"):
        record(bits="W4A4", variant=variant).write(tmp_path / "two")
    with pytest.raises(InputError, match="more than one of the records for method=LSQ"):
        records.compare(records.load_records(tmp_path / "two"), table)
    with pytest.raises(InputError, match="baseline"):
        records.compare(records.load_records(tmp_path), table, baseline={"method": "absent"}, smoke="drop")
    with pytest.raises(InputError, match="depth"):
        records.compare(records.load_records(tmp_path), table, baseline={"depth": "1"}, smoke="drop")


def test_every_claim_compares(tmp_path):
    for claim, row in comparison.claims().iterrows():
        reported = records.published(row["published"])
        reported = reported[reported["model"] == row["model"]]
        found = records.compare(records.load_records(tmp_path, claim), reported, baseline=row["baseline"])
        assert len(found) == len(reported) > 0 and found["verdict"].str.startswith("not run").all(), claim


def test_table_1_by_kind_is_the_mean_of_the_printed_layers():
    printed, by_kind = records.published("nagel2022_t1"), records.published("nagel2022_t1_by_kind")
    mobile = printed[printed["model"] == "MobileNetV2"]
    kinds = {"depthwise": mobile["setting"].str.contains(r"\.1"), "pointwise": ~mobile["setting"].str.contains(r"\.1")}
    for row in by_kind.to_dict("records"):
        values = mobile[kinds[row["setting"]] & (mobile["metric"] == row["metric"])]["value"]
        assert len(values) == (2 if row["setting"] == "depthwise" else 4)
        assert row["value"] == pytest.approx(values.mean(), rel=1e-3)


def test_a_counterpart_names_the_published_row(tmp_path):
    Record(claim="c", model="m", method="LSQ", bits="W3", data="d", setting="lambda 1e-3", counterpart="lambda 1e-4",
           metrics={"top1": [1.0, 2.0]}).write(tmp_path)
    row = records.load_records(tmp_path).iloc[0]
    assert (row["setting"], row["own_setting"]) == ("lambda 1e-4", "lambda 1e-3")
