# SPDX-License-Identifier: Apache-2.0
"""`tf.layers.conv2d` and its family: plain, separable and transposed convolutions."""

from __future__ import annotations

from typing import Any, ClassVar

import tensorflow as tf

from evenkeel.tf1.layers import arguments, layout
from evenkeel.tf1.layers.base import InputSpec, Layer
from evenkeel.tf1.layers.functions import function_of


class _Layer(Layer):
    """What all convolutions share: the window, the layout, the bias and the activation."""

    rank: ClassVar[int]
    causal: ClassVar[bool] = False

    def __init__(
        self,
        filters: int,
        kernel_size: arguments.Sizes,
        strides: arguments.Sizes,
        padding: str,
        data_format: str | None,
        dilation_rate: arguments.Sizes,
        activation: Any,
        use_bias: bool,
        bias_initializer: Any,
        bias_regularizer: Any,
        bias_constraint: Any,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.filters = arguments.count("filters", filters)
        self.kernel_size = arguments.sizes("kernel_size", kernel_size, self.rank)
        self.strides = arguments.sizes("strides", strides, self.rank)
        self.padding = arguments.padding(padding, causal=self.causal)
        self.data_format = layout.data_format(data_format)
        self.dilation_rate = arguments.sizes("dilation_rate", dilation_rate, self.rank)
        self.activation = arguments.activation(activation)
        self.use_bias = use_bias
        self.bias_initializer = arguments.initializer(bias_initializer)
        self.bias_regularizer = bias_regularizer
        self.bias_constraint = bias_constraint
        self.bias = None
        self.input_spec = InputSpec(ndim=self.rank + 2)

    def build(self, input_shape: Any) -> None:
        input_shape = self.begin_build(input_shape)
        axis = -1 if self.data_format == "channels_last" else 1
        channels = input_shape.as_list()[axis]
        if channels is None:
            raise ValueError(
                "The channel dimension of the inputs should be defined. Found `None`; call set_shape on them"
            )
        self.input_spec = InputSpec(ndim=self.rank + 2, axes={axis: channels})
        self._build_kernels(channels)
        if self.use_bias:
            self.bias = self.add_weight(
                "bias",
                [self.filters],
                initializer=self.bias_initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
            )
        self.built = True

    def call(self, inputs: Any) -> Any:
        def convolved(inputs: Any) -> Any:
            outputs = self._convolve(
                self._padded(inputs), "VALID" if self.padding == "causal" else self.padding.upper()
            )
            return outputs if self.bias is None else tf.nn.bias_add(outputs, tf.convert_to_tensor(self.bias))

        outputs = layout.in_channels_last(convolved, inputs, self.data_format)
        return outputs if self.activation is None else self.activation(outputs)

    def _padded(self, inputs: Any) -> Any:
        """With zeros in front where the padding is causal, so that no output depends on a later input."""
        if self.padding != "causal":
            return inputs
        return tf.pad(inputs, [[0, 0], [self.dilation_rate[0] * (self.kernel_size[0] - 1), 0], [0, 0]])

    def _build_kernels(self, channels: int) -> None:
        raise NotImplementedError

    def _convolve(self, inputs: Any, padding: str) -> Any:
        """The convolution alone, channels last."""
        raise NotImplementedError


class Convolution(_Layer):
    """`activation(x * kernel + bias)`, with `*` a window that slides over one, two or three dimensions of space.

    Args:
        filters: how many channels come out.
        kernel_size: of the window; an integer, or one for each dimension of space.
        strides: from window to window, likewise; more than 1 excludes a dilation of more than 1.
        padding: `"valid"`, only windows that lie inside, or `"same"`; in one dimension also `"causal"`.
        data_format: `"channels_last"`, shape `(batch, ..., channels)`, or `"channels_first"`.
        dilation_rate: distance between neighbours in the window.
        activation: a function, or its name such as `"relu"`; None for none.
        use_bias: have a bias.
        kernel_initializer, bias_initializer: of the variables, or a name such as `"he_normal"`; None is for the
            variable scope to decide.
        kernel_regularizer, bias_regularizer, activity_regularizer: functions of the variable, or of the output, that
            give a loss.
        kernel_constraint, bias_constraint: functions that the optimizer applies after its update.
        trainable: the variables go to TRAINABLE_VARIABLES.
        name: of the variable scope, made unique.
        options: `dtype`, of the variables.

    Attributes: kernel, shape `(*kernel_size, channels, filters)`; bias, shape `(filters,)` or None.

    Raises:
        ValueError: a size, padding or data format that cannot be; when called, channels that are not known or another
            number of dimensions.
    """

    operation: ClassVar[str]

    def __init__(
        self,
        filters: int,
        kernel_size: arguments.Sizes,
        strides: arguments.Sizes = 1,
        padding: str = "valid",
        data_format: str | None = "channels_last",
        dilation_rate: arguments.Sizes = 1,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = None,
        bias_initializer: Any = arguments.ZEROS,
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        trainable: bool = True,
        name: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(
            filters,
            kernel_size,
            strides,
            padding,
            data_format,
            dilation_rate,
            activation,
            use_bias,
            bias_initializer,
            bias_regularizer,
            bias_constraint,
            activity_regularizer=activity_regularizer,
            trainable=trainable,
            name=name,
            **options,
        )
        self.kernel_initializer = arguments.initializer(kernel_initializer)
        self.kernel_regularizer = kernel_regularizer
        self.kernel_constraint = kernel_constraint
        self.kernel = None

    def _build_kernels(self, channels: int) -> None:
        self.kernel = self.add_weight(
            "kernel",
            self._kernel_shape(channels),
            initializer=self.kernel_initializer,
            regularizer=self.kernel_regularizer,
            constraint=self.kernel_constraint,
        )

    def _kernel_shape(self, channels: int) -> list[int]:
        return [*self.kernel_size, channels, self.filters]

    def _convolve(self, inputs: Any, padding: str) -> Any:
        return tf.nn.convolution(
            inputs,
            tf.convert_to_tensor(self.kernel),
            strides=self.strides,
            padding=padding,
            dilations=self.dilation_rate,
            name=self.operation,
        )


class Conv1D(Convolution):
    """`Convolution` along `(batch, steps, channels)`.

    Example:
        >>> with tf.Graph().as_default():
        ...     Conv1D(4, 3, padding="causal")(tf.ones([8, 10, 2])).shape.as_list()
        [8, 10, 4]
    """

    rank = 1
    operation = "conv1d"
    causal = True


class Conv2D(Convolution):
    """`Convolution` of `(batch, height, width, channels)`.

    Example:
        >>> with tf.Graph().as_default():
        ...     layer = Conv2D(16, 3, strides=2, padding="same", activation=tf.nn.relu)
        ...     layer(tf.ones([8, 28, 28, 1])).shape.as_list(), layer.kernel.name, layer.kernel.shape.as_list()
        ([8, 14, 14, 16], 'conv2d/kernel:0', [3, 3, 1, 16])
    """

    rank = 2
    operation = "Conv2D"


class Conv3D(Convolution):
    """`Convolution` of `(batch, depth, height, width, channels)`."""

    rank = 3
    operation = "Conv3D"


class TransposedConvolution(Convolution):
    """The gradient of a convolution by its input: each value becomes a window of the output, `strides` apart.

    Arguments are those of `Convolution`, without `dilation_rate`.

    Attributes: kernel, shape `(*kernel_size, filters, channels)`; bias, shape `(filters,)` or None.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: arguments.Sizes,
        strides: arguments.Sizes = 1,
        padding: str = "valid",
        data_format: str | None = "channels_last",
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = None,
        bias_initializer: Any = arguments.ZEROS,
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        trainable: bool = True,
        name: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(
            filters,
            kernel_size,
            strides,
            padding,
            data_format,
            1,
            activation,
            use_bias,
            kernel_initializer,
            bias_initializer,
            kernel_regularizer,
            bias_regularizer,
            activity_regularizer,
            kernel_constraint,
            bias_constraint,
            trainable,
            name,
            **options,
        )

    def _kernel_shape(self, channels: int) -> list[int]:
        return [*self.kernel_size, self.filters, channels]

    def _convolve(self, inputs: Any, padding: str) -> Any:
        batch, *space, _ = inputs.shape.as_list()
        dynamic = tf.shape(inputs)
        lengths = [
            self._length(dynamic[axis + 1] if length is None else length, axis) for axis, length in enumerate(space)
        ]
        outputs = tf.nn.conv_transpose(
            inputs,
            tf.convert_to_tensor(self.kernel),
            tf.stack([dynamic[0], *lengths, self.filters]),
            strides=self.strides,
            padding=padding,
            name=self.operation,
        )
        static = [None if before is None else after for before, after in zip(space, lengths, strict=True)]
        outputs.set_shape([batch, *static, self.filters])
        return outputs

    def _length(self, length: Any, axis: int) -> Any:
        """Of the output along one dimension of space: one from which the convolution would make `length`."""
        stride, window = self.strides[axis], self.kernel_size[axis]
        return length * stride + (max(window - stride, 0) if self.padding == "valid" else 0)


class Conv2DTranspose(TransposedConvolution):
    """`TransposedConvolution` of `(batch, height, width, channels)`.

    Example:
        >>> with tf.Graph().as_default():
        ...     images = tf.compat.v1.placeholder(tf.float32, [None, 14, 14, 16])
        ...     Conv2DTranspose(3, 5, strides=2, padding="same")(images).shape.as_list()
        [None, 28, 28, 3]
    """

    rank = 2
    operation = "conv2d_transpose"


class Conv3DTranspose(TransposedConvolution):
    """`TransposedConvolution` of `(batch, depth, height, width, channels)`."""

    rank = 3
    operation = "conv3d_transpose"


class SeparableConvolution(_Layer):
    """A convolution of each channel alone, then one of size 1 over all that came out.

    Args:
        depth_multiplier: how many channels the first makes of each.
        depthwise_initializer, depthwise_regularizer, depthwise_constraint: for the kernel of the first.
        pointwise_initializer, pointwise_regularizer, pointwise_constraint: for that of the second.
        filters and the others: as in `Convolution`.

    Attributes: depthwise_kernel, shape `(*kernel_size, channels, depth_multiplier)`; pointwise_kernel, shape
    `(1, ..., channels * depth_multiplier, filters)`; bias, shape `(filters,)` or None.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: arguments.Sizes,
        strides: arguments.Sizes = 1,
        padding: str = "valid",
        data_format: str | None = "channels_last",
        dilation_rate: arguments.Sizes = 1,
        depth_multiplier: int = 1,
        activation: Any = None,
        use_bias: bool = True,
        depthwise_initializer: Any = None,
        pointwise_initializer: Any = None,
        bias_initializer: Any = arguments.ZEROS,
        depthwise_regularizer: Any = None,
        pointwise_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        depthwise_constraint: Any = None,
        pointwise_constraint: Any = None,
        bias_constraint: Any = None,
        trainable: bool = True,
        name: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(
            filters,
            kernel_size,
            strides,
            padding,
            data_format,
            dilation_rate,
            activation,
            use_bias,
            bias_initializer,
            bias_regularizer,
            bias_constraint,
            activity_regularizer=activity_regularizer,
            trainable=trainable,
            name=name,
            **options,
        )
        self.depth_multiplier = arguments.count("depth_multiplier", depth_multiplier)
        self.depthwise_initializer = arguments.initializer(depthwise_initializer)
        self.pointwise_initializer = arguments.initializer(pointwise_initializer)
        self.depthwise_regularizer = depthwise_regularizer
        self.pointwise_regularizer = pointwise_regularizer
        self.depthwise_constraint = depthwise_constraint
        self.pointwise_constraint = pointwise_constraint
        self.depthwise_kernel = self.pointwise_kernel = None

    def _build_kernels(self, channels: int) -> None:
        self.depthwise_kernel = self.add_weight(
            "depthwise_kernel",
            [*self.kernel_size, channels, self.depth_multiplier],
            initializer=self.depthwise_initializer,
            regularizer=self.depthwise_regularizer,
            constraint=self.depthwise_constraint,
        )
        self.pointwise_kernel = self.add_weight(
            "pointwise_kernel",
            [*[1] * self.rank, channels * self.depth_multiplier, self.filters],
            initializer=self.pointwise_initializer,
            regularizer=self.pointwise_regularizer,
            constraint=self.pointwise_constraint,
        )


class SeparableConv1D(SeparableConvolution):
    """`SeparableConvolution` along `(batch, steps, channels)`."""

    rank = 1
    causal = True

    def _convolve(self, inputs: Any, padding: str) -> Any:
        # As images one pixel high.
        outputs = tf.nn.separable_conv2d(
            tf.expand_dims(inputs, 1),
            tf.expand_dims(self.depthwise_kernel, 0),
            tf.expand_dims(self.pointwise_kernel, 0),
            strides=[1, *self.strides * 2, 1],
            padding=padding,
            dilations=[1, *self.dilation_rate],
        )
        return tf.squeeze(outputs, [1])


class SeparableConv2D(SeparableConvolution):
    """`SeparableConvolution` of `(batch, height, width, channels)`.

    Example:
        >>> with tf.Graph().as_default():
        ...     layer = SeparableConv2D(16, 3)
        ...     layer(tf.ones([8, 28, 28, 4])).shape.as_list(), [variable.op.name for variable in layer.variables]
        ([8, 26, 26, 16],
         ['separable_conv2d/depthwise_kernel', 'separable_conv2d/pointwise_kernel', 'separable_conv2d/bias'])
    """

    rank = 2

    def _convolve(self, inputs: Any, padding: str) -> Any:
        return tf.nn.separable_conv2d(
            inputs,
            tf.convert_to_tensor(self.depthwise_kernel),
            tf.convert_to_tensor(self.pointwise_kernel),
            strides=[1, *self.strides, 1],
            padding=padding,
            dilations=self.dilation_rate,
        )


conv1d = function_of(Conv1D)
conv2d = function_of(Conv2D)
conv3d = function_of(Conv3D)
conv2d_transpose = function_of(Conv2DTranspose)
conv3d_transpose = function_of(Conv3DTranspose)
separable_conv1d = function_of(SeparableConv1D)
separable_conv2d = function_of(SeparableConv2D)

Convolution1D = Conv1D
Convolution2D = Conv2D
Convolution3D = Conv3D
Convolution2DTranspose = Deconvolution2D = Deconv2D = Conv2DTranspose
Convolution3DTranspose = Deconvolution3D = Deconv3D = Conv3DTranspose
SeparableConvolution2D = SeparableConv2D
convolution1d = conv1d
convolution2d = conv2d
convolution3d = conv3d
convolution2d_transpose = deconvolution2d = deconv2d = conv2d_transpose
convolution3d_transpose = deconvolution3d = deconv3d = conv3d_transpose
separable_convolution2d = separable_conv2d
