# SPDX-License-Identifier: Apache-2.0
"""The programs that people asked about, as they wrote them, each in a process of its own under `evenkeel run`.

Their text was taken from web pages; what a page had lost is put back, and what it left open is filled in.
"""

import json
import re

import numpy as np
import pytest


@pytest.fixture
def ended(run_warm):
    """How a program ended that was run in a folder."""

    def program_ended(folder, program):
        (folder / "program.py").write_text(program)
        return run_warm("program.py", folder=folder)

    return program_ended


@pytest.fixture
def run(ended):
    """The lines a program prints, and its standard error; it must end well."""

    def lines_and_errors(folder, program):
        process = ended(folder, program)
        assert process.returncode == 0, process.stderr
        return process.stdout.splitlines(), process.stderr

    return lines_and_errors


# The page lost `trainable=False` of two variables, the `else:`, the links and what stood between angles.
HELPER = '''
"""A helper class for managing batch normalization state.

This class is designed to simplify adding batch normalization
(http://arxiv.org/pdf/1502.03167v3.pdf) to your model by
managing the state variables associated with it.

Important use note:  The function get_assigner() returns
an op that must be executed to save the updated state.
A suggested way to do this is to make execution of the
model optimizer force it, e.g., by:

  update_assignments = tf.group(bn1.get_assigner(),
                                bn2.get_assigner())
  with tf.control_dependencies([optimizer]):
    optimizer = tf.group(update_assignments)

"""

import tensorflow as tf


class ConvolutionalBatchNormalizer(object):
  """Helper class that groups the normalization logic and variables.

  Use:
      ewma = tf.train.ExponentialMovingAverage(decay=0.99)
      bn = ConvolutionalBatchNormalizer(depth, 0.001, ewma, True)
      update_assignments = bn.get_assigner()
      x = bn.normalize(y, train=training?)
      (the output x will be batch-normalized).
  """

  def __init__(self, depth, epsilon, ewma_trainer, scale_after_norm):
    self.mean = tf.Variable(tf.constant(0.0, shape=[depth]),
                            trainable=False)
    self.variance = tf.Variable(tf.constant(1.0, shape=[depth]),
                                trainable=False)
    self.beta = tf.Variable(tf.constant(0.0, shape=[depth]))
    self.gamma = tf.Variable(tf.constant(1.0, shape=[depth]))
    self.ewma_trainer = ewma_trainer
    self.epsilon = epsilon
    self.scale_after_norm = scale_after_norm

  def get_assigner(self):
    """Returns an EWMA apply op that must be invoked after optimization."""
    return self.ewma_trainer.apply([self.mean, self.variance])

  def normalize(self, x, train=True):
    """Returns a batch-normalized version of x."""
    if train:
      mean, variance = tf.nn.moments(x, [0, 1, 2])
      assign_mean = self.mean.assign(mean)
      assign_variance = self.variance.assign(variance)
      with tf.control_dependencies([assign_mean, assign_variance]):
        return tf.nn.batch_norm_with_global_normalization(
            x, mean, variance, self.beta, self.gamma,
            self.epsilon, self.scale_after_norm)
    else:
      mean = self.ewma_trainer.average(self.mean)
      variance = self.ewma_trainer.average(self.variance)
      local_beta = tf.identity(self.beta)
      local_gamma = tf.identity(self.gamma)
      return tf.nn.batch_norm_with_global_normalization(
          x, mean, variance, local_beta, local_gamma,
          self.epsilon, self.scale_after_norm)
'''
HELPER_IN_USE = """
import json
import numpy as np

ewma = tf.train.ExponentialMovingAverage(decay=0.99)
bn = ConvolutionalBatchNormalizer(2, 0.001, ewma, True)
update_assignments = bn.get_assigner()
y = tf.placeholder(tf.float32, [None, 3, 3, 2])
trained, served = bn.normalize(y, train=True), bn.normalize(y, train=False)
optimizer = tf.train.GradientDescentOptimizer(0.1).minimize(tf.reduce_mean((trained - y) ** 2))
data = np.random.RandomState(0).normal(3, 2, [8, 3, 3, 2]).astype(np.float32)
with tf.Session() as session:
  session.run(tf.initialize_all_variables())
  for step in range(2000):
    session.run(optimizer, {y: data})
    session.run(update_assignments)
  got = session.run([trained, served], {y: data})
print(json.dumps([float(abs(got[0] - got[1]).max()), float(abs(got[0]).max())]))
"""


def test_the_helper_class(run, tmp_path):
    lines, _ = run(tmp_path, HELPER + HELPER_IN_USE)
    apart, largest = json.loads(lines[-1])
    assert largest > 1
    assert apart < 1e-4 * largest


# Both pages show the lines of training and of prediction; the network between them is theirs to leave out.
LAYERS = """
import sys
import json
import numpy as np
import tensorflow as tf

x = tf.placeholder(tf.float32, [None, 4])
y = tf.placeholder(tf.float32, [None, 1])
{phase}
pre = tf.layers.dense(x_norm, 1)
loss = tf.reduce_mean(tf.pow(pre - y, 2), name='loss')
numbers = np.random.RandomState(0)
data = numbers.normal(5, 3, [64, 4]).astype(np.float32)
feed = {{x: data, y: data.sum(1, keepdims=True)}}
{rest}
"""
TRAINING = {
    "phase": "x_norm = tf.layers.batch_normalization(x, training=True)",
    "rest": """
optimizer = tf.train.AdamOptimizer(0.1)
update_ops = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
train_op = optimizer.minimize(loss)
train_op = tf.group([train_op, update_ops])
sess = tf.Session()
sess.run(tf.global_variables_initializer())
for step in range(1500):
    sess.run(train_op, feed)
saver = tf.train.Saver(tf.global_variables())
saver.save(sess, "your_path/model")
print(json.dumps([float(value) for value in sess.run(pre, feed)[:, 0]]))
""",
}
PREDICTION = {
    "phase": "x_norm = tf.layers.batch_normalization(x, training=False)",
    "rest": """
sess = tf.Session()
saver = tf.train.Saver(tf.global_variables())
saver.restore(sess, tf.train.latest_checkpoint("your_path"))
print(json.dumps([float(value) for value in sess.run(pre, feed)[:, 0]]))
""",
}


def test_what_layers_trained_is_what_is_served(run, tmp_path):
    trained, said = run(tmp_path, LAYERS.format(**TRAINING))
    served, _ = run(tmp_path, LAYERS.format(**PREDICTION))
    assert "never updated" not in said
    np.testing.assert_allclose(json.loads(served[-1]), json.loads(trained[-1]), rtol=0.02, atol=0.02)


MLP = """
import numpy as np
import tensorflow as tf
from tensorflow.examples.tutorials.mnist import input_data


# define our typical fully-connected + batch normalization + nonlinearity set-up
def dense(x, size, scope):
    return tf.contrib.layers.fully_connected(x, size,
                                             activation_fn=None,
                                             scope=scope)


def dense_batch_relu(x, phase, scope):
    with tf.variable_scope(scope):
        h1 = tf.contrib.layers.fully_connected(x, 100,
                                               activation_fn=None,
                                               scope='dense')
        h2 = tf.contrib.layers.batch_norm(h1,
                                          center=True, scale=True,
                                          is_training=phase,
                                          scope='bn')
        return tf.nn.relu(h2, 'relu')


tf.reset_default_graph()
x = tf.placeholder('float32', (None, 784), name='x')
y = tf.placeholder('float32', (None, 10), name='y')
phase = tf.placeholder(tf.bool, name='phase')

h1 = dense_batch_relu(x, phase,'layer1')
h2 = dense_batch_relu(h1, phase, 'layer2')
logits = dense(h2, 10, 'logits')

with tf.name_scope('accuracy'):
    accuracy = tf.reduce_mean(tf.cast(
            tf.equal(tf.argmax(y, 1), tf.argmax(logits, 1)),
            'float32'))

with tf.name_scope('loss'):
    loss = tf.reduce_mean(
        tf.nn.softmax_cross_entropy_with_logits(logits=logits, labels=y))


def train(mnist):
    update_ops = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
    with tf.control_dependencies(update_ops):
        # Ensures that we execute the update_ops before performing the train_step
        train_step = tf.train.GradientDescentOptimizer(0.01).minimize(loss)
    sess = tf.Session()
    sess.run(tf.global_variables_initializer())

    history = []
    iterep = 500
    for i in range(iterep * 30):
        x_train, y_train = mnist.train.next_batch(100)
        sess.run(train_step,
                 feed_dict={'x:0': x_train,
                            'y:0': y_train,
                            'phase:0': 1})
        if (i + 1) % iterep == 0:
            epoch = (i + 1)/iterep
            tr = sess.run([loss, accuracy],
                          feed_dict={'x:0': mnist.train.images,
                                     'y:0': mnist.train.labels,
                                     'phase:0': 1})
            t = sess.run([loss, accuracy],
                         feed_dict={'x:0': mnist.test.images,
                                    'y:0': mnist.test.labels,
                                    'phase:0': 0})
            history += [[epoch] + tr + t]
            print(history[-1])
    return history


def main(argv=None):
    mnist = input_data.read_data_sets("MNIST_data/", one_hot=True)
    train(mnist)


if __name__ == '__main__':
    tf.app.run()
"""


def idx(values):
    return bytes([0, 0, 8, values.ndim]) + np.asarray(values.shape, ">i4").tobytes() + values.astype("uint8").tobytes()


@pytest.fixture
def mnist(tmp_path):
    """Files laid out like MNIST: ten patterns of 28 x 28 pixels, each many times, with noise."""
    numbers = np.random.default_rng(0)
    patterns = numbers.integers(0, 128, [10, 28, 28])
    (tmp_path / "MNIST_data").mkdir()
    for part, count in (("train", 6000), ("t10k", 500)):
        labels = numbers.integers(0, 10, count)
        images = patterns[labels] + numbers.integers(0, 128, [count, 28, 28])
        (tmp_path / "MNIST_data" / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (tmp_path / "MNIST_data" / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    return tmp_path


def test_the_table_of_epochs(run, mnist):
    # A twelfth of its steps: the last moving averages are still warming up then, and the table shows it.
    lines, said = run(mnist, MLP.replace("iterep = 500", "iterep = 42"))
    rows = [[float(cell) for cell in re.sub(r"np\.float32|[][()]", "", line).split(",")] for line in lines]
    assert [row[0] for row in rows] == list(range(1, 31))
    assert rows[-1][2] == 1.0 and rows[-1][4] > 0.98
    assert rows[-1][3] < rows[0][3]
    assert "never updated" not in said


def test_without_its_files_it_says_which(ended, tmp_path):
    process = ended(tmp_path, MLP)
    assert process.returncode == 1
    assert "train-labels-idx1-ubyte" in process.stderr and "Nothing is downloaded" in process.stderr


# The page has fragments: what stands between them is filled in.
KERAS = """
import numpy as np
import tensorflow
import tensorflow as tf

data = np.random.RandomState(0)
tf_batch_data = tf.placeholder(tf.float32, [None, 5])
tf_batch_labels = tf.placeholder(tf.float32, [None, 1])
inputs = tf.keras.layers.Input(tensor=tf_batch_data)
h = tf.keras.layers.Dense(8, use_bias=False)(inputs)
h = tf.keras.layers.BatchNormalization(momentum=0.9, name='batchnorm_layer_name')(h)
model = tf.keras.Model(inputs, tf.keras.layers.Dense(1)(tf.keras.layers.Activation('relu')(h)))
loss = tf.reduce_mean(tf.square(model.output - tf_batch_labels))
optimizer = tf.train.GradientDescentOptimizer(0.05)

update_ops  = model.updates
with tf.control_dependencies(update_ops):
     train_op = optimizer.minimize( loss )

tf_sess = tf.Session()
tf.keras.backend.set_session(tf_sess)
tf_sess.run(tf.global_variables_initializer())
for step in range(300):
    bd = data.normal(3, 2, [32, 5])
    bl = bd[:, :1] - bd[:, 1:2]
    # train
    lo, _ = tf_sess.run(fetches=[loss, train_op],
                        feed_dict={tf_batch_data: bd,
                                   tf_batch_labels: bl,
                                   tensorflow.keras.backend.learning_phase(): 1})
print(lo)
# eval
bd = data.normal(3, 2, [1000, 5])
lo = tf_sess.run(fetches=[loss],
                 feed_dict={tf_batch_data: bd,
                            tf_batch_labels: bd[:, :1] - bd[:, 1:2],
                            tensorflow.keras.backend.learning_phase(): 0})
print(lo[0])

w = model.get_layer('batchnorm_layer_name').get_weights()
# Order: [gamma, beta, mean, std]
for j in range(len(w[0])):
    gamma = w[0][j]
    beta = w[1][j]
    run_mean = w[2][j]
    run_std = w[3][j]
    w[2][j] = run_mean + 1
    w[3][j] = 4 * run_std

model.get_layer('batchnorm_layer_name').set_weights(w)
now = tf_sess.run(model.get_layer('batchnorm_layer_name').weights)
print([a.tolist() == b.tolist() for a, b in zip(now, w)])
"""


def test_keras_with_an_optimizer_of_tensorflow(run, tmp_path):
    (trained, served, kept), errors = run(tmp_path, KERAS)
    assert float(trained) < 0.5 and float(served) < 0.5
    assert kept == "[True, True, True, True]"
    assert "never updated" not in errors
