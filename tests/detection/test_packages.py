import sys

import pytest

from vitq.detection.packages import need
from vitq.errors import MissingError


@pytest.mark.parametrize("module, package", [("cv2", "opencv-python-headless"), ("pycocotools.mask", "pycocotools")])
def test_a_missing_package_is_named(monkeypatch, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingError, match=f"{package} is needed here.*pip install {package}"):
        need(module)


def test_nothing_heavy_is_imported_before_it_is_used():
    import subprocess
    code = ("import sys, vitq.detection, vitq.detect_cli; "
            "print([name for name in ('torch', 'timm', 'cv2') if name in sys.modules])")
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"
