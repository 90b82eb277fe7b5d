"""The doctor says what is missing, what mends it, and whether the book can be built."""

import json
from collections import namedtuple

from vitq import cli, doctor


def by_name() -> dict[str, doctor.Check]:
    return {check.name: check for check in doctor.checks()}


def test_every_gap_comes_with_what_mends_it(monkeypatch):
    monkeypatch.setenv("VITQ_IMAGENET", "/absent")
    monkeypatch.delenv("VITQ_COCO", raising=False)
    found = by_name()
    assert found["python"].status == doctor.OK and found["torch"].detail
    assert found["imagenet"].status == doctor.OPTIONAL and "/absent" in found["imagenet"].detail
    for check in found.values():
        assert (check.status == doctor.OK) == (not check.mend), check


def test_what_is_missing_gives_status_3(monkeypatch, capsys):
    assert cli.main(["doctor"]) in (0, 3)
    capsys.readouterr()
    monkeypatch.setattr(doctor, "NEEDED", ("no-such-package",))
    assert cli.main(["doctor", "--json"]) == 3
    answer = json.loads(capsys.readouterr().out)
    lost = next(check for check in answer["checks"] if check["name"] == "no-such-package")
    assert answer["ready"] is False and lost["status"] == "missing" and "pip install" in lost["mend"]


def test_full_disk_and_imagenet_folder(monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: usage(10, 10, 5e8))
    monkeypatch.setenv("VITQ_IMAGENET", str(tmp_path))
    found = by_name()
    assert found["disk for cache"].status == doctor.MISSING and "VITQ_CACHE" in found["disk for cache"].mend
    assert found["imagenet"].status == doctor.OK


def test_lock_is_compared_with_what_is_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "_installed", {"torch": "2.15.0+cpu", "timm": "1.0.30"}.get)
    lock = tmp_path / "requirements.lock"
    lock.write_text("# comment\ntorch==2.15.0\nabsent==1\n")
    assert doctor._lock(lock).status == doctor.OK
    lock.write_text("torch==2.15.0\ntimm==1.0.31\n")
    assert doctor._lock(lock).status == doctor.OPTIONAL and "timm 1.0.30 (pinned 1.0.31)" in doctor._lock(lock).detail
    assert doctor._lock(tmp_path / "absent.lock").status == doctor.OPTIONAL


def test_gpus_are_read_from_the_driver(monkeypatch):
    gpu = {"name": "NVIDIA H100", "memory_mb": 81559.0, "driver": "570.1", "bf16": True}
    monkeypatch.setattr(doctor.environment, "gpus", lambda: (gpu,))
    assert by_name()["GPU"].detail == "NVIDIA H100, 80 GiB, bf16 yes, driver 570.1"
