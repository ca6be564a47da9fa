"""The benchmark against peers: its rows, and its command line."""

import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from bench import __main__ as command
from bench import cases, peers, timing

ROOT = pathlib.Path(__file__).parent.parent


def test_every_column_has_a_peer_and_every_row_a_name_of_its_own():
    assert {label for case in cases.CASES for label in case.columns} == set(peers.COLUMNS)
    assert {column.worker for column in peers.COLUMNS.values()} == set(peers.MODULES)
    assert len({case.name for case in cases.CASES}) == len(cases.CASES)
    assert sum(case.kind == "dense" for case in cases.CASES) == 6 * 5 * 5


def test_flops_and_parameters_of_a_step():
    step = cases.find("digits")
    assert step.parameters == 64 * 128 + 128 + 128 * 10 + 10
    assert step.flops == 2 * 32 * (2 * 64 * 128 + 3 * 128 * 10)  # forward and dW; forward, dW and dx
    with_norm = cases.find("digits-norm")
    assert with_norm.parameters == 64 * 128 + 128 * 128 + 128 * 10 + 4 * 128 + 10


def test_outputs_are_those_of_the_network_of_a_step():
    from bench.peers import ours

    case = cases.find("predict-32")
    assert case.title == "outputs of 64-128-10, 32 samples"
    assert case.flops == 2 * 32 * (64 * 128 + 128 * 10)
    assert case.moved == 4 * (64 * 128 + 128 + 128 * 10 + 10 + 32 * (64 + 10))
    outputs = ours.build(case, "step").call()
    np.testing.assert_array_equal(outputs, ours.network(cases.step("digits")).predict(case.data()))
    assert outputs.shape == (32, 10)
    assert cases.find("predict-1").title == "outputs of 64-128-10, 1 sample"


def test_rows_are_chosen_by_name_and_by_kind():
    assert [case.name for case in cases.select(["norm-64x256", "tiny"])] == ["tiny", "norm-64x256"]
    assert {case.kind for case in cases.select(["adam"])} == {"adam"}
    assert len(cases.select(["dense"], quick=True)) == 27
    assert [case.name for case in cases.select(["dense-8x256x256"], quick=True)] == ["dense-8x256x256"]


def test_many_models_are_one_call_where_dlcore_has_it(monkeypatch):
    import dlcore
    from bench.peers import ours

    asked = []

    def fit_many(models, x, y, **options):
        asked.append((len(models), len(x), len(y), options))

    case = cases.find("models-16")
    monkeypatch.setattr(dlcore, "fit_many", fit_many, raising=False)
    work = ours.build(case, "together")
    work.call()
    samples = case.fit_steps * 32
    assert asked == [(16, samples, samples, {"epochs": 1, "batch_size": 32, "shuffle": True})]
    assert work.runs == 16 * case.fit_steps
    monkeypatch.delattr(dlcore, "fit_many")
    with pytest.raises(cases.Missing, match="not there"):
        ours.build(case, "together")


def test_list_names_rows_and_targets(capsys):
    assert command.main(["peers", "--list"]) == 0
    text = capsys.readouterr().out
    assert all(case.name in text for case in cases.CASES)
    assert "20x torch" in text
    assert "median 1.0x, worst 0.8x" in text


@pytest.mark.parametrize("arguments", [["peers", "sideways"], ["conditions", "sideways"]])
def test_an_unknown_name_is_one_line_and_exit_code_2(arguments):
    done = subprocess.run(
        [sys.executable, "-m", "bench", *arguments], capture_output=True, text=True, cwd=ROOT, env={**os.environ}
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "'sideways'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_report_that_could_not_be_written_is_refused_before_anything_is_measured(capsys, tmp_path):
    assert command.main(["peers", "tiny", "--json", str(tmp_path / "no" / "such.json")]) == 2
    assert "there is no folder" in capsys.readouterr().err


def test_an_interrupt_shows_the_rows_before_it(capsys, monkeypatch):
    def measure(result, *_):
        if result.case.name != "tiny":
            raise KeyboardInterrupt
        result.figures["dlcore"] = timing.Figures([1e-5], [])

    monkeypatch.setattr(timing, "measure", measure)
    monkeypatch.setattr(command, "_ceilings", list)
    assert command.main(["peers", "tiny", "digits"]) == 130
    assert "10.0 us" in capsys.readouterr().out


def test_an_interrupt_of_the_longer_look_says_how_far_it_came(capsys, monkeypatch):
    asked = []

    def measure(result, columns, workers, plan):
        asked.append(result.case.name)
        if len(asked) == 5:
            raise KeyboardInterrupt
        for label in ("dlcore", "torch"):
            result.figures.setdefault(label, timing.Figures()).quiet.append(1e-3)

    monkeypatch.setattr(timing, "measure", measure)
    monkeypatch.setattr(command, "_ceilings", list)
    assert command.main(["peers", "adam-1e4", "adam-1e6", "adam-1e7"]) == 130
    assert asked == ["adam-1e4", "adam-1e6", "adam-1e7", "adam-1e4", "adam-1e6"]
    assert "; 2 rows below" in capsys.readouterr().out


def test_rows_near_their_targets_get_a_longer_look(capsys, monkeypatch):
    asked = []
    ratios = {"dense-1x64x64": [0.7, 1.1], "dense-8x64x64": [1.1], "adam-1e4": [5.5, 4.8], "adam-200x2k": [13.0]}

    def measure(result, columns, workers, plan):
        name = result.case.name
        asked.append((name, plan.rounds))
        for label, seconds in (("dlcore", 1e-3), ("torch", 1e-3 * ratios[name].pop(0))):
            result.figures.setdefault(label, timing.Figures()).quiet.extend([seconds] * plan.rounds)

    monkeypatch.setattr(timing, "measure", measure)
    monkeypatch.setattr(command, "_ceilings", list)
    assert command.main(["peers", *ratios, "--rounds", "8"]) == 0
    first = [("adam-1e4", 8), ("adam-200x2k", 8), ("dense-1x64x64", 4), ("dense-8x64x64", 4)]
    assert asked == [*first, ("adam-1e4", 16), ("dense-1x64x64", 16)]
    text = capsys.readouterr().out
    assert "median 1.10x, worst 1.10x" in text  # of 4 bursts at 0.7 and 16 at 1.1
    assert re.search(r"4\.8x +\| 5x +\| MISS", text)
    assert "2 rows below 1.25 times their target measured on, all their bursts count" in text
