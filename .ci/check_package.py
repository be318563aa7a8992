"""Check what was built of this folder: check_package.py DIST"""

from __future__ import annotations

import sys
import tarfile
import zipfile
from pathlib import Path

from mpsnet_cli.packaged import PACKAGED

(wheel,), (sdist,) = (list(Path(sys.argv[1]).glob(pattern)) for pattern in ("*.whl", "*.tar.gz"))
with zipfile.ZipFile(wheel) as archive:
    built = {name: archive.getinfo(name).file_size for name in archive.namelist()}
    for name in ("mpsnet_cli/body/data/free-1.npz", "mpsnet_cli/py.typed"):
        assert name in built, f"{name} is not in the wheel"
    shipped = {Path(name).name for name in built if name.endswith((".safetensors", ".pt"))}
    assert shipped == PACKAGED.keys(), f"the wheel holds {shipped}, not {[*PACKAGED]}"
    for path in Path("weights").iterdir():
        installed = f"mpsnet_cli_weights/{path.name}"
        assert installed in built, f"{path} is not in the wheel"
        assert archive.read(installed) == path.read_bytes(), f"{path} is another in the wheel"
with tarfile.open(sdist) as archive:
    sources = {member.name.partition("/")[2]: member.size for member in archive}
    for path in Path("weights").iterdir():
        assert sources.get(str(path)) == path.stat().st_size, f"{path} is not in the sdist"
for path in (wheel, sdist):
    print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")
