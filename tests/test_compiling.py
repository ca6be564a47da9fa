"""Compilation in two processes: that the second one helps, and that nothing but time depends on it."""

import json
import os
import pathlib
import pickle
import subprocess
import sys
import textwrap
import threading
import types
from unittest import mock

import numba
import numpy as np
import pytest
from numba.core.errors import NumbaError

from dlcore.kernels import cache, compile
from dlcore.kernels.cpu import compiling, entries, table
from dlcore.kernels.cpu.steps import STEPS
from dlcore.kernels.instructions import Instruction
from dlcore.kernels.rule import find

ROOT = pathlib.Path(__file__).parent.parent

MODEL = """
import numpy as np
import dlcore
from dlcore.kernels import compile
from dlcore.kernels.cpu import compiling

names = []
compile.ON_COMPILE.append(names.append)

@dlcore.activation
def own(z):
    return 2.0 * z

@own.derivative
def _(z, y):
    return 2.0

dlcore.set_num_threads(2)
{before}
dlcore.set_seed(1)
model = dlcore.Sequential(
    [dlcore.layers.Input((8,)), dlcore.layers.Dense(16, own), dlcore.layers.Dense(3, "softmax")]
)
outputs = model.predict(np.random.default_rng(0).standard_normal((32, 8), np.float32))
assert len(names) == compile.STATISTICS["compiled"], (names, compile.STATISTICS)
print(hash(outputs.tobytes()), *(compile.STATISTICS[key] for key in ("elsewhere", "compiled", "loaded")))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A fresh process: what a model gives, functions from the second process, functions compiled and loaded."""

    path = tmp_path_factory.mktemp("compiling")
    script = path / "program.py"  # rules need a file
    elsewhere = path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "json.py").write_text("raise ImportError('not this one')")

    def run(folder, before=""):
        script.write_text(MODEL.format(before=textwrap.dedent(before)))
        here = {"DLCORE_CACHE_DIR": str(path / folder), "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0"}
        environment = {**os.environ, **here}
        environment.pop("NUMBA_ENABLE_CUDASIM", None)
        done = subprocess.run(
            [sys.executable, "-W", "error", script],
            cwd=elsewhere,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return [int(number) for number in done.stdout.split()]

    return run


@pytest.fixture
def predict(run, request):
    """The same, with a cache of the test's own."""
    return lambda before="": run(request.node.name, before)


@pytest.fixture(scope="module")
def alone(run):
    """The same without a second process."""
    found = run("alone", "compiling.why_alone = lambda: 'one is enough'")
    assert found[1:] == [0, found[2], 0]
    assert found[2] > compiling._WORTH
    return found


def test_a_second_process_compiles_beside_the_first_and_a_rule_of_the_user_stays_here(predict, alone):
    patient = """
        import pathlib, sys, time
        sys.path.append(pathlib.Path("nowhere"))  # nothing that a path may hold, but people do
        def patient(second, fingerprint, has_compiled=compiling._Second.has_compiled):
            for _ in range(6000):  # the other one is first, however slowly it starts
                if not second._taken:
                    time.sleep(0.01)
            return has_compiled(second, fingerprint)
        compiling._Second.has_compiled = patient
    """
    outputs, fresh, compiled, loaded = predict(before=patient)
    assert fresh >= 1
    assert loaded == 0  # what the second process compiled counts as compiled
    assert predict() == [outputs, 0, 0, compiled]
    assert alone == [outputs, 0, compiled, 0]


@pytest.mark.parametrize(
    "code",
    [
        "import os; os._exit(1)",
        "import sys; sys.stdin.buffer.read(1); print('noise'); print('done', 'nothing')",
        "print('may', '0' * 64, flush=True); input()",  # takes something and goes
        "import time; time.sleep(60)",  # says nothing: it is ended with the compilation
    ],
    ids=["fails", "noise", "leaves", "mute"],
)
def test_whatever_the_second_process_does(predict, alone, code):
    assert predict(before=f"compiling._START = {code!r}") == alone


def test_no_second_process_where_the_system_grants_none(predict, alone):
    refused = """
        def refuse(*_, **__):
            raise BlockingIOError(11, "Resource temporarily unavailable")
        compiling.subprocess.Popen = refuse
    """
    assert predict(before=refused) == alone


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        (None, None, None),
        ("frozen", True, "not run by a python"),
        ("executable", "/opt/editor/bin/editor", "not run by a python"),
        ("executable", None, "not run by a python"),
        ("executable", "/usr/bin/python3.13", None),
        ("executable", "C:/Python/Python.EXE", None),
    ],
)
def test_who_compiles_alone(monkeypatch, name, value, why):
    monkeypatch.setattr(compiling, "get_num_threads", lambda: 2)
    if name is not None:
        monkeypatch.setattr(sys, name, value, raising=False)
    found = compiling.why_alone()
    assert found is None if why is None else why in found


def test_one_thread_compiles_alone(monkeypatch):
    monkeypatch.setattr(compiling, "get_num_threads", lambda: 1)
    assert compiling.why_alone() == "1 thread"


@pytest.fixture
def second(monkeypatch):
    """A second process that is no process: lines go through pipes, and the test writes them."""
    outside, answers = os.pipe(), os.pipe()

    class Process:
        stdin, stdout = os.fdopen(answers[1], "wb"), os.fdopen(outside[0], "rb")
        killed = threading.Event()
        kill = killed.set

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.stdin.close()
            self.stdout.close()

    monkeypatch.setattr(compiling.subprocess, "Popen", lambda *_, **__: Process())
    made = compiling._Second([], 2)
    said, told = os.fdopen(outside[1], "w"), os.fdopen(answers[0], "rb")
    folder, threads, sketches = pickle.load(told)
    assert (folder, threads, sketches) == (str(cache.cache_directory()), 2, [])

    def ask(line):
        print(line, file=said, flush=True)
        return told.readline() if line.startswith("may") else None

    yield types.SimpleNamespace(process=made, ask=ask, leave=said.close, killed=Process.killed)
    said.close()
    told.close()


def later(call):
    """The result of ``call`` in another thread, when it comes."""
    results = []
    thread = threading.Thread(target=lambda: results.append(call()), daemon=True)
    thread.start()
    return thread, results


def test_each_function_is_compiled_once(second):
    assert second.process.has_compiled("a") is False  # taken here
    assert second.ask("may a") == b"no\n"
    assert second.ask("may b") == b"yes\n"
    thread, found = later(lambda: second.process.has_compiled("b"))
    thread.join(0.05)
    assert thread.is_alive()  # waits
    second.ask("done b")
    thread.join(10)
    assert found == [True]
    assert second.process.has_compiled("b") is True
    second.process.stop()
    assert second.killed.is_set()


def test_what_a_process_has_begun_when_it_goes_is_compiled_here(second):
    assert second.ask("may a") == second.ask("may b") == b"yes\n"
    second.ask("done a")
    thread, found = later(lambda: second.process.has_compiled("b"))
    thread.join(0.05)
    assert thread.is_alive()
    second.leave()
    thread.join(10)
    assert found == [False]
    assert second.process.has_compiled("a") is True


def test_patience_ends(second, monkeypatch):
    monkeypatch.setattr(compiling, "_PATIENCE", 0.01)
    assert second.ask("may a") == b"yes\n"
    assert second.process.has_compiled("a") is False
    assert second.ask("may a") == b"no\n"


def test_an_error_ends_the_second_process(monkeypatch):
    ended = []

    class Second:
        def __init__(self, steps, threads):
            pass

        def has_compiled(self, fingerprint):
            raise KeyboardInterrupt

        def stop(self):
            ended.append(True)

    missing = mock.Mock(missing=True)
    monkeypatch.setattr(compiling, "_Second", Second)
    monkeypatch.setattr(compiling, "_WORTH", 0)
    monkeypatch.setattr(compiling, "why_alone", lambda: None)
    monkeypatch.setattr(entries, "functions", lambda step, threads: mock.Mock(all=lambda: [missing]))
    with pytest.raises(KeyboardInterrupt):
        compiling.compiled([None], 2)
    assert ended == [True]


def test_a_second_process_knows_a_step_by_its_sketch():
    """What it would compile has the fingerprints of what is needed here, but for rules of the user."""
    x, w, y = (np.ones(shape, np.float32) for shape in ((4, 40), (40, 24), (4, 24)))
    mish, elu = find("activation", "mish"), find("activation", "elu")
    steps = table.steps_of(
        [Instruction("dense_forward", [x, w, None, None, y], mish), Instruction("activation_forward", [y, y], elu)]
    )

    def needed(steps):
        return {function.fingerprint for step in steps for function in entries.functions(step, 2).all()}

    sketches = pickle.loads(pickle.dumps([compiling._sketch(step) for step in steps]))
    assert needed(map(compiling._step, sketches)) == needed(steps)
    assert len(needed(steps)) >= 6
    other = Instruction("activation_forward", [y, y], elu.variant(alpha=0.5))  # not what has that name
    assert compiling._sketch(other)[2] is None
    assert entries.functions(compiling._step(compiling._sketch(other)), 2).strip is None


def said(folder, answer):
    """What a second process says to a request for two steps, if it gets one answer to all that it asks."""
    y = np.ones((4, 24), np.float32)
    sketch = compiling._sketch(Instruction("activation_forward", [y, y], find("activation", "mish")))
    unknown = STEPS["optimizer_begin"], np.dtype(np.float32), None, []  # of a rule that is not known there
    done = subprocess.run(
        [sys.executable, "-I", "-c", compiling._START, json.dumps([str(ROOT), *sys.path])],
        input=pickle.dumps((str(folder), 2, [sketch, unknown])) + answer * 9,
        env={**os.environ, "DLCORE_CACHE_DIR": str(folder.parent)},
        stdout=subprocess.PIPE,
        check=True,
    )
    return [line.split()[0] for line in done.stdout.decode().splitlines()]


def test_a_second_process_asks_before_it_compiles_into_the_same_folder(tmp_path):
    folder = tmp_path / cache.library_fingerprint()
    assert said(folder, b"no\n") == ["may"] * 3  # the whole job, a step, its rule
    assert not [*folder.iterdir()]
    assert said(folder, b"yes\n") == ["may", "done"] * 3
    assert len([*folder.glob("*.nbi")]) == 3
    assert said(folder, b"yes\n") == []
    assert said(tmp_path / "another", b"yes\n") == []  # as where files were edited while this process ran


def test_what_is_in_memory_is_not_missing(monkeypatch):
    strip = compile.strip(find("activation", "mish"), "value", np.float32)
    strip.compile()
    monkeypatch.setattr(strip._place, "holds_it", lambda: False)  # as where somebody empties the folder
    assert not strip.missing


def test_what_is_wrong_in_a_function_without_a_rule_is_said_by_numba():
    function = compile.make("def wrong(a):\n    return a.nothing\n", "wrong", {})
    with pytest.raises(NumbaError, match="nothing"):
        compile.Callback(function, numba.int64(numba.int64)).compile()
