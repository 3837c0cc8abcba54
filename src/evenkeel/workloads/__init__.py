# SPDX-License-Identifier: Apache-2.0
"""Small networks and real images, for `evenkeel train` and `evenkeel bench`."""
