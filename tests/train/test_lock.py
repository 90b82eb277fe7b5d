import json
import os
import subprocess
import sys
import time

import pytest

from vitq.errors import InputError
from vitq.train.lock import RunLock

HOLD = """import sys, time
from vitq.train.lock import RunLock
with RunLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path, holder):
    with pytest.raises(InputError, match=f"process {holder.pid} on .* is running in this folder"), RunLock(tmp_path):
        pass
    holder.kill()
    holder.wait()
    with RunLock(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_a_recycled_process_number_does_not_hold_the_lock(tmp_path, holder):
    owner = json.loads((tmp_path / ".lock").read_text())
    (tmp_path / ".lock").write_text(json.dumps(owner | {"born": owner["born"] - 1000}))
    with RunLock(tmp_path):
        pass


def test_another_machine_holds_it_while_it_is_refreshed(tmp_path):
    (tmp_path / ".lock").write_text(json.dumps({"pid": 1, "host": "elsewhere", "born": 0.0}))
    with pytest.raises(InputError, match="elsewhere"), RunLock(tmp_path):
        pass
    os.utime(tmp_path / ".lock", (time.time() - 3600,) * 2)
    with RunLock(tmp_path):
        pass


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_lock_without_an_owner_is_free_and_it_may_be_entered_twice(tmp_path, text):
    (tmp_path / ".lock").write_text(text)
    with RunLock(tmp_path), RunLock(tmp_path):
        assert (tmp_path / ".lock").read_text()
    assert not (tmp_path / ".lock").read_text()
