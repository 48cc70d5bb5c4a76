"""The check of a wheel's contents, on wheels made by hand: it finds what is wrong with one."""

import re
import zipfile

import pytest

from installed import ROOT, check_wheel, lowest_requirements
from pathsum import __version__

METADATA = """Metadata-Version: 2.4
Name: pathsum
Version: {version}
Requires-Python: >=3.10
Requires-Dist: numba>=0.60
Requires-Dist: numpy>=2.0
Requires-Dist: jax>=0.7; extra == 'jax'
Requires-Dist: tensorflow>=2.18; extra == 'tensorflow'
Requires-Dist: torch>=2.8; extra == 'torch'

# pathsum
""".replace("{version}", __version__)


def wheel(path, metadata=METADATA, without=(), added=()):
    sources = ROOT / "src"
    with zipfile.ZipFile(path, "w") as archive:
        for file in (sources / "pathsum").rglob("*"):
            name = str(file.relative_to(sources))
            if file.is_file() and file.suffix not in (".pyc", ".nbi", ".nbc") and name not in without:
                archive.write(file, name)
        for name in added:
            archive.writestr(name, "")
        archive.writestr("pathsum-0.1.0.dist-info/METADATA", metadata)
        archive.writestr("pathsum-0.1.0.dist-info/licenses/LICENSE", "")
    return str(path)


def test_a_good_wheel_has_nothing_wrong(tmp_path):
    path = wheel(tmp_path / "good.whl")
    assert check_wheel(path) == []
    assert lowest_requirements(path, "jax") == ["numba==0.60", "numpy==2.0", "jax==0.7"]


@pytest.mark.parametrize("fault", [
    {"without": ["pathsum/py.typed"]},
    {"added": ["tests/test_ctc.py"]},
    {"added": ["pathsum/__pycache__/cli.cpython-311.pyc"]},
    {"added": ["pathsum/kernels/numba/__pycache__/chain.solve-1.py311.nbi"]},
    {"metadata": METADATA.replace("torch>=2.8", "torch>=2.4")},
    {"metadata": METADATA.replace(f"Version: {__version__}", "Version: 9.9")},
    {"metadata": METADATA.replace(">=3.10", ">=3.8")},
    {"metadata": METADATA.replace("# pathsum", "")},
])  # fmt: skip
def test_a_bad_wheel_is_found(fault, tmp_path):
    assert check_wheel(wheel(tmp_path / "bad.whl", **fault))


def test_version_citation_and_changelog_agree():
    released = re.findall(r"^## \[(\d[\d.]*)\](?: - ([\d-]+))?$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    cited = (ROOT / "CITATION.cff").read_text()
    assert released[0][0] == __version__
    assert f"version: {__version__}\ndate-released: {released[0][1]}\n" in cited
