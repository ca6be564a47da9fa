"""The command line: ``dlcore train | evaluate | predict | info | warmup | tune``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from . import commands, installation
from ._version import __version__
from .kernels.device import DeviceError, check_name
from .kernels.precision import PRECISIONS
from .tuning import tune as tune_products

_DEVICE = "auto (the default), cpu, cuda, or a GPU by number such as cuda:1"

_EPILOG = """\
examples:
  dlcore train                                     the handwritten digits that come with the package
  dlcore train houses.csv --target price           your own table; the task is inferred and stated
  dlcore train t.parquet --target y --layers 64 --no-batch-norm --optimizer sgd --learning-rate 0.05
  dlcore predict runs/20260102-030405 new.csv      predictions as CSV on standard output
"""


def _fraction(text: str) -> float:
    value = float(text)
    if not 0.0 <= value < 1.0:
        raise argparse.ArgumentTypeError(f"must lie in [0, 1), got {text}")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def _rate(text: str) -> float:
    value = float(text)
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be positive, got {text}")
    return value


def _seed(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, got {text}")
    return value


def _layers(text: str) -> list[int]:
    try:
        return [_positive(part) for part in text.split(",") if part.strip()]
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(f"must be numbers of units such as 256,128, got {text!r}") from None


def _device(text: str) -> str:
    try:
        return check_name(text)
    except DeviceError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("device ")) from None


class _Parser(argparse.ArgumentParser):
    """Errors in one line, without the usage."""

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(2, f"dlcore: error: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="dlcore",
        description="Train dense networks with fused kernels.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"dlcore {__version__}")
    sub = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)

    train = sub.add_parser("train", help="train a network on a table, or on the digits that come with the package")
    train.add_argument("file", nargs="?", help=".csv, .npz or .parquet; without it the handwritten digits")
    train.add_argument("--target", metavar="COLUMN", help="the column to predict (needed with a file)")
    train.add_argument("--task", choices=("classification", "regression"), help="instead of inferring it")
    train.add_argument("--drop", action="append", default=[], metavar="COLUMN", help="leave a column out; repeatable")
    train.add_argument("--out", metavar="DIR", help="where the four files go (default: runs/<time>)")
    train.add_argument("--device", type=_device, default="auto", metavar="D", help=_DEVICE)
    train.add_argument(
        "--layers", type=_layers, default=[256, 128], metavar="N,N", help="hidden units (default: 256,128)"
    )
    train.add_argument("--batch-norm", action=argparse.BooleanOptionalAction, default=True, help="default: on")
    train.add_argument("--dropout", type=_fraction, default=0.3, metavar="P", help="default: %(default)s")
    train.add_argument("--optimizer", default="adamw", metavar="NAME", help="default: %(default)s")
    train.add_argument("--learning-rate", type=_rate, metavar="LR", help="at the start; it falls as a cosine")
    train.add_argument("--batch-size", type=_positive, default=32, metavar="N", help="default: %(default)s")
    train.add_argument("--epochs", type=_positive, default=60, metavar="N", help="default: %(default)s")
    train.add_argument("--seed", type=_seed, default=0, metavar="N", help="default: %(default)s")
    train.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    train.set_defaults(call=commands.train)

    evaluate = sub.add_parser("evaluate", help="loss and metrics of a trained network on a table")
    evaluate.add_argument("run", metavar="RUN", help="the folder that train wrote")
    evaluate.add_argument("file", nargs="?", help="a table with the target column; without it the digits' test part")
    evaluate.add_argument("--device", type=_device, default="auto", metavar="D", help=_DEVICE)
    evaluate.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    evaluate.set_defaults(call=commands.evaluate)

    predict = sub.add_parser("predict", help="predictions of a trained network for a table, as CSV")
    predict.add_argument("run", metavar="RUN", help="the folder that train wrote")
    predict.add_argument("file", help="a table with the columns the network was trained on")
    predict.add_argument("--out", metavar="FILE", help="write there instead of standard output")
    predict.add_argument("--device", type=_device, default="auto", metavar="D", help=_DEVICE)
    predict.set_defaults(call=commands.predict)

    info = sub.add_parser("info", help="versions, processor, GPU, cache")
    info.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    info.set_defaults(call=installation.info)

    warmup = sub.add_parser("warmup", help="compile the kernels now, so that the first training starts at once")
    warmup.add_argument("--float64", action="store_true", help="those for float64 too")
    warmup.add_argument(
        "--cuda", metavar="ARCH", help="those for GPUs of these architectures too, such as 90 or 80,90; needs no GPU"
    )
    warmup.add_argument(
        "--many", action="store_true", help="with --cuda those of fit_many too, which trains many models at once"
    )
    warmup.set_defaults(call=installation.warmup)

    tune = sub.add_parser(
        "tune",
        help="measure the matrix products of a network on this GPU, and take the fastest plans from now on",
        description="Measure every plan of the matrix products of dense layers on this GPU, forward and backward, and "
        "what cuBLASLt offers for them where it is installed, and keep the fastest beside the compiled kernels. They "
        "differ in the order of sums: the last bits of what a model computes may change once. Results repeat bit for "
        "bit before and after.",
    )
    tune.add_argument(
        "sizes", nargs="+", type=_positive, metavar="SIZE", help="inputs and units of each layer: 784 256 128 10"
    )
    tune.add_argument("--batch-size", type=_positive, default=32, metavar="N", help="default: %(default)s")
    tune.add_argument(
        "--precision", choices=(*PRECISIONS, "float64"), default="float32", help="of the products; default: %(default)s"
    )
    tune.set_defaults(call=tune_products)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 2 for an error of the user's, 130 after Ctrl-C."""
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        arguments.call(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("dlcore: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, commands.CommandError, commands.DeviceError) as error:
        print(f"dlcore: error: {_one_line(error)}", file=sys.stderr)
        return 2
    return 0


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())
