"""The wheel: what is in it, and that every module of it imports from elsewhere."""

import os
import pathlib
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path_factory.mktemp("source") / "dlcore"
    out = tmp_path_factory.mktemp("wheel")
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split(
        "\n"
    )
    if not any(files):
        pytest.skip("not a git checkout")
    for name in filter(None, files):  # a copy, so that the build leaves nothing behind in the checkout
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            target.symlink_to(os.readlink(ROOT / name))
        elif (ROOT / name).is_file():
            target.write_bytes((ROOT / name).read_bytes())
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(out),
        str(source),
    ]
    subprocess.run(command, check=True)
    (path,) = out.glob("*.whl")
    return path


def test_the_wheel_has_every_module_once_and_the_data(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    expected = {f"dlcore/{p.relative_to(ROOT / 'dlcore').as_posix()}" for p in (ROOT / "dlcore").glob("*.py")}
    expected |= {
        f"dlcore/kernels/{p.relative_to(ROOT / 'kernels').as_posix()}" for p in (ROOT / "kernels").rglob("*.py")
    }
    expected |= {
        "dlcore/py.typed",
        "dlcore/datasets/__init__.py",
        "dlcore/datasets/digits.csv.gz",
        "dlcore/datasets/DIGITS.md",
    }
    assert expected <= set(names)
    assert not [n for n in names if n.startswith(("kernels/", "tests/", "bench/"))]
    assert wheel.stat().st_size < 1_000_000


def test_every_module_imports_from_the_wheel(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    modules = [
        ".".join(p.relative_to(tmp_path).with_suffix("").parts).removesuffix(".__init__")
        for p in tmp_path.rglob("*.py")
        if p.name != "__main__.py"
    ]
    code = f"import importlib, dlcore; [importlib.import_module(m) for m in {modules!r}]; print(dlcore.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "NUMBA_ENABLE_CUDASIM": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(str(tmp_path))


def test_kernels_under_another_name_are_refused():
    code = "import kernels"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "use 'import dlcore.kernels'" in result.stderr
