"""The CPU engine as a whole: the same bits for every number of threads, from any thread and in any process."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest

import dlcore
from dlcore import kernels, layers, optimizers
from dlcore.kernels.cpu import eager, table
from dlcore.kernels.cpu.threads import pool

ROOT = pathlib.Path(__file__).parent.parent
LOSS = "sparse_categorical_crossentropy"


def data(rows=90, features=33, classes=10, dtype=np.float32):
    rng = np.random.default_rng(1)
    return rng.standard_normal((rows, features)).astype(dtype), rng.integers(0, classes, rows)


def plain(dtype=None):
    return [layers.Dense(37, "relu", dtype=dtype), layers.Dense(21, "tanh"), layers.Dense(10, "softmax")]


def normed(dtype=None):
    return [
        layers.Flatten(),
        layers.Dense(53, use_bias=False, dtype=dtype),
        layers.BatchNormalization(),
        layers.Activation("relu"),
        layers.Dropout(0.3),
        layers.Dense(19, "gelu"),
        layers.BatchNormalization(),
        layers.Dense(10, "softmax"),
    ]


def wide(dtype=None):
    return [layers.Dense(401, "tanh", dtype=dtype), layers.Dense(499, "relu"), layers.Dense(10, "softmax")]


# name -> layers, optimizer, rows in all, features, rows of a mini-batch (never a divisor)
NETWORKS = {
    "plain": (plain, lambda: optimizers.SGD(0.1), 90, 33, 32),
    "normed": (normed, lambda: optimizers.Adam(0.01), 90, 33, 64),
    "large batch": (normed, lambda: optimizers.AdamW(0.01), 1000, 7, 601),
    "few wide rows": (wide, lambda: optimizers.SGD(0.1, momentum=0.9), 10, 333, 4),
    "a block of wide rows and one": (wide, lambda: optimizers.Adam(0.01), 400, 333, 257),
    "clipped": (normed, lambda: optimizers.Adam(0.01, global_clipnorm=0.5), 90, 33, 48),
    "clipped, wide": (wide, lambda: optimizers.Adam(0.01, global_clipnorm=0.5), 10, 333, 4),
    "a row": (plain, lambda: optimizers.Adam(0.01), 3, 1, 1),
}


def network(name, dtype="float32"):
    make, optimizer, rows, features, batch = NETWORKS[name]
    model = dlcore.Sequential([layers.Input((features,)), *make(dtype)], device="cpu")
    model.compile(optimizer(), LOSS, ["accuracy"])
    return model, data(rows, features, dtype=dtype), batch


def bits(model):
    return {name: value.tobytes() for name, value in model._state().items()}


def train(name, dtype="float32"):
    """Everything that two epochs, two single steps, an evaluation and a prediction give."""
    dlcore.set_seed(3)
    model, (x, y), batch = network(name, dtype)
    history = model.fit(x, y, batch, epochs=2, verbose=0)
    single = [model.train_on_batch(x, y) for _ in range(2)]
    return bits(model), history.history, single, model.evaluate(x, y, batch), model.predict(x, batch).tobytes(), model


@pytest.fixture
def threads(monkeypatch):
    """``threads(n)``: jobs take n threads, however little there is to do; it returns the numbers that they took."""

    def force(n):
        taken = set()

        def enter(asked):
            granted = original(asked)
            taken.add(granted)
            return granted

        monkeypatch.setattr(pool, "__enter__", enter)
        monkeypatch.setattr(table, "_SECONDS_PER_THREAD", 1e-30)
        monkeypatch.setattr("dlcore.kernels.cpu.threads._num_threads", n)
        return taken

    original = pool.__enter__
    return force


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rows", [1, 97, 257])
def test_a_share_of_one_row_has_the_bits_it_has_among_others(threads, rows, dtype):
    """97 rows are 3 x 32 + 1 for four threads; 257 are a block of 256 and one row more for a single thread."""
    rng = np.random.default_rng(4)
    x, w, b = (rng.standard_normal(s).astype(dtype) for s in ((rows, 700), (700, 50), (50,)))
    results = []
    for n in (1, 2, 3, 4):
        threads(n)
        eager._local.instructions.clear()  # what was prepared before has chosen its number of threads
        results.append(kernels.dense_forward(x, w, b, "tanh"))
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_bits_for_every_number_of_threads(threads, name, dtype):
    results = []
    for n in (1, 2, 3, 4, 2):
        taken = threads(n)
        *result, model = train(name, dtype)
        assert taken == {n}
        found = {s.op.name for plan in model._engine._tables["train"].made.values() for s in plan.steps}
        assert ("dense_forward_columns" in found) == ("dense_backward_x_columns" in found) == ("wide" in name and n > 1)
        assert ("dense_update" in found) == ("sum_chunks_update" in found) == ("clipped" not in name)
        results.append(result)
    for other in results[1:]:
        assert other == results[0]
    assert np.isfinite(results[0][1]["loss"]).all()


# -------------------------------------------------------------------------------------------------- other processes


def python(code, timeout=120, **environment):
    """Run ``code`` in a process of its own, which must end by itself and well."""
    code = "import test_engine as t\nfrom test_engine import *\n" + textwrap.dedent(code)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), **environment}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


FORCE = """
    table._SECONDS_PER_THREAD = 1e-30
    dlcore.set_num_threads(2)
"""


@pytest.mark.slow
def test_every_index_is_checked_where_that_is_asked_for(tmp_path):
    out = python(
        f"""
        import numba
        x, y = data()
        for name in ("normed", "clipped"):
            *result, model = train(name)
            np.savez({str(tmp_path)!r} + f"/{{name}}.npz", *model.get_weights())
        assert eager.checking()
        model = network("normed")[0]
        dlcore.fit_many([model, network("normed")[0]], x, y)
        out = np.zeros((1, 33), np.float32)
        try:
            eager.execute("gather_rows", [x, np.array([90]), out])
        except IndexError as error:
            print(error)
        """,
        timeout=300,
        NUMBA_BOUNDSCHECK="1",
    )
    assert "out of bounds" in out
    for name in ("normed", "clipped"):
        with np.load(tmp_path / f"{name}.npz") as saved:
            for checked, weight in zip(saved.values(), train(name)[-1].get_weights(), strict=True):
                np.testing.assert_allclose(checked, weight, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_trains_as_its_parent_did():
    out = python(
        FORCE
        + """
    import multiprocessing, os
    expected = train("normed")[:-1]  # with the parent's pool
    def child():
        assert train("normed")[:-1] == expected
    pid = os.fork()
    if pid == 0:
        try:
            child()
            os._exit(7)
        finally:
            os._exit(1)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    print(process.exitcode)
    child()
    """
    )
    assert out.split() == ["7", "0"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_goes_on_with_the_steps_of_its_parent():
    out = python(
        FORCE
        + """
    import os
    def begin():
        dlcore.set_seed(3)
        model, (x, y), _ = network("normed")
        def go_on():
            return [model.train_on_batch(x, y) for _ in range(3)]
        go_on()
        (step,) = model._passes.values()
        assert [*step.run._jobs] == [2]  # of two threads
        return go_on
    expected = begin()()
    go_on = begin()
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(7 if go_on() == expected else 1)
        finally:
            os._exit(1)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """
    )
    assert out.split() == ["7"]


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGINT to one process")
@pytest.mark.parametrize("n", [1, 2])
def test_a_signal_ends_a_long_fit_and_the_model_goes_on(n):
    code = f"""
        import sys
        import test_engine as t
        from test_engine import *
        table._SECONDS_PER_THREAD = 1e-30
        dlcore.set_num_threads({n})
        model, (x, y), batch = network("normed")
        model.fit(x, y, batch, verbose=0)
        print("ready", flush=True)
        try:
            model.fit(np.tile(x, (1000, 1)), np.tile(y, 1000), batch, epochs=10**9, verbose=0)
        except KeyboardInterrupt:
            print("interrupted")
        history = model.fit(x, y, batch, epochs=2, verbose=0)
        print(np.isfinite(history.history["loss"]).all(), len(threading.enumerate()))
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.3)  # it is in the middle of the fit
            process.send_signal(signal.SIGINT)
            out, error = process.communicate(timeout=60)
        finally:
            process.kill()
    assert out.split() == ["interrupted", "True", str(n)], error


# --------------------------------------------------------------------------------------------- several Python threads


def at_once(*calls):
    """The results of the calls, each from a thread of its own, all begun together."""
    results, gate = [None] * len(calls), threading.Barrier(len(calls))

    def work(k):
        gate.wait()
        results[k] = calls[k]()

    workers = [threading.Thread(target=work, args=(k,)) for k in range(len(calls))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return results


def test_two_threads_train_a_model_each(threads):
    threads(2)

    def prepare():
        dlcore.set_seed(1)
        result = [network(name) for name in ("normed", "clipped")]
        for model, _, _ in result:
            model._ensure_built()
        return result

    def fit(model, xy, batch):
        history = model.fit(*xy, batch, epochs=40, shuffle=False, verbose=0).history
        return history, bits(model)

    expected = [fit(*one) for one in prepare()]
    for _ in range(3):
        first, second = prepare()
        assert at_once(lambda: fit(*first), lambda: fit(*second)) == expected  # noqa: B023  called before the next


def test_two_threads_share_a_model(threads):
    threads(2)
    (alone, (x, y), batch), (shared, _, _) = network("normed"), network("normed")
    for model in (alone, shared):
        dlcore.set_seed(1)
        model._ensure_built()
    losses = [alone.train_on_batch(x, y)[0] for _ in range(200)]
    both = at_once(*[lambda: [shared.train_on_batch(x, y)[0] for _ in range(100)]] * 2)
    assert sorted(both[0] + both[1]) == sorted(losses)
    assert bits(shared) == bits(alone)

    # one predicts, on fewer samples and on more than there was room for, while the other trains and evaluates
    def look():
        return [
            (shared.predict(x[: 1 + k % 5]).shape, shared.predict(np.tile(x, (1 + k // 10, 1))).shape)
            for k in range(40)
        ]

    def fit(model):
        history = model.fit(x, y, batch, epochs=60, shuffle=False, verbose=0).history
        return history, model.evaluate(x, y)

    expected = fit(alone)
    result, shapes = at_once(lambda: fit(shared), look)
    assert result == expected
    assert shapes == [((1 + k % 5, 10), (90 * (1 + k // 10), 10)) for k in range(40)]
    assert bits(shared) == bits(alone)


@pytest.mark.parametrize("n", [1, 2])
def test_two_threads_run_one_instruction(threads, n):
    threads(n)
    rng = np.random.default_rng(0)
    problems = [[rng.standard_normal(s) for s in ((200, 200), (200, 200), (200,))] for _ in range(2)]
    expected = [kernels.dense_forward(*problem, "tanh") for problem in problems]
    calls = [lambda p=p: [kernels.dense_forward(*p, "tanh") for _ in range(100)] for p in problems]
    for results, right in zip(at_once(*calls), expected, strict=True):
        assert all(np.array_equal(result, right) for result in results)


def test_what_is_bound_stays_and_histories_begin_anew():
    x, y = data()
    model = dlcore.Sequential(plain(), device="cpu")
    model.compile("sgd", LOSS)
    model.fit(x, y, 30, verbose=0)
    bound = model._engine
    assert np.shares_memory(bound.fetch("samples"), x)
    losses = bound.fetch_histories()["history_loss"]
    assert losses.all()
    bound.bind_histories(["history_loss"], 3)
    assert bound.fetch("history_loss") is losses
    assert not losses.any()
    bound.bind_histories(["history_loss"], 4)
    assert not bound.fetch("history_loss").any()
    assert len(bound.fetch("history_loss")) == 4
    other = x[::-1].copy()
    assert model.evaluate(other, y) != model.evaluate(x, y)
    assert model.evaluate(other, y) == model.evaluate(other.copy(), y.copy())


# ---------------------------------------------------------------------------------------------------------- denormals


@pytest.mark.parametrize("n", [1, 2])
def test_denormals_are_flushed_in_the_engine_and_nowhere_else(threads, n):
    taken = threads(n)
    model = dlcore.Sequential([layers.Dense(40), layers.Dense(40), layers.Dense(1)], device="cpu")
    model.compile(optimizers.SGD(1.0), "mse")
    x = np.full((64, 8), 1e-20, np.float32)
    model.build((8,))
    tiny = np.float32(1e-20)
    first, *others = (np.ones_like(w) if w.ndim == 2 else w for w in model.get_weights())
    model.set_weights([first * tiny, *others])

    def calculate():
        losses = model.fit(x, np.zeros((64, 1), np.float32), epochs=3, verbose=0).history["loss"]
        return model.predict(x), losses, tiny * tiny

    assert 0 < (x[0] @ first * tiny)[0] < np.finfo(np.float32).tiny  # what the first layer computes is a denormal
    for outputs, losses, product in (calculate(), *at_once(calculate, calculate)):
        assert not outputs.any()  # else a normal number, of 1600 denormals
        assert losses == [0.0] * 3
        assert 0 < product < np.finfo(np.float32).tiny
    assert all(np.array_equal(w, was) for w, was in zip(model.get_weights()[1:], others, strict=True))
    assert taken <= {1, n}
    assert n in taken
