"""Names that nobody knows: the error proposes what was meant, and never lists dozens."""

import pytest

from dlcore import constraints, initializers, layers, losses, metrics, optimizers, regularizers, schedules
from dlcore.kernels.names import unknown
from dlcore.kernels.rule import REGISTRY, RuleError

TYPOS = [
    ("optimizer 'adm'; did you mean 'adam'?", lambda: optimizers.get("adm")),
    ("optimizer 'rmspop'; did you mean 'rmsprop'?", lambda: optimizers.get("RMSpop")),
    ("activation 'sofmax'; did you mean 'softmax'?", lambda: layers.Dense(3, "sofmax")),
    ("activation 'hardswih'; did you mean 'hardswish'?", lambda: layers.Activation("hardswih")),
    ("loss 'mean_sqared_error'; did you mean 'mean_squared_error'?", lambda: losses.get("mean_sqared_error")),
    ("loss 'Hubr'; did you mean 'huber'?", lambda: losses.get("Hubr")),
    ("metric 'acuracy'; did you mean 'accuracy'?", lambda: metrics.get("acuracy", losses.get("mse"))),
    ("initializer 'glorot_unifrom'; did you mean 'glorot_uniform'?", lambda: initializers.get("glorot_unifrom")),
    ("constraint 'max_nrm'; did you mean 'max_norm'?", lambda: constraints.get("max_nrm")),
    ("regularizer 'l1-l2'; did you mean 'L1L2'?", lambda: regularizers.get("l1-l2")),
    ("schedule 'exponental'; did you mean 'exponential'?", lambda: schedules.LearningRateSchedule("exponental", 0.1)),
    ("layer 'Dens'; did you mean 'Dense'?", lambda: layers.from_config("Dens", {})),
]


@pytest.mark.parametrize(("text", "call"), TYPOS, ids=[text.split(";")[0] for text, _ in TYPOS])
def test_what_was_meant_is_proposed(text, call):
    with pytest.raises(ValueError, match=r"^unknown ") as caught:
        call()
    assert str(caught.value) == f"unknown {text}"


@pytest.mark.parametrize("kind", ["activation", "loss", "optimizer"])
def test_where_nothing_is_close_dozens_of_names_are_not_listed(kind):
    from dlcore.kernels import find

    with pytest.raises(RuleError) as caught:
        find(kind, "qqqqqq")
    message = str(caught.value)
    assert len(message) < 120
    assert f"the {len(REGISTRY[kind])} that are known" in message


def test_a_part_of_names_finds_them_and_a_dozen_are_listed():
    assert unknown("thing", "he", ["he_normal", "he_uniform"]).endswith("did you mean 'he_normal' or 'he_uniform'?")
    assert unknown("thing", "q", ["b", "a"]) == "unknown thing 'q'; known: a, b"
    assert unknown("thing", 3, ["b", "a"]) == "unknown thing 3; known: a, b"
