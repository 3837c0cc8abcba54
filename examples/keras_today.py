# SPDX-License-Identifier: Apache-2.0
"""The page "BatchNormalization in Keras", answered in Keras 3; proves that the file serves what was trained."""

import sys
import tempfile

import keras
from proof import proven

import evenkeel
from evenkeel.workloads.data import digits

EPOCHS, BATCH = 20, 100


def network():
    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()])
    for _ in range(2):
        model.add(keras.layers.Dense(100, use_bias=False))
        # The momentum of 0.99 would still be under way after the few hundred steps of this program.
        model.add(evenkeel.BatchNormalization(momentum=0.9, activation="relu"))
    model.add(keras.layers.Dense(10))
    return model


def train(data, path):
    """Logits of the test images in inference and in training phase, from the model that was trained."""
    keras.utils.set_random_seed(0)
    model = network()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.003), loss)
    model.fit(data.train_images, data.train_labels, batch_size=BATCH, epochs=EPOCHS, verbose=0)
    model.save(path)
    logits = model.predict(data.test_images, verbose=0)
    # Last, because it is an update: in Keras 3 whoever calls with training=True moves the statistics.
    batch = keras.ops.convert_to_numpy(model(data.test_images, training=True))
    return logits, batch


def serve(images, path):
    return keras.saving.load_model(path).predict(images, verbose=0)


def main(folder):
    data, path = digits(), f"{folder}/model.keras"
    trained, batch = train(data, path)
    return proven(data.test_labels, trained=trained, served=serve(data.test_images, path), batch=batch)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        sys.exit(not main(sys.argv[1] if sys.argv[1:] else temporary))
