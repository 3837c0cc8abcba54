# SPDX-License-Identifier: Apache-2.0
"""One training in several processes: a module for each backend, with the same names in each.

`join()` waits for the other processes and gives the `Place` of this one; after it, `gathered(value)` waits for them
again and gives the number of each, and `Network` is a `Trainer`. `lost(error)` is whether an error says that another
process has ended.
"""
