# SPDX-License-Identifier: Apache-2.0
"""Files of whole Keras models: looked at as models where they load, and as checkpoints where they do not."""

import json
import zipfile

import numpy as np
import pytest

from conftest import GOLDENS, NAME

if NAME == "numpy":
    pytest.skip("Keras computes with a framework", allow_module_level=True)
pytest.importorskip("h5py")

import keras

import evenkeel as ek
from evenkeel.doctor import subjects
from evenkeel.doctor.evidence import Normalizer, Observed, Structure, Unseen
from evenkeel.doctor.options import Options
from evenkeel.errors import InputError


@pytest.fixture(autouse=True)
def _fresh_names_and_seed(backend):
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)


def numbers():
    return np.random.default_rng(0).normal(1, 2, (16, 4)).astype("float32")


def model():
    layers = [keras.layers.Dense(3), ek.BatchNormalization(momentum=0.5, name="bn")]
    found = keras.Sequential([keras.Input([4]), *layers], name="model")
    for _ in range(8):
        found(numbers(), training=True)
    return found


def saved(folder, name="model.keras"):
    path = folder / name
    model().save(path)
    return path


def broken(path):
    """Of a class that nobody has."""
    old = path.rename(path.with_name("old"))
    with zipfile.ZipFile(old) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            text = source.read(name)
            if name == "config.json":
                config = json.loads(text)
                dense = next(layer for layer in config["config"]["layers"] if layer["class_name"] == "Dense")
                dense.update(module=None, class_name="Secret", registered_name="mine>Secret")
                text = json.dumps(config)
            target.writestr(name, text)
    return path


def evidence(path, wanted, **options):
    return [item for item in subjects.of(path).evidence(path, Options(**options)) if isinstance(item, wanted)]


def test_a_file_that_loads_is_looked_at_as_a_model(tmp_path):
    path = saved(tmp_path)
    assert subjects.of(path).KIND == subjects.of(str(path)).KIND == "file of a Keras model"
    (structure,) = evidence(path, Structure)
    assert [place.name for place in structure.places] == [found.name for found in evidence(path, Normalizer)]
    report = ek.diagnose(path)
    assert not report.errors + report.warnings and len(report.normalizers) == 1, str(report)


def test_an_old_file_does_not_load_until_it_is_converted(tmp_path):
    old = GOLDENS / "checkpoints" / "d1_keras_mlp" / "model.h5"
    assert [found.name for found in evidence(old, Normalizer)] == ["bn_0", "bn_1"] and not evidence(old, Structure)
    (said,) = evidence(old, Unseen)
    assert said.why.startswith("GlorotUniform") and said.remedy.startswith(f"evenkeel convert {old} NEW.keras")
    ek.convert(old, tmp_path / "new.keras")
    (structure,) = evidence(tmp_path / "new.keras", Structure)
    assert [place.name.rpartition("/")[2] for place in structure.places] == ["bn_0", "bn_1"]


def test_narrow_statistics_show_in_the_file_alone(tmp_path):
    import h5py

    path = saved(tmp_path, "model.h5")
    assert "EK107" not in [finding.rule for finding in ek.diagnose(path).findings]
    with h5py.File(path, "r+") as file:
        found = []
        file["model_weights"].visit(lambda name: found.append(name) if "moving_mean" in name else None)
        values = file["model_weights"][found[0]][:]
        del file["model_weights"][found[0]]
        file["model_weights"][found[0]] = values.astype("float16")
    assert "EK107" in [finding.rule for finding in ek.diagnose(path).findings]


def test_data_is_looked_at(tmp_path):
    (found,) = evidence(saved(tmp_path), Observed, data=numbers())
    assert [item.normalizer.name for item in found.seen] == ["bn"]


def test_a_file_that_does_not_load_is_looked_at_as_a_checkpoint(tmp_path):
    path = broken(saved(tmp_path))
    (found,) = evidence(path, Normalizer)
    assert found.moving_mean.any() and found.momentum == 0.5 and not evidence(path, Structure)
    assert any("Secret" in item.why and "evenkeel convert" in item.remedy for item in evidence(path, Unseen))


def test_data_for_a_file_that_does_not_load(tmp_path):
    with pytest.raises(InputError, match="Secret"):
        evidence(broken(saved(tmp_path)), Normalizer, data=numbers())


@pytest.mark.parametrize("name", ["model.weights.h5", "missing.keras"])
def test_other_files_are_left_to_others(tmp_path, name):
    if name.endswith("h5"):
        model().save_weights(tmp_path / name)
    assert subjects.of(tmp_path / name).KIND == "checkpoint"
