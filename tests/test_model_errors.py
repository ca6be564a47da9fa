"""The layer API: what is refused, with one clear error, and what it leaves as it was."""

import numpy as np
import pytest
from small_models import blobs, compiled, small

import dlcore
from dlcore import layers, optimizers


def test_files_that_are_no_model(tmp_path):
    from safetensors.numpy import save_file

    with pytest.raises(FileNotFoundError, match="there is no model file"):
        dlcore.load(tmp_path / "missing")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match="is not a model file"):
        dlcore.load(tmp_path / "text")
    save_file({"a": np.zeros(3)}, tmp_path / "other")
    with pytest.raises(ValueError, match="holds tensors, but not a model of dlcore"):
        dlcore.load(tmp_path / "other")


def test_a_loss_that_is_not_finite_is_reported():
    x, y = blobs()
    model = dlcore.Sequential([layers.Dense(1)])
    model.compile(optimizers.SGD(1e30), "mse")
    with pytest.warns(RuntimeWarning, match="the loss became"):
        model.fit(x, y, epochs=3, verbose=0)


BAD = {
    "no loss": (lambda x, y: small().fit(x, y), "no loss yet"),
    "loss forgotten": (lambda x, y: small().compile("adam"), "loss is missing"),
    "unknown loss": (lambda x, y: small().compile("adam", "mean_sq"), "unknown loss 'mean_sq'; did you mean 'mean_squared_error' or 'mean_squared_logarithmic_error'?"),
    "unknown optimizer": (lambda x, y: small().compile("adm", "mse"), "unknown optimizer 'adm'"),
    "unknown metric": (lambda x, y: small().compile("adam", "mse", ["acuracy"]), "unknown metric 'acuracy'; did you mean 'accuracy'?"),
    "accuracy of a regression": (lambda x, y: small().compile("adam", "mse", ["accuracy"]), "does not fit the loss"),
    "metrics as a string": (lambda x, y: small().compile("adam", "mse", "mae"), "metrics must be a list"),
    "features": (lambda x, y: compiled().fit(x[:, :3], y), r"x has shape \(60, 3\); this model expects \(samples, 4\)"),
    "a vector": (lambda x, y: compiled().fit(x[:, 0], y), r"x has shape \(60,\); expected \(samples, features\)"),
    "text": (lambda x, y: compiled().fit(x.astype(str), y), "x has dtype <U32; expected numbers"),
    "ragged": (lambda x, y: compiled().fit([[1, 2], [3]], y), "x is not an array"),
    "fewer targets": (lambda x, y: compiled().fit(x, y[:-1]), "expected 60 samples, as many as x has"),
    "a class too many": (lambda x, y: compiled().fit(x, y + 1), "y holds class 3; the model has 3 outputs"),
    "a negative class": (lambda x, y: compiled().fit(x, y - 1), "y holds class -1"),
    "half a class": (lambda x, y: compiled().fit(x, y + 0.5), "y holds fractions"),
    "no samples": (lambda x, y: compiled().fit(x[:0], y[:0]), "x has no samples"),
    "batch size": (lambda x, y: compiled().fit(x, y, batch_size=0), "batch_size must be at least 1, got 0"),
    "epochs": (lambda x, y: compiled().fit(x, y, epochs=1.5), "epochs must be an integer"),
    "split": (lambda x, y: compiled().fit(x, y, validation_split=1.0), r"validation_split must lie in \[0, 1\)"),
    "tiny split": (lambda x, y: compiled().fit(x, y, validation_split=0.001, verbose=0), "leaves one side empty"),
    "weights": (lambda x, y: compiled().fit(x, y, sample_weight=np.ones(3)), r"sample_weight has shape \(3,\)"),
    "negative weights": (lambda x, y: compiled().fit(x, y, sample_weight=-np.ones(60)), "must not be negative"),
    "a class without weight": (lambda x, y: compiled().fit(x, y, class_weight={0: 1.0}), "no weight for class 1"),
    "binary range": (lambda x, y: _binary().fit(x, y + 3), "y ranges from 3 to 5; binary_crossentropy expects 0 to 1"),
    "units": (lambda x, y: layers.Dense(0), "units must be a positive integer, got 0"),
    "rate": (lambda x, y: layers.Dropout(1.0), r"rate must lie in \[0, 1\)"),
    "momentum": (lambda x, y: layers.BatchNormalization(momentum=1.0), r"momentum must lie in \[0, 1\)"),
    "epsilon": (lambda x, y: layers.LayerNormalization(epsilon=0.0), "epsilon must be positive, got 0.0"),
    "initializer": (lambda x, y: layers.Dense(3, kernel_initializer="he"), "unknown initializer 'he'; did you mean 'he_normal', 'he_uniform'"),
    "dtype": (lambda x, y: layers.Dense(3, dtype="float16"), "dtype must be float32 or float64, got float16"),
    "images into dense": (lambda x, y: dlcore.Sequential([layers.Dense(2)]).build((3, 3)), r"add Flatten\(\) before"),
    "learning rate": (lambda x, y: optimizers.Adam(-1.0), "learning_rate must be finite and at least 0, got -1.0"),
    "beta": (lambda x, y: optimizers.Adam(beta_1=1.0), "beta_1 must be below 1"),
    "clipping": (lambda x, y: optimizers.Adam(global_clipnorm=0.0), "global_clipnorm must be positive or None"),
    "nesterov alone": (lambda x, y: optimizers.SGD(nesterov=True), "needs a momentum above 0"),
    "option": (lambda x, y: optimizers.Adam(rho=0.9), "adam has no parameter 'rho'"),
    "seed": (lambda x, y: dlcore.set_seed(-1), "seed must not be negative"),
    "seed kind": (lambda x, y: dlcore.set_seed("1"), "seed must be an integer"),
    "device": (lambda x, y: dlcore.Sequential(device="gpu"), "device must be one of auto, cpu, cuda or a GPU such as cuda:1, got 'gpu'"),
    "set_weights count": (lambda x, y: compiled().set_weights([]), "got 0 arrays; this model has 8"),
    "set_weights shape": (lambda x, y: compiled().set_weights(compiled().get_weights()[::-1]), r"has shape \(3,\); expected \(4, 8\)"),
    "not a layer": (lambda x, y: dlcore.Sequential(["dense"]), "expected a layer, got str"),
    "one layer twice": (lambda x, y: dlcore.Sequential([_SHARED, _SHARED]), "is in the model already"),
    "no layers": (lambda x, y: dlcore.Sequential().build((3,)), "the model has no layers"),
    "shape unknown": (lambda x, y: dlcore.Sequential([layers.Dense(2)]).summary(), "shape of the input is not known"),
}  # fmt: skip
_SHARED = layers.Dense(4)


def _binary():
    model = small("sigmoid", 1)
    model.compile("adam", "binary_crossentropy")
    return model


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_clear_error(call, message):
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        call(*blobs())


def test_layers_of_different_dtypes_are_refused():
    model = small(dtype="float64")
    model.add(layers.Dense(1, dtype="float32"))
    with pytest.raises(ValueError, match="layers have different dtypes: float32, float64"):
        model.build((4,))


def test_a_step_changes_no_weight_where_the_input_is_refused():
    x, y = blobs()
    model = compiled()
    model.fit(x, y, verbose=0)
    before = model.get_weights()
    with pytest.raises(ValueError, match="y holds class 3"):
        model.train_on_batch(x, y + 1)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
