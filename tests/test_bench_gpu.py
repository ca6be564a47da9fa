"""``python -m bench gpu`` where there is no GPU, and its report on rows that were made up."""

import pytest

from bench import gpu
from bench.__main__ import main
from dlcore.kernels.device import why_no_gpu

ROWS = [
    {"section": "ceilings", "what": "copy", "seconds": 1e-3, "bytes": 4_000_000_000},
    {"section": "ceilings", "what": "cuBLAS", "seconds": 1e-3, "flops": 50_000_000_000},
    {"section": "ceilings", "what": "bfloat16", "seconds": 1e-4, "flops": 50_000_000_000},
    {"section": "kernels", "what": "adam", "seconds": 2e-3, "bytes": 6_000_000_000, "peer": "torch", "peer_seconds": 3e-3},
    {"section": "products", "what": "512", "seconds": 1e-3, "bytes": 1, "flops": 40_000_000_000},
    {"section": "tests", "what": "test suite", "note": "1 failed", "failed": ["FAILED tests/test_cuda.py::test_x"]},
    {"section": "steps", "what": "steps", "wrong": "stopped after 60 s"},
]  # fmt: skip


def test_rates_are_shares_of_the_first_ceiling_of_their_kind():
    rows = [dict(row) for row in ROWS]
    gpu._rates(rows)
    adam, product = rows[3], rows[4]
    assert adam["bandwidth"] == pytest.approx(3e12)
    assert adam["share"] == pytest.approx(0.75)
    assert adam["ratio"] == pytest.approx(1.5)
    assert product["share"] == pytest.approx(0.8)  # of cuBLAS in float32, not of bfloat16
    text = gpu.markdown(rows, {"gpu": "none"})
    line = next(line for line in text.splitlines() if "| adam" in line)
    assert [cell.strip() for cell in line.split("|")][3:8] == ["2.00 ms", "3,000 GB/s", "75%", "torch 3.00 ms", "1.50x"]
    assert "- FAILED tests/test_cuda.py::test_x" in text
    assert "stopped after 60 s" in text


@pytest.mark.skipif(why_no_gpu() is None, reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_writes_nothing(capsys, tmp_path):
    assert main(["gpu", "--out", str(tmp_path)]) == 2
    assert "needs a GPU: " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert main(["gpu", "--out", str(tmp_path / "missing")]) == 2
    assert "there is no such folder" in capsys.readouterr().err


@pytest.mark.skipif(why_no_gpu() is None, reason="there is a GPU")
def test_what_goes_wrong_in_a_section_is_a_row():
    (row,) = gpu._section("kernels", 60.0)
    assert row["section"] == "kernels"
    assert row["wrong"]
    assert "stopped after" in gpu._section("kernels", 0.01)[0]["wrong"]


def test_an_unknown_section_is_one_line(capsys):
    assert main(["gpu", "sideways"]) == 2
    assert "unknown section 'sideways'" in capsys.readouterr().err
