"""The order of steps, their barriers, and the optimizer on gradients in the cache: small programs made by hand."""

import inspect

import numpy as np
import pytest

import dlcore
from dlcore import layers, optimizers
from dlcore.kernels import find
from dlcore.kernels.cpu.entries import body_of
from dlcore.kernels.cpu.interpreter import Workspaces
from dlcore.kernels.cpu.schedule import accesses, order, with_barriers
from dlcore.kernels.cpu.steps import STEPS, TAKES_PIECES, divide_by_columns, fuse_updates, step
from dlcore.kernels.cpu.table import Tables, steps_of
from dlcore.kernels.instructions import CHUNKS, ROWS
from dlcore.kernels.program import Buffer, Builder

RELU, ADAM = find("activation", "relu"), find("optimizer", "adam")


def buffer(name, *shape, dtype=np.float32):
    return Buffer(name, shape, np.dtype(dtype), "work", 0)


x, z = buffer("x", ROWS, 5), buffer("z", ROWS, 5)
y, dy, other = buffer("y", ROWS, 7), buffer("dy", ROWS, 7), buffer("other", ROWS, 7)
w, dw, b, db = buffer("w", 5, 7), buffer("dw", 5, 7), buffer("b", 7), buffer("db", 7)
mean, rstd, gamma = (buffer(name, 7) for name in ("mean", "rstd", "gamma"))
sums, more_sums = buffer("sums", CHUNKS, 7), buffer("more sums", CHUNKS, 7)
value, history = buffer("value", ROWS), buffer("history", 9, dtype=np.float64)
hyper, uniforms = buffer("hyper", 6, dtype=np.float64), buffer("uniforms", 8)
count, squares = buffer("count", 1, dtype=np.int64), buffer("squares", 1, dtype=np.float64)

FORWARD = step("dense_forward", [x, w, b, None, y], RELU)
SLOPE = step("activation_backward", [dy, y, y, dy], RELU)
COLUMN_SUMS = step("dense_backward_z", [dy, None, y, dy, sums], RELU)
SUM = step("sum_chunks", [sums, db])
SUM_AGAIN = step("sum_chunks", [sums, b])
WEIGHTS = step("dense_backward_w", [x, dy, dw])
INPUTS = step("dense_backward_x", [dy, w, z])
UPDATE = step("optimizer_update", [buffer("all", 35), buffer("all d", 35), buffer("slots", 2, 35), uniforms], ADAM)
UPDATE_OTHERS = step(
    "optimizer_update",
    [*(buffer(n, *shape) for n, shape in {"v": (9,), "dv": (9,), "s": (2, 9)}.items()), uniforms],
    ADAM,
)
BEGIN = step("optimizer_begin", [hyper, count, uniforms], ADAM)
RECORD = step("record", [value, history])
ACCURACY = step("binary_accuracy", [y, other, value], scalars=[0.5])
NORM_SUMS = step("batch_norm_sums", [dy, y, mean, rstd, sums, more_sums])
NORM_SLOPE = step("batch_norm_gradient", [dy, y, gamma, mean, rstd, sums, more_sums, other])
SQUARES, CLIP = step("sum_of_squares", [buffer("g", 35), squares]), step("clip", [squares, hyper, uniforms])
FORWARD_COLUMNS = step("dense_forward_columns", [x, w, b, None, y], RELU)


def names(steps):
    return [s.op.name for s in steps]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (FORWARD, SLOPE),  # each thread reads the rows it wrote
        (SLOPE, FORWARD),  # and overwrites what only it reads
        (FORWARD, INPUTS),  # both read the weights
        (SUM, SUM_AGAIN),  # the first thread writes what others wrote before the last meeting
        (WEIGHTS, INPUTS),  # both read the gradient
        (ACCURACY, SLOPE),
        (BEGIN, FORWARD),
        (SQUARES, FORWARD),
        (FORWARD, step("softmax_forward", [y, other])),
    ],
    ids=lambda s: s.op.name,
)
def test_no_meeting_where_threads_keep_to_themselves(first, second):
    assert names(with_barriers([first, second])) == [first.op.name, second.op.name, "barrier"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (COLUMN_SUMS, SUM),  # the first thread reads what all wrote
        (COLUMN_SUMS, WEIGHTS),  # every thread reads all rows
        (INPUTS, step("dense_update", [x, dy, dw, w, buffer("slots", 2, 35), uniforms], ADAM, [0])),  # w is overwritten
        (NORM_SUMS, NORM_SLOPE),
        (ACCURACY, RECORD),
        (RECORD, ACCURACY),  # the next step's rows over what the first thread still reads
        (SUM, COLUMN_SUMS),
        (BEGIN, UPDATE),
        (SQUARES, CLIP),
        (CLIP, UPDATE),
        (UPDATE, UPDATE_OTHERS),  # the counts of the pieces that are taken
        (FORWARD, FORWARD_COLUMNS),  # rows and columns of one array
        (FORWARD_COLUMNS, SLOPE),
        (WEIGHTS, step("dense_forward", [x, dw, b, None, y], RELU)),
    ],
    ids=lambda s: s.op.name,
)
def test_a_meeting_at_every_hazard(first, second):
    assert names(with_barriers([first, second])) == [first.op.name, "barrier", second.op.name, "barrier"]


def test_steps_that_take_pieces_are_known():
    bodies = {name: body_of(name) for name in STEPS if name != "optimizer_begin"}
    taking = {name for name, body in bodies.items() if "context" in inspect.signature(body).parameters}
    assert taking == set(TAKES_PIECES)


def test_a_region_overlaps_its_buffers():
    builder = Builder()
    weight, gradient = builder.parameter("w", (5, 7))
    parameters, gradients, slots = builder.whole(2)
    update = step("optimizer_update", [parameters, gradients, slots, uniforms], ADAM)
    writes, reads = step("dense_backward_w", [x, dy, gradient]), step("dense_forward", [x, weight, b, None, y], RELU)
    assert names(with_barriers([writes, update, reads])) == [
        "dense_backward_w", "barrier", "optimizer_update", "barrier", "dense_forward", "barrier",
    ]  # fmt: skip
    beside = step("dense_forward", [x, w, b, None, y], RELU)
    assert names(with_barriers([update, beside])) == ["optimizer_update", "dense_forward", "barrier"]


def test_a_meeting_serves_all_before_it():
    assert names(with_barriers([COLUMN_SUMS, ACCURACY, SUM, RECORD, WEIGHTS])) == [
        "dense_backward_z", "binary_accuracy", "barrier", "sum_chunks", "record", "dense_backward_w", "barrier",
    ]  # fmt: skip
    assert with_barriers([]) == []


def test_arrays_are_known_by_their_memory():
    a, out, twice = np.zeros((4, 3)), np.zeros((4, 3)), np.zeros((4, 3))
    first, second = step("softmax_forward", [a, out]), step("softmax_forward", [out, twice])
    assert names(with_barriers([first, second])) == ["softmax_forward"] * 2 + ["barrier"]
    total = step("sum_chunks", [out, np.zeros(3)])
    assert names(with_barriers([first, total])) == ["softmax_forward", "barrier", "sum_chunks", "barrier"]


def test_weights_come_late():
    assert order([WEIGHTS, INPUTS, RECORD, FORWARD]) == [INPUTS, FORWARD, WEIGHTS, RECORD]
    assert order([BEGIN, FORWARD]) == [BEGIN, FORWARD]  # first, so that its meeting is not one more


def test_weights_come_no_later_than_they_may():
    over = step("activation_backward", [other, y, y, dy], RELU)  # overwrites the rows that WEIGHTS reads
    assert order([WEIGHTS, over]) == [WEIGHTS, over]
    assert order([SUM, WEIGHTS, over]) == [SUM, WEIGHTS, over]  # what was waiting before goes first
    assert order([WEIGHTS, SUM, over]) == [WEIGHTS, over, SUM]


# ------------------------------------------------------------------------------------------------------ whole models


def program(stack, optimizer, features=33):
    model = dlcore.Sequential([layers.Input((features,)), *stack], device="cpu")
    model.compile(optimizer, "sparse_categorical_crossentropy", ["accuracy"])
    model.train_on_batch(np.zeros((3, features), np.float32), np.zeros(3, np.int64))
    return model.program


def dense():
    return [layers.Dense(7, "relu"), layers.Dense(5, "softmax")]


def test_the_optimizer_runs_on_gradients_in_the_cache():
    made = program(dense(), "adam")
    steps = steps_of(made.lists["train"], made)
    fused = [s for s in steps if s.op.name in ("dense_update", "sum_chunks_update")]
    offsets, _, _ = made.layout(1)
    weights = {s.operands[-3].name: int(s.scalars[0]) for s in fused}
    assert weights == {
        buffer.name: (offsets[buffer] - offsets[made.parameters]) // 4 for buffer in made.buffers["parameter"]
    }
    assert len(set(weights.values())) == 4
    assert not {"optimizer_update", "dense_backward_w", "sum_chunks"} & set(names(steps))
    rows = [k for k, s in enumerate(steps) if s.op.division in ("rows", "chunks")]
    assert max(rows) < min(steps.index(s) for s in fused)  # no row sees a weight of the next step
    assert names(with_barriers(steps)).count("barrier") == 2  # before the weights are changed, and at the end


def test_not_where_the_norm_of_all_gradients_comes_first():
    made = program(dense(), optimizers.Adam(global_clipnorm=1.0))
    steps = steps_of(made.lists["train"], made)
    assert names(steps)[-3:] == ["sum_of_squares", "clip", "optimizer_update"]
    assert not {"dense_update", "sum_chunks_update"} & set(names(steps))


def test_not_where_a_gradient_comes_from_elsewhere_or_rows_come_later():
    made = program(dense(), "adam")
    plain = steps_of(made.lists["train"])
    assert names(plain)[-1] == "optimizer_update"
    without = [s for s in plain if s.op.name != "sum_chunks"]
    assert fuse_updates(without, made) == without
    first_update = names(plain).index("dense_backward_w")
    moved = [*plain[: first_update + 1], plain[2], *plain[first_update + 1 :]]
    assert moved[first_update + 1].op.division == "rows"
    assert fuse_updates(moved, made) == moved
    assert fuse_updates(plain, made) != plain


def test_batch_norm_costs_a_meeting_each_way():
    stack = [layers.Dense(7), layers.BatchNormalization(), layers.Dense(5, "softmax")]
    made = program(stack, "adam")
    assert names(with_barriers(steps_of(made.lists["train"], made))).count("barrier") == 4


def test_evaluation_and_prediction_meet_seldom():
    made = program(dense(), "adam")
    assert names(with_barriers(steps_of(made.lists["test"]))).count("barrier") == 2  # before the records, at the end
    assert names(with_barriers(steps_of(made.lists["predict"]))).count("barrier") == 1


@pytest.mark.parametrize(
    ("rows", "threads", "divided"), [(16, 2, True), (32, 3, True), (511, 2, True), (512, 2, False), (1, 1, False)]
)
def test_few_rows_are_divided_by_columns(rows, threads, divided):
    made = program([layers.Dense(400), layers.Dense(400), layers.Dense(5, "softmax")], "adam", features=400)
    found = names(divide_by_columns(steps_of(made.lists["train"], made), rows, threads))
    assert found.count("dense_forward_columns") == 2 * divided
    assert found.count("dense_forward") == 3 - 2 * divided  # the last has too few weights
    assert found.count("dense_backward_x_columns") == divided


def test_mini_batches_share_a_table_unless_products_are_cut_in_another_way():
    made = program([layers.Dense(400), layers.Dense(5, "softmax")], "adam", features=400)
    tables = Tables(steps_of(made.lists["train"], made), lambda operand: None, 2000)
    assert tables.table(7, 1) is tables.table(100, 1) is tables.table(2000, 2)
    assert tables.table(2, 4) is tables.table(31, 4)
    different = [(7, 1), (31, 4), (1, 4), (31, 3), (100, 3), (511, 2), (1, 2), (31, 8)]
    assert len({id(tables.table(*one)) for one in different}) == len(different) == len(tables.made)
    for one in different:
        expected = names(divide_by_columns(tables.steps, *one))
        assert [name for name in names(tables.table(*one).steps) if name != "barrier"] == expected
    assert "dense_forward_columns" in names(tables.table(31, 4).steps)
    assert "dense_forward_columns" not in names(tables.table(1, 4).steps)  # a hundred columns a thread are too few


def test_arrays_are_known_to_tables_made_before_and_after():
    made = program([layers.Dense(400), layers.Dense(5, "softmax")], "adam", features=400)
    tables = Tables(steps_of(made.lists["predict"], made), lambda operand: None, 64)
    order = np.arange(60)
    before = tables.table(64, 1)
    tables.point(made.externs["order"], order)
    after = tables.table(16, 2)
    assert after is not before
    for table in (before, after):
        ((number, word),) = table.places[made.externs["order"]]
        assert table.words[number, word : word + 2].tolist() == [order.ctypes.data, 60]


def test_workspaces_are_as_large_as_the_largest_job_wants():
    found = Workspaces()
    first, other = found.find(2, 100), found.find(3, 100)
    assert found.find(2, 50) is found.find(2, 100) is first is not other
    assert found.find(2, 1000).scratch == 1000
    assert found.find(2, 100) is found.find(2, 1000)


@pytest.mark.parametrize("rows", [1, 30, 5000])
def test_seconds_are_those_of_products_or_of_memory(rows):
    """Of relu(x W + b), 400 to 300: rows are gathered, then the product reads weights, bias and samples, and writes."""
    made = program([layers.Dense(300, "relu")], "sgd", features=400)
    tables = Tables(steps_of(made.lists["predict"], made), lambda operand: None, 5000)
    gather = (4 * 400 * (rows + 1) + 8) / 2e10  # one number and one row stand for those it reads
    product = max(2 * 400 * 300 * rows / 6e10, 4 * (400 * 300 + 300 + (400 + 300) * rows) / 2e10)
    assert tables.seconds(rows) == pytest.approx(gather + product + 2 * 2e-8)


# ------------------------------------------------------------------- against the definition, one step with each other


def overlap(a, b):
    """Whether two memories share bytes; a whole region does with each of its buffers."""
    return a == b or getattr(a, "region", None) == b or getattr(b, "region", None) == a


def slow_order(steps):
    """Steps on weights as late as they may come: before a step on rows that one of them may not change places with."""
    late, result = [], []
    for s in steps:
        if s.op.division in ("parts", "one") and s.op.name != "optimizer_begin":
            late.append(s)
            continue
        for k, w in reversed([*enumerate(late)]):
            if any((x[1] or y[1]) and overlap(x[0], y[0]) for x in accesses(w) for y in accesses(s)):
                result += late[: k + 1]
                late = late[k + 1 :]
                break
        result.append(s)
    return result + late


def apart(x, y):
    """Whether threads need not meet between two accesses of the same memory."""
    if not (x[1] or y[1]):
        return True
    if "alike" in (x[2], y[2]):
        return {x[2], y[2]} <= {"alike", "all"}
    return x[2] == y[2] and x[2] in ("own rows", "first thread")


def slow_meetings(steps):
    """Before which steps threads meet."""
    meetings, since = [], []
    for k, s in enumerate(steps):
        if any(overlap(x[0], y[0]) and not apart(x, y) for x in since for y in accesses(s)):
            meetings.append(k)
            since = []
        since += accesses(s)
    return meetings


def random_steps(rng, length):
    """Random steps on few buffers, on their regions as a whole, and on rows."""

    def pick(things):
        return things[rng.integers(len(things))]

    def part(region, *shape):
        return [Buffer(f"{region} {k}", shape, x.dtype, region, k) for k in range(2)]

    def whole(region, *shape):
        return Buffer(region, shape, x.dtype, region, -1)

    rows = [buffer(f"rows {k}", ROWS, 5) for k in range(4)]
    w, dw, b = part("parameter", 5, 5), part("gradient", 5, 5), part("parameter", 5)
    many = [buffer(f"sums {k}", CHUNKS, 5) for k in range(2)]
    all_of_them = whole("parameter", 60), whole("gradient", 60), whole("slot", 2, 60)
    kinds = [
        lambda: step("dense_forward", [pick(rows), pick(w), pick(b), None, pick(rows)], RELU),
        lambda: step("activation_backward", [*(pick(rows) for _ in range(4))], RELU),
        lambda: step("dense_backward_z", [pick(rows), None, pick(rows), pick(rows), pick(many)], RELU),
        lambda: step("dense_backward_w", [pick(rows), pick(rows), pick(dw)]),
        lambda: step("dense_backward_x", [pick(rows), pick(w), pick(rows)]),
        lambda: step("sum_chunks", [pick(many), pick(b)]),
        lambda: step("optimizer_update", [*all_of_them, uniforms], ADAM),
        lambda: step("optimizer_begin", [hyper, count, uniforms], ADAM),
        lambda: step("sum_of_squares", [all_of_them[1], squares]),
        lambda: CLIP,
        lambda: RECORD,
        lambda: step("softmax_forward", [pick(rows), pick(rows)]),
    ]
    return [pick(kinds)() for _ in range(length)]


@pytest.mark.parametrize("seed", range(8))
def test_order_and_meetings_are_those_of_the_definition(seed):
    rng = np.random.default_rng(seed)
    for _ in range(40):
        steps = random_steps(rng, 24)
        ordered = order(steps)
        assert [id(s) for s in ordered] == [id(s) for s in slow_order(steps)]
        made = with_barriers(ordered)
        before = [k for k, s in enumerate(made) if s.op.name == "barrier"]
        assert [k - number for number, k in enumerate(before)] == [*slow_meetings(ordered), len(ordered)]
