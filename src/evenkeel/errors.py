# SPDX-License-Identifier: Apache-2.0
"""What can go wrong, as one tree.

    EvenkeelError
    ├── ArgumentError (ValueError)          an argument that cannot be honoured
    │   ├── AxisError (IndexError)          an axis the input does not have
    │   ├── RenormLimitError                limits of the renorm correction that no value can satisfy
    │   └── WeightShapeError                a mask or sample weight that does not fit the input
    ├── InputError (ValueError)             data or a file that cannot be used
    ├── SynchronizationError (RuntimeError) processes that normalize together and lost each other
    ├── UnequalError (ValueError)           a result that does not compute what it was made from
    ├── UnknownTensorError (TypeError)      a value no array library owns, or a type that is not a number
    └── MissingLibraryError (ImportError)   a library that is not installed

Each is also the built-in error that people would catch.
"""


class EvenkeelError(Exception):
    """Everything this library raises on purpose."""


class ArgumentError(EvenkeelError, ValueError):
    """An argument that cannot be honoured."""


class AxisError(ArgumentError, IndexError):
    """An axis the input does not have."""


class RenormLimitError(ArgumentError):
    """Limits of the renorm correction that no value can satisfy."""


class WeightShapeError(ArgumentError):
    """A mask or sample weight that does not fit the input."""


class InputError(EvenkeelError, ValueError):
    """Data or a file that cannot be used."""


class SynchronizationError(EvenkeelError, RuntimeError):
    """Processes that normalize together and lost each other; what the framework said is the cause."""


class UnequalError(EvenkeelError, ValueError):
    """A result that does not compute what it was made from; it was not kept."""


class UnknownTensorError(EvenkeelError, TypeError):
    """A value no array library owns, or a type that is not a number."""


class MissingLibraryError(EvenkeelError, ImportError):
    """A library that is not installed."""
