"""The running interpreter's own Python sources as documents."""

import sysconfig
from pathlib import Path

from sources.config import PythonPackagesSpec
from sources.readers.python_packages import PythonPackagesSource


def test_python_packages_hold_the_standard_library():
    source = PythonPackagesSource(PythonPackagesSpec(type="python_packages"))
    assert source.name == "python_packages" and source.num_shards == 64
    pin = source.pin()
    assert pin["num_files"] == len(source.files) > 500
    keys = {file.key for file in source.files}
    assert "stdlib/argparse.py" in keys
    assert not any("__pycache__" in key or "stdlib/site-packages" in key for key in keys)
    shard = source.files[0].order[0] % 64 if len(keys) >= 1024 else 0
    documents = [document for document, _ in zip(source.read(shard, None), range(12), strict=False)]
    resumed = [document for document, _ in zip(source.read(shard, documents[5][1]), range(6), strict=False)]
    assert resumed == documents[6:]
    root = Path(sysconfig.get_path("stdlib")).resolve()
    stdlib = next(d for d in documents if d[1]["file"].startswith("stdlib/")) if len(keys) < 1024 else None
    if stdlib:
        assert stdlib[0] == (root / stdlib[1]["file"].removeprefix("stdlib/")).read_text(encoding="utf-8-sig")
    assert PythonPackagesSource(PythonPackagesSpec(type="python_packages"), pin).notices == []
