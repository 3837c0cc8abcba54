# SPDX-License-Identifier: Apache-2.0
"""One training in several processes: a module for each backend, with the same names in each.

`join()` waits for the other processes and gives the `Place` of this one. `LOST` is what the backend raises where
another process has ended. `Network` is a `Trainer`, to be made after `join`.
"""
