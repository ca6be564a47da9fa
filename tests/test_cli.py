"""The command line, in this process: what it prints, what it writes, what it refuses."""

import json

import numpy as np
import pytest

from dlcore import installation
from dlcore.cli import main
from dlcore.kernels import compile
from dlcore.kernels.cpu import compiling
from dlcore.kernels.device import capability, simulated

QUICK = ["--epochs", "2", "--layers", "8"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_csv(path, rows=60, *, text=True, regression=False):
    rng = np.random.default_rng(0)
    lines = ["size,colour,label"]
    for _ in range(rows):
        size, colour = rng.normal(), rng.choice(["red", "green"])
        positive = size + (colour == "red") > 0.5
        label = f"{size * 2 + 1:.4f}" if regression else ("yes" if positive else "no")
        lines.append(f"{size:.4f},{colour if text else 1},{label}")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_the_digits_reach_97_percent_and_leave_four_files(folder, capsys):
    assert main(["train"]) == 0
    out = capsys.readouterr().out
    (run,) = (folder / "runs").iterdir()
    assert sorted(p.name for p in run.iterdir() if p.name != "curve.png") == [
        "config.json", "history.json", "model.safetensors"]  # fmt: skip
    config = json.loads((run / "config.json").read_text())
    assert config["test"]["accuracy"] >= 0.97
    assert f"accuracy {config['test']['accuracy']:.4f}" in out
    history = json.loads((run / "history.json").read_text())
    assert len(history["val_loss"]) == 60
    assert main(["evaluate", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == pytest.approx(config["test"])


def test_the_curve_is_a_picture(folder):
    pytest.importorskip("matplotlib")
    assert main(["train", *QUICK, "--json"]) == 0
    (run,) = (folder / "runs").iterdir()
    picture = (run / "curve.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 20_000


def test_json_is_one_object_and_a_seed_repeats(capsys):
    results = []
    for seed in ("5", "5", "6"):
        assert main(["train", *QUICK, "--seed", seed, "--json", "--out", f"run{len(results)}"]) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert results[0]["final"] == results[1]["final"] != results[2]["final"]
    assert set(results[0]["files"]) >= {"history.json", "model.safetensors", "config.json"}


def test_a_table_with_text_columns_from_end_to_end(folder, capsys):
    write_csv(folder / "t.csv", 200)
    assert main(["train", "t.csv", "--target", "label", "--out", "run", "--epochs", "30", "--layers", "16"]) == 0
    out = capsys.readouterr().out
    assert "Classification, because the target 'label' holds text: 2 classes." in out
    assert main(["evaluate", "run", "t.csv", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] > 0.9
    (folder / "new.csv").write_text("colour,size\nred,2.0\ngreen,-3\n")
    assert main(["predict", "run", "new.csv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "label,probability"
    assert [line.split(",")[0] for line in lines[1:]] == ["yes", "no"]
    assert main(["predict", "run", "new.csv", "--out", "p.csv"]) == 0
    assert (folder / "p.csv").read_text().splitlines() == lines


def test_a_regression_in_the_units_of_the_target(folder, capsys):
    write_csv(folder / "t.csv", 300, regression=True)
    arguments = ["--epochs", "60", "--layers", "32", "--no-batch-norm", "--dropout", "0"]
    assert main(["train", "t.csv", "--target", "label", "--out", "run", *arguments]) == 0
    assert "Regression, because the target 'label' holds numbers that are not whole." in capsys.readouterr().out
    (folder / "new.csv").write_text("size,colour\n1.0,red\n0.0,green\n")
    assert main(["predict", "run", "new.csv"]) == 0
    values = [float(v) for v in capsys.readouterr().out.split()[1:]]
    assert values == pytest.approx([3.0, 1.0], abs=0.4)


def test_a_column_may_be_left_out(folder, capsys):
    write_csv(folder / "t.csv", regression=True)
    assert main(["train", "t.csv", "--target", "label", "--drop", "colour", "--out", "run", "--json", *QUICK]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert notes[-1].startswith("Loss and error are in standard deviations of 'label'; one is ")
    (folder / "new.csv").write_text("size\n1.0\n")
    assert main(["predict", "run", "new.csv"]) == 0
    assert main(["train", "t.csv", "--target", "label", "--drop", "color", *QUICK]) == 2
    assert "did you mean 'colour'?" in capsys.readouterr().err


def test_npz(folder, capsys):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((50, 3))
    np.savez(folder / "t.npz", x=x, y=(x[:, 0] > 0).astype(int))
    assert main(["train", "t.npz", "--target", "y", "--json", *QUICK]) == 0
    assert json.loads(capsys.readouterr().out)["notes"][0].startswith("Classification")


def test_parquet(folder, capsys):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rng = np.random.default_rng(0)
    data = {"a": rng.standard_normal(50), "b": ["u", "v"] * 25, "y": ["p", "q"] * 25}
    parquet.write_table(pyarrow.table(data), folder / "t.parquet")
    assert main(["train", "t.parquet", "--target", "y", "--json", *QUICK]) == 0
    json.loads(capsys.readouterr().out)


HEADER = "a,b,y\n"
ROWS = "".join(f"{i},{i * i % 7},{'pq'[i % 2]}\n" for i in range(20))
WORKS = {
    "a text column": HEADER + "".join(f"{i},{'uvw'[i % 3]},{'pq'[i % 2]}\n" for i in range(20)),
    "a constant column": HEADER + "".join(f"{i},7,{'pq'[i % 2]}\n" for i in range(20)),
    "semicolons": (HEADER + ROWS).replace(",", ";"),
    "a byte order mark": "\ufeff" + HEADER + ROWS,
    "blank lines": HEADER + ROWS.replace("\n", "\n\n", 3),
}


@pytest.mark.parametrize("text", WORKS.values(), ids=WORKS)
def test_tables_that_work(folder, capsys, text):
    (folder / "t.csv").write_text(text, encoding="utf-8")
    assert main(["train", "t.csv", "--target", "y", "--json", *QUICK]) == 0
    json.loads(capsys.readouterr().out)


BAD = {
    "a missing value": (HEADER + ROWS + "3,,p\n", "line 22: column 'b' is missing (empty)"),
    "not a number": (HEADER + ROWS + "3,nan,p\n", "line 22: column 'b' is missing ('nan')"),
    "infinity": (HEADER + ROWS + "3,inf,p\n", "line 22: column 'b' is infinite"),
    "one class only": (HEADER + "1,2,p\n3,4,p\n" * 10, "the target 'y' is 'p' in every row"),
    "no such target": ("a,b,why\n" + ROWS, "no column 'y'; the columns are 'a', 'b', 'why'"),
    "an empty file": ("", "the file is empty"),
    "a header alone": (HEADER, "a header and no rows of data"),
    "two rows": (HEADER + "1,2,p\n3,4,q\n", "2 rows of data; training needs at least 10"),
    "a short line": (HEADER + ROWS + "3,4\n", "line 22 has 2 values; the header has 3"),
    "a name twice": ("a,a,y\n" + ROWS, "the column name 'a' appears 2 times"),
    "nothing varies": ("a,y\n" + "1,p\n1,q\n" * 10, "no input column is left beside the target 'y'"),
    "a constant number": ("a,y\n" + "".join(f"{i},2.5\n" for i in range(20)), "the target 'y' is 2.5 in every row"),
}


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_tables_that_are_refused_in_one_line(folder, capsys, text, message):
    (folder / "t.csv").write_text(text)
    assert main(["train", "t.csv", "--target", "y", *QUICK]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("dlcore: error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err
    assert not (folder / "runs").exists()


WRONG = {
    "no file": (["train", "x.csv", "--target", "y"], "no such file"),
    "a folder": (["train", "d.csv", "--target", "y"], "is a folder"),
    "a kind": (["train", "x.txt", "--target", "y"], "no such file"),
    "bytes": (["train", "bytes.csv", "--target", "y"], "not UTF-8 text"),
    "a broken npz": (["train", "broken.npz", "--target", "y"], "not an NPZ file"),
    "target forgotten": (["train", "t.csv"], "--target is missing; columns of t.csv: 'a', 'b', 'y'"),
    "target alone": (["train", "--target", "y"], "--target goes with a file"),
    "dropout": (["train", "--dropout", "1"], "argument --dropout: must lie in [0, 1)"),
    "layers": (["train", "--layers", "8,x"], "argument --layers: must be numbers of units"),
    "optimizer": (["train", "--optimizer", "adm"], "unknown optimizer 'adm'; did you mean 'adam'?"),
    "device": (["train", "--device", "tpu"], "argument --device: must be one of auto, cpu, cuda or a GPU"),
    "seed": (["train", "--seed", "-1"], "argument --seed: must not be negative"),
    "no command": ([], "the following arguments are required: COMMAND"),
    "out is a file": (["train", "--out", "t.csv/run"], "t.csv"),
    "no run": (["evaluate", "nowhere"], "is not a folder that 'dlcore train' wrote"),
    "predict without run": (["predict", "nowhere", "t.csv"], "is not a folder that 'dlcore train' wrote"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_wrong_calls_end_in_one_line_and_exit_code_2(folder, capsys, arguments, message):
    (folder / "t.csv").write_text(HEADER + ROWS)
    (folder / "d.csv").mkdir()
    (folder / "bytes.csv").write_bytes(b"a,b\n\xff\xfe\n")
    (folder / "broken.npz").write_bytes(b"PK nonsense")
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("dlcore: error: ")
    assert captured.err.count("\n") == 1
    assert message in captured.err


def test_predicting_names_what_does_not_fit(folder, capsys):
    write_csv(folder / "t.csv")
    assert main(["train", "t.csv", "--target", "label", "--out", "run", "--json", *QUICK]) == 0
    for text, message in {
        "size\n1\n": "no column 'colour'; the columns are 'size'",
        "size,colour\n1,blue\n": "line 2: column 'colour' has the unknown category 'blue'; known are 'green', 'red'",
        "size,colour\nbig,red\n": "line 2: column 'size'",
    }.items():
        capsys.readouterr()
        (folder / "new.csv").write_text(text)
        assert main(["predict", "run", "new.csv"]) == 2
        assert message in capsys.readouterr().err


def test_interrupt_is_one_line(capsys, monkeypatch):
    from dlcore import commands

    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "_load", interrupted)
    assert main(["train"]) == 130
    assert capsys.readouterr().err == "dlcore: stopped\n"


@pytest.mark.parametrize(("threads", "said"), [(1, "1 process (1 thread)"), (2, "2 processes")])
def test_info_says_how_kernels_are_compiled(capsys, monkeypatch, threads, said):
    monkeypatch.setattr(compiling, "get_num_threads", lambda: threads)
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["compilation"] == said


@pytest.mark.parametrize(("elsewhere", "said"), [(0, " s into "), (2, " s, 2 of them in a second process, into ")])
def test_warmup_says_who_compiled(capsys, monkeypatch, elsewhere, said):
    monkeypatch.setattr(installation, "_exercise", lambda dtype: [])
    monkeypatch.setattr(compile, "STATISTICS", {"compiled": 5, "elsewhere": elsewhere, "loaded": 3})
    assert main(["warmup"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("compiled 5 kernels in ")
    assert said in out


def test_info_and_help_and_warmup(capsys):
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {"dlcore", "numpy", "numba", "processor", "gpu", "cache"} <= set(facts)
    assert main(["info"]) == 0
    assert "gpu" in capsys.readouterr().out
    for command in ([], ["train"], ["predict"], ["evaluate"], ["info"], ["warmup"], ["tune"]):
        assert main([*command, "--help"]) == 0
        assert "usage: dlcore" in capsys.readouterr().out
    assert main(["--version"]) == 0
    capsys.readouterr()
    assert main(["warmup"]) == 0
    assert "kernels" in capsys.readouterr().out
    if capability() is None:
        assert main(["warmup", "--many"]) == 2
        assert "--many needs --cuda, or a GPU" in capsys.readouterr().err
    if simulated():
        assert main(["warmup", "--cuda", "90"]) == 2
        assert "--cuda cannot be used: NUMBA_ENABLE_CUDASIM" in capsys.readouterr().err
    assert compile.ON_COMPILE == []  # nothing goes on talking
