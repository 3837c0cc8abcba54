# SPDX-License-Identifier: Apache-2.0
"""Whether what was trained is what is served."""

import numpy as np

BEST, CLOSE, SAME = 0.95, 0.02, 1e-4


def proven(labels, *, trained, served, batch):
    """Prints the numbers in one line, and whether they are as they should be.

    Args:
        labels: of the test images, shape `(count,)`.
        trained: logits of the program that trained, in its inference phase, shape `(count, classes)`.
        served: logits of a fresh model that has nothing but the file.
        batch: logits of the training phase, where the statistics are those of the test images themselves.
    """
    accuracy, training_phase = (float(np.mean(logits.argmax(axis=1) == labels)) for logits in (served, batch))
    difference = float(np.abs(served - trained).max())
    same = accuracy >= BEST and abs(accuracy - training_phase) <= CLOSE and difference <= SAME
    print(
        f"served: accuracy {accuracy:.3f}, in the training phase {training_phase:.3f}; "
        f"largest difference from the trained logits {difference:.1e}: {'the same' if same else 'NOT the same'} model"
    )
    return same
