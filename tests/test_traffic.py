"""CUDA kernels move the bytes they must and no more: counted on the simulator, access by access."""

import numpy as np
import pytest
from numba import cuda

from bench import traffic
from dlcore.kernels.device import simulated
from dlcore.kernels.instructions import MIXED, OPS

if not simulated():
    pytest.skip("accesses are counted on the simulator", allow_module_level=True)

# rows beyond a chunk of 256, columns and inner sizes that are no multiple of anything
SIZES = ((64, 32, 16), (259, 37, 19))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", sorted({*traffic.AT_MOST, *traffic.ONCE}))
def test_targets(name, size):
    moved = traffic.count((OPS | MIXED)[name], size)
    assert not moved.wrong
    assert moved.times > (0.4 if name == "dropout" else 0.999), "less than the least is counted wrongly"


def test_the_output_of_a_dense_layer_is_written_once_and_never_read():
    m, n, k = 67, 71, 19
    moved = traffic.count(OPS["dense_forward"], (m, n, k))
    assert moved.total.written == moved.total.results == 2 * m * n * 4  # y, and z
    assert moved.least == 4 * (m * k + k * n + 2 * m * n)


def test_optimizer_reads_and_writes_each_slot_once():
    moved = traffic.count(OPS["optimizer_update"], (13, 11, 1))
    assert (moved.total.read, moved.total.written) == (4 * 143 * 4, 3 * 143 * 4)  # w, g, m, v; w, m, v


def test_mixed_precision_moves_two_bytes_of_each_weight_and_gradient():
    moved = traffic.count(MIXED["optimizer_update_mixed"], (13, 11, 1))
    assert (moved.total.read, moved.total.written) == ((2 + 3 * 4) * 143, (2 + 3 * 4) * 143)  # g, w; master, m, v


@pytest.mark.parametrize(
    ("name", "vectors"), [("batch_norm_forward", 4), ("batch_norm_inference", 4), ("batch_norm_backward", 5)]
)
def test_batch_norm_reads_the_figures_of_a_column_once_for_four_rows(name, vectors):
    rows, columns = 64, 32
    assert traffic.count(OPS[name], (rows, columns, 1)).launches[-1].small == rows // 4 * columns * vectors * 4


@pytest.mark.parametrize("columns", [4, 130, 1000])
def test_sums_over_rows_along_with_the_gradient_of_layer_norm_cost_little_more(columns):
    """Beside dy, x and dx: gamma for each row, from the cache; for 32 rows two rows of partial sums."""
    rows = 64
    moved = traffic.count(OPS["group_norm_backward"], (rows, columns, 1))
    assert moved.launches[0].name.startswith("group_norm_backward_row")
    assert moved.total.read == 2 * moved.total.written == 2 * rows * columns * 4
    figures = 2 * rows * 32  # the mean and the deviation, which every lane asks for
    partial = 2 * 2 * (rows // 32) * columns + 2 * columns
    assert moved.total.small == 4 * (rows * columns + figures + partial)


def _count(function, array, block=1):
    tally = traffic._Tally()
    cuda.jit(function)[1, block](traffic._Counting(array, tally))
    return tally.read // array.itemsize, tally.written // array.itemsize


def test_accesses_are_counted():
    def rows(a):
        row = a[1]
        row[0] += row[1]

    def twice(a):
        a[0, 0] = a[0, 1] * a[0, 1]

    def again(a):
        first = a[0, 1]
        a[0, 0] = first
        a[0, 0] = a[0, 1]

    def broadcast(a):
        v = a[0, 0]
        if v < 0:
            a[0, 0] = v

    a = np.ones((2, 3), np.float32)
    assert _count(rows, a) == (2, 1)
    assert _count(twice, a) == (1, 1)  # one read: the compiler merges neighbours
    assert _count(again, a) == (2, 2)
    assert _count(broadcast, a, 7) == (7, 0)  # of each thread


def test_a_missed_target_is_named():
    good = traffic.count(OPS["optimizer_update"], (4, 4, 1))
    assert good.wrong == ""
    launch = good.launches[0]
    more = good._replace(launches=(launch._replace(read=launch.read + 4),))
    assert more.wrong.endswith("at most 1.000")
    dense = traffic.count(OPS["dense_forward"], (4, 4, 1))
    read = dense._replace(launches=(dense.launches[0]._replace(results=dense.launches[0].results + 4),))
    assert dense.wrong == ""
    assert read.wrong.endswith("accesses of each result, not one")


def test_command_line(capsys, monkeypatch):
    assert traffic.main(["batch_norm_forward", "--size", "8,4,2"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0] == "float32, rows 8, columns 4, inner size 2"
    assert table[2].split()[:6] == ["batch_norm_forward", "256", "128", "256", "1.50", "1.00"]
    assert [line.split()[0] for line in table[3:]] == ["moments", "statistics", "normalise"]
    monkeypatch.setitem(traffic.AT_MOST, "batch_norm_forward", 1.4)
    assert traffic.main(["batch_norm_forward", "--size", "8,4,2"]) == 1
    assert "1.500 times the least, at most 1.400" in capsys.readouterr().out
    assert traffic.main(["no such"]) == 2
    with pytest.raises(SystemExit, match="2"):
        traffic.main(["--size", "8,4"])
