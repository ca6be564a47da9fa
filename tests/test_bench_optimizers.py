"""The benchmark of every optimizer: its arithmetic, what it runs, and its command line; no time is judged."""

import json

import pytest

from bench import __main__ as command
from bench import optimizers, roofline
from dlcore.kernels import find
from dlcore.kernels.rule import REGISTRY, builtin

# what the norms of the first three are of, and what Adafactor reads for its means and then for its norms
AGAIN = {"lamb": 4, "lars": 2, "normalized_sgd": 1, "adafactor": 3, "sm3": 0}


def row(name, seconds, slots=2, elements=1000, again=0, triads=(28_000.0,)):
    return optimizers.Row(name, slots, again, elements, seconds, triads)


def test_bytes_are_those_of_weights_gradient_and_state():
    """Adam reads w, g, m, v and writes w, m, v: 28 bytes a parameter; gradient descent 12."""
    assert row("adam", (1.0,)).moved == 28 * 1000
    assert row("sgd", (1.0,), slots=0).moved == 12 * 1000
    assert row("normalized_sgd", (1.0,), slots=0, again=1).moved == 16 * 1000
    assert row("adam", (2.0, 1.0, 4.0)).share == 0.5  # the middle round
    assert row("adam", (2.0, 1.0, 4.0), triads=(7_000.0, 56_000.0, 14_000.0)).share == 1.0  # over the middle triad


def test_the_nearest_to_the_limit_comes_first_and_slow_ones_are_marked():
    text = optimizers.table([row("slow", (2.0,)), row("fast", (1.0,)), row("edge", (1.0 / 0.85,))])
    names = [line.split("|")[1].strip() for line in text.splitlines()[2:]]
    assert names == ["fast", "edge", "slow"]
    assert [("below 85%" in line) for line in text.splitlines()[2:]] == [False, False, True]
    assert "50%" in text


@pytest.mark.parametrize("name", ["sgd", "adam", "amsgrad", *AGAIN])
def test_what_is_measured_is_one_step_a_round(name, monkeypatch):
    from dlcore.kernels.cpu.engine import Engine

    runs, engines, run = [], [], Engine.run

    def counted(engine, *arguments):
        runs.append(arguments)
        engines.append(engine)
        before = engine.read(engine.program.parameters)
        run(engine, *arguments)
        assert (engine.read(engine.program.parameters) != before).any()

    monkeypatch.setattr(Engine, "run", counted)
    triads = iter((1.0, 2.0, 3.0, 4.0))
    found = optimizers.measure(name, 1000, 3, lambda: next(triads))
    assert (found.name, found.slots, found.elements) == (name, len(find("optimizer", name).slots), 1000)
    assert found.again == AGAIN.get(name, 0)
    assert len(found.seconds) == 3
    assert found.triads == (2.0, 3.0, 4.0)  # beside the rounds that count
    assert runs == [("update", 1, 1, 1, 0)] * 4


def test_the_command_on_few_parameters(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(roofline.Triad, "rate", lambda triad: 1e10)
    path = tmp_path / "rows.json"
    assert command.main(["optimizers", "sgd", "adam", "--elements", "64", "--rounds", "2", "--json", str(path)]) == 0
    text = capsys.readouterr().out
    assert "10.0 to 10.0 in this run, the quickest 10.0" in text
    assert "64 parameters; the median of 2 rounds" in text
    found = json.loads(path.read_text())
    assert [each["name"] for each in found["rows"]] == ["sgd", "adam"]
    assert found["rows"][1]["moved"] == 28 * 64


def test_all_rules_are_measured_and_an_interrupt_shows_those_before_it(capsys, monkeypatch):
    asked = []

    def measure(name, elements, rounds, triad):
        asked.append(name)
        if len(asked) > 80:
            raise KeyboardInterrupt
        return row(name, (1.0,), triads=(1e10,))

    monkeypatch.setattr(optimizers, "measure", measure)
    monkeypatch.setattr(roofline.Triad, "rate", lambda triad: 1e10)
    assert command.main(["optimizers"]) == 130
    assert asked == sorted(rule.name for rule in REGISTRY["optimizer"].values() if builtin(rule))[:81]
    captured = capsys.readouterr()
    assert captured.out.count("below 85%") == 80
    assert "interrupted" in captured.err


def test_a_rule_that_nobody_knows_is_one_line(capsys):
    assert command.main(["optimizers", "adm"]) == 2
    assert capsys.readouterr().err == "unknown optimizer 'adm'; did you mean 'adam'?\n"
    assert command.main(["optimizers", "adam", "--json", "/no/such/folder/x.json"]) == 2
    assert "there is no folder" in capsys.readouterr().err
